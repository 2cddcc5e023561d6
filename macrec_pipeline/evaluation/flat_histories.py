"""Histories and recommendation lists as flat and padded arrays, so that nothing below loops over users.

What enters: list columns of parquet tables. What leaves: `FlatHistories`, and lists padded with `NO_ITEM`.
U users, T history items of one user, R recommended items of one user, N items.
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
    """Every user's items, oldest first, one user after the other.

    Attributes:
        items: int64 [sum of T], each in [0, N).
        starts: int64 [U + 1]; user u owns `items[starts[u]:starts[u + 1]]`, at least one item.
        untested: users beside these who are trained on and have no test target; a split by time leaves some.
    """

    items: IntArray
    starts: IntArray
    untested: "FlatHistories | None" = None

    @property
    def num_users(self) -> int:
        """U."""
        return len(self.starts) - 1

    @property
    def lengths(self) -> IntArray:
        """Items a user, test target included: int64 [U]."""
        return np.diff(self.starts)

    @property
    def targets(self) -> IntArray:
        """The test target, the last item: int64 [U]."""
        return self.items[self.starts[1:] - 1]

    def without_last(self, num_dropped: int) -> tuple[IntArray, IntArray]:
        """`items[:-num_dropped]` of every user: two int64 arrays of one length, the user and the item, in order."""
        kept = np.maximum(self.lengths - num_dropped, 0)
        users = np.repeat(np.arange(self.num_users), kept)
        offsets = np.arange(len(users)) - np.repeat(np.cumsum(kept) - kept, kept)
        return users, self.items[self.starts[users] + offsets]

    def training_part(self) -> tuple[IntArray, IntArray]:
        """Training part of every user, those who are not tested after the others: users and items as `without_last`."""
        users, items = self.without_last(2)
        if self.untested is None:
            return users, items
        others, their_items = self.untested.without_last(1)
        return np.concatenate([users, others + self.num_users]), np.concatenate([items, their_items])

    def most_recent_inputs(self, length: int) -> IntArray:
        """The newest `length` items before the test target, newest first: int64 [U, length], padded with NO_ITEM."""
        ages = np.arange(length)
        positions = self.starts[1:, None] - 2 - ages  # [U, length]
        exists = ages < (self.lengths - 1)[:, None]
        return np.where(exists, self.items[np.maximum(positions, 0)], NO_ITEM)


def flat_histories(histories: pl.DataFrame, *, num_items: int, untested: pl.DataFrame | None = None) -> FlatHistories:
    """Flatten `histories.item_indices`, of test users, and beside them those of users who are not tested.

    Raises:
        DataError: there are no users, a user has no items, or an item index is outside [0, num_items).
    """
    column = histories["item_indices"]
    lengths = column.list.len().to_numpy().astype(np.int64)
    if not len(lengths):
        raise DataError("histories holds no user, so there is nothing to evaluate. Lower k_core, or give more rows.")
    if (lengths == 0).any():
        user = histories["user_index"][int((lengths == 0).argmax())]
        raise DataError(f"histories: user_index {user} has no items; the last one is the test target.")
    items = _flat_items(column, where="histories", num_items=num_items)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    others = None if untested is None or untested.is_empty() else flat_histories(untested, num_items=num_items)
    return FlatHistories(items=items, starts=starts, untested=others)


def padded_lists(column: pl.Series, *, where: str, num_items: int) -> IntArray:
    """Recommendation lists as int64 [U, R], R the longest list, shorter ones padded with `NO_ITEM`.

    Raises:
        DataError: an item index is empty or outside [0, num_items), or a list names an item twice.
    """
    lengths = column.list.len().to_numpy().astype(np.int64)
    items = _flat_items(column, where=where, num_items=num_items)
    if (lengths != column.list.n_unique().to_numpy()).any():
        row = int((lengths != column.list.n_unique().to_numpy()).argmax())
        raise DataError(f"{where}: the list in row {row} names an item twice: {column[row].to_list()}.")
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
        raise DataError(f"{where}: {flat.null_count()} item indices are empty; each must be in [0, {num_items}).")
    items = flat.to_numpy().astype(np.int64)
    outside = (items < 0) | (items >= num_items)
    if outside.any():
        raise DataError(
            f"{where}: item index {items[outside.argmax()]} is not in the catalogue of {num_items} items. "
            "The tables come from different runs; materialize them together."
        )
    return items
