"""Convert histories and recommendation lists to NumPy arrays, so that the evaluation never loops over users.

The input is the list columns of the `histories` and `predictions` tables. The output is `FlatHistories` (all histories
laid end to end) and recommendation lists as rectangular arrays padded with `NO_ITEM`.
Shapes (docs/notation.md): U users, T items of a history, N items in the catalogue; `list_length` is the length of a
recommendation list.
"""

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.errors import DataError

IntArray = NDArray[np.int64]
NO_ITEM = -1


@dataclass(frozen=True)
class FlatHistories:
    """The histories of all users laid end to end, each oldest item first.

    Attributes:
        items: int64 [sum of T], item indices, each in [0, N).
        starts: int64 [U + 1]; the history of user u is `items[starts[u]:starts[u + 1]]` and has at least one item.
        untested: histories of further users who are used for training only and have no test target. A split by time
            leaves such users; leave-one-out does not.
    """

    items: IntArray
    starts: IntArray
    untested: "FlatHistories | None" = None

    @property
    def num_users(self) -> int:
        """U, the number of test users."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> IntArray:
        """Items per user, including the test target: int64 [U]."""
        return np.diff(self.starts)

    @property
    def targets(self) -> IntArray:
        """The test target of each user, which is the last item: int64 [U]."""
        return self.items[self.starts[1:] - 1]

    def without_last(self, num_dropped: int) -> tuple[IntArray, IntArray]:
        """Drop the last `num_dropped` items of every user.

        Returns:
            Two int64 arrays of equal length, in the order of the histories: the user and the item of each interaction
            that is left.
        """
        num_left = np.maximum(self.lengths - num_dropped, 0)
        users = np.repeat(np.arange(self.num_users), num_left)
        offsets = np.arange(len(users)) - np.repeat(np.cumsum(num_left) - num_left, num_left)
        return users, self.items[self.starts[users] + offsets]

    def training_part(self) -> tuple[IntArray, IntArray]:
        """Return the interactions used for training, in the format of `without_last`.

        For test users these are all items but the last two, for untested users all items but the last one. Untested
        users follow the test users and are numbered from U.
        """
        users, items = self.without_last(2)
        if self.untested is None:
            return users, items
        untested_users, untested_items = self.untested.without_last(1)
        return np.concatenate([users, untested_users + self.num_users]), np.concatenate([items, untested_items])

    def most_recent_inputs(self, length: int) -> IntArray:
        """Return the `length` items before the test target, newest first: int64 [U, length], padded with NO_ITEM."""
        ages = np.arange(length)
        positions = self.starts[1:, None] - 2 - ages  # [U, length]
        exists = ages < (self.lengths - 1)[:, None]
        return np.where(exists, self.items[np.maximum(positions, 0)], NO_ITEM)


def flat_histories(histories: pl.DataFrame, *, num_items: int, untested: pl.DataFrame | None = None) -> FlatHistories:
    """Flatten the column `item_indices` of the histories.

    Args:
        histories: rows of the `histories` table, one per test user.
        num_items: N, the size of the catalogue.
        untested: rows of users without a test target, if there are any.

    Raises:
        DataError: there are no users, a user has no items, or an item index is outside [0, num_items).
    """
    column = histories["item_indices"]
    lengths = column.list.len().to_numpy().astype(np.int64)
    if not len(lengths):
        raise DataError(
            "The histories table has no users, so there is nothing to evaluate. Lower `cleaning.k_core`, or provide "
            "more interactions."
        )
    if (lengths == 0).any():
        user = histories["user_index"][int((lengths == 0).argmax())]
        raise DataError(
            f"histories: user_index {user} has no items, but the last item of every history is the test target."
        )
    items = _flat_items(column, where="histories", num_items=num_items)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat_untested = None if untested is None or untested.is_empty() else flat_histories(untested, num_items=num_items)
    return FlatHistories(items=items, starts=starts, untested=flat_untested)


def padded_lists(column: pl.Series, *, where: str, num_items: int) -> IntArray:
    """Convert recommendation lists to an array; lists shorter than the longest one are padded with `NO_ITEM`.

    Args:
        column: one list of item indices per user.
        where: name of the table or system for error messages.
        num_items: N, the size of the catalogue.

    Returns:
        int64 [U, list_length], where `list_length` is the length of the longest list.

    Raises:
        DataError: an item index is null or outside [0, num_items), or a list repeats an item.
    """
    lengths = column.list.len().to_numpy().astype(np.int64)
    items = _flat_items(column, where=where, num_items=num_items)
    if (lengths != column.list.n_unique().to_numpy()).any():
        row = int((lengths != column.list.n_unique().to_numpy()).argmax())
        raise DataError(f"{where}: the list in row {row} contains an item twice: {column[row].to_list()}.")
    if len(lengths) and (lengths == lengths[0]).all():
        return items.reshape(len(lengths), int(lengths[0]))
    rows = np.repeat(np.arange(len(lengths)), lengths)
    places = np.arange(len(items)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    padded = np.full((len(lengths), int(lengths.max(initial=0))), NO_ITEM, dtype=np.int64)
    padded[rows, places] = items
    return padded


def _flat_items(column: pl.Series, *, where: str, num_items: int) -> IntArray:
    flat = column.filter(column.list.len() > 0).explode()
    if flat.null_count():
        raise DataError(f"{where}: {flat.null_count()} item indices are null; each must be in [0, {num_items}).")
    items = flat.to_numpy().astype(np.int64)
    outside = (items < 0) | (items >= num_items)
    if outside.any():
        raise DataError(
            f"{where}: item index {items[outside.argmax()]} is outside the catalogue of {num_items} items. "
            "The tables come from different runs; materialize them together."
        )
    return items
