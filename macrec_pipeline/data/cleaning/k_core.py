"""Interactions -> their k-core: every user and every item keeps at least k interactions, repeated to the fixpoint.

Users must also be long enough for leave-one-out: a training item, a validation target and a test target. Ids are dense
numbers here: counting those costs an array look-up a row, and memory grows with users and items, not with rows.
M interactions, U users, N items.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MIN_HISTORY = 3
"""Interactions that leave-one-out needs of a user."""

Codes = NDArray[np.uint32]
# Rows looked at together: bounds the memory beside the columns, changes no result.
_ROWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class KCoreRound:
    """The rows that one round took away.

    Attributes:
        number: of the round, from 1.
        rows: int64, ascending.
        of_user, of_item: int64, interactions that the row's user and item still had in this round.
    """

    number: int
    rows: NDArray[np.int64]
    of_user: NDArray[np.int64]
    of_item: NDArray[np.int64]


def iterate_k_core(users: Codes, items: Codes, alive: NDArray[np.bool_], *, k_core: int) -> Iterator[KCoreRound]:
    """Peel off the rows outside the core, a round at a time; the core itself does not depend on the order.

    Args:
        users, items: uint32 [M], dense numbers; a repeated pair counts each time.
        alive: bool [M], the rows that take part. Cleared in place for those that fall.
        k_core: interactions that a user and an item must keep.

    Yields:
        What fell in each round. Ends when nothing more does.
    """
    needed = needed_of_user(k_core)
    of_user, of_item = count_codes(users, alive), count_codes(items, alive)
    number = 0
    while True:
        number += 1
        rows = _rows_with(users, items, alive, weak_users=of_user < needed, weak_items=of_item < k_core)
        if not len(rows):
            return
        fallen_users, fallen_items = users[rows], items[rows]
        alive[rows] = False
        yield KCoreRound(number, rows, of_user[fallen_users], of_item[fallen_items])
        of_user -= np.bincount(fallen_users, minlength=len(of_user))
        of_item -= np.bincount(fallen_items, minlength=len(of_item))


def needed_of_user(k_core: int) -> int:
    """Interactions that a user must keep, in a k-core and for leave-one-out."""
    return max(k_core, MIN_HISTORY)


def count_codes(codes: Codes, alive: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many rows that take part have each code: int64 [largest code + 1]."""
    counts = np.zeros(int(codes.max(initial=0)) + 1, dtype=np.int64)
    for part in _parts(len(codes)):
        counts += np.bincount(codes[part][alive[part]], minlength=len(counts))
    return counts


def _rows_with(
    users: Codes,
    items: Codes,
    alive: NDArray[np.bool_],
    *,
    weak_users: NDArray[np.bool_],
    weak_items: NDArray[np.bool_],
) -> NDArray[np.int64]:
    found = [
        np.flatnonzero((weak_users[users[part]] | weak_items[items[part]]) & alive[part]) + part.start
        for part in _parts(len(users))
    ]
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _parts(size: int) -> Iterator[slice]:
    for start in range(0, size, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, size))
