"""The k-core of an interaction log (MACRec section 4.1: 5-core).

The input is a log whose users and items are dense numbers. Rows are removed in rounds until every remaining user and
every remaining item has at least k interactions. Each user must also keep `MIN_HISTORY` of them, which leave-one-out
needs: a training item, a validation target and a test target. The output is the rows of each round.

With dense numbers, counting costs one array look-up per row, and the memory for counts grows with the users and items
rather than with the rows. Shapes (docs/notation.md): M rows of the log.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_HISTORY = 3
"""The fewest interactions of a user that leave-one-out can split."""

IdNumbers = NDArray[np.uint32]
"""uint32 [M]: for each row, the number that stands for its user ID or item ID."""

# Rows are processed in chunks of this size. It limits the memory for temporary arrays and does not change the result.
_CHUNK_ROWS = 4_000_000


@dataclass(frozen=True)
class KCoreRound:
    """The rows that one round removed.

    Attributes:
        number: the round, counted from 1.
        rows: int64 [rows of the round], ascending.
        user_counts: int64, per removed row, the interactions that its user had at the start of the round.
        item_counts: int64, per removed row, the interactions that its item had at the start of the round.
    """

    number: int
    rows: NDArray[np.int64]
    user_counts: NDArray[np.int64]
    item_counts: NDArray[np.int64]


def iterate_k_core(
    users: IdNumbers, items: IdNumbers, active: NDArray[np.bool_], *, k_core: int
) -> Iterator[KCoreRound]:
    """Remove the rows outside the k-core, round by round, until none is left to remove.

    The rows that remain do not depend on the order in which the others are removed.

    Args:
        users: uint32 [M], the number of each row's user.
        items: uint32 [M], the number of each row's item. A repeated (user, item) pair counts each time.
        active: bool [M], the rows to consider. Removed rows are cleared in place.
        k_core: the interactions that each user and each item must keep.

    Yields:
        The rows that each round removes.
    """
    min_per_user = min_interactions_per_user(k_core)
    user_counts, item_counts = count_rows_by_number(users, active), count_rows_by_number(items, active)
    round_number = 0
    while True:
        round_number += 1
        rows = _rows_to_remove(
            users, items, active, weak_users=user_counts < min_per_user, weak_items=item_counts < k_core
        )
        if not len(rows):
            return
        removed_users, removed_items = users[rows], items[rows]
        active[rows] = False
        yield KCoreRound(round_number, rows, user_counts[removed_users], item_counts[removed_items])
        user_counts -= np.bincount(removed_users, minlength=len(user_counts))
        item_counts -= np.bincount(removed_items, minlength=len(item_counts))


def min_interactions_per_user(k_core: int) -> int:
    """Return the interactions that a user must keep, both for the k-core and for leave-one-out."""
    return max(k_core, MIN_HISTORY)


def count_rows_by_number(numbers: IdNumbers, active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the active rows of each user or item: int64 [largest number + 1]."""
    counts = np.zeros(int(numbers.max(initial=0)) + 1, dtype=np.int64)
    for chunk in _chunks(len(numbers)):
        counts += np.bincount(numbers[chunk][active[chunk]], minlength=len(counts))
    return counts


def _rows_to_remove(
    users: IdNumbers,
    items: IdNumbers,
    active: NDArray[np.bool_],
    *,
    weak_users: NDArray[np.bool_],
    weak_items: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Return the active rows, ascending, whose user or item has too few interactions."""
    rows_by_chunk = [
        np.flatnonzero((weak_users[users[chunk]] | weak_items[items[chunk]]) & active[chunk]) + chunk.start
        for chunk in _chunks(len(users))
    ]
    return np.concatenate(rows_by_chunk) if rows_by_chunk else np.zeros(0, dtype=np.int64)


def _chunks(num_rows: int) -> Iterator[slice]:
    for start in range(0, num_rows, _CHUNK_ROWS):
        yield slice(start, min(start + _CHUNK_ROWS, num_rows))
