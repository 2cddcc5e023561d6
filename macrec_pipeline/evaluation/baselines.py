"""The baselines that a recommender must beat: popularity, and item-kNN over a user's most recent items.

The input is flat histories. The output is recommendation lists in the format of the recommender's own, with seen items
allowed and with seen items excluded. Both baselines are fitted on the training part of every history, which is `[:-2]`
for users with a test target; the input of a test user is `[:-1]`, as for the recommender. Items with equal scores are
ordered by popularity, then by item index. Popular items fill up item-kNN lists that are too short.
SASRec, the third baseline, is trained elsewhere; its lists come with the predictions.
Shapes (docs/notation.md): B batch rows (users processed together), C candidate items per user, U users, N items in the
catalogue. Further axes carry names: `top_k` items of a list, `num_indexed` scored items.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, FlatHistories, IntArray
from macrec_pipeline.evaluation.predictions import ITEM_KNN, POPULARITY, SystemLists

# Weight of an item relative to the next newer one. The same for all data sets. The decay, the window, the direction and
# the normalization were chosen to reproduce published figures for MovieLens-100K, which are measured on its test
# targets (docs/results.md).
RECENCY_DECAY = 0.8
# Item-kNN scores only the most popular items, which bounds the pairs that it counts.
MAX_INDEXED_ITEMS = 16_384
_MAX_CELLS_PER_CHUNK = 4_000_000
# Scores are compared as whole numbers of this unit, since equal scores can differ in their last bits.
_SCORE_UNIT = 1e-6


@dataclass(frozen=True)
class BaselineLists:
    """The recommendations of the baselines.

    Attributes:
        lists: (system, exclude_seen) -> int64 [U, top_k], best item first, padded with `NO_ITEM`.
        settings: system -> its settings as plain values, for the systems that have settings.
    """

    lists: SystemLists
    settings: dict[str, dict[str, Any]]


def run_baselines(
    flat: FlatHistories,
    *,
    num_items: int,
    top_k: int,
    config: EvaluationConfig,
    listed: NDArray[np.bool_] | None = None,
) -> BaselineLists:
    """Compute the lists of popularity and item-kNN for every test user.

    Args:
        flat: the histories of the test users.
        num_items: N, the size of the catalogue.
        top_k: items per list.
        config: supplies the number of recent items that item-kNN uses.
        listed: bool [N], the items that may be recommended; None for all.
    """
    window = config.item_knn_history
    found = {
        POPULARITY: recommend_popular(flat, num_items=num_items, top_k=top_k, listed=listed),
        ITEM_KNN: recommend_item_knn(flat, num_items=num_items, top_k=top_k, history_length=window, listed=listed),
    }
    settings: dict[str, dict[str, Any]] = {ITEM_KNN: {"history_length": window, "recency_decay": RECENCY_DECAY}}
    lists = {
        (system, exclude_seen): by_setting[exclude_seen]
        for system, by_setting in found.items()
        for exclude_seen in (False, True)
    }
    return BaselineLists(lists, settings)


def popularity_counts(histories: FlatHistories, *, num_items: int) -> IntArray:
    """Count the interactions of each item in the training part of the histories: int64 [N]."""
    _, items = histories.training_part()
    return np.bincount(items, minlength=num_items)


def recommend_popular(
    histories: FlatHistories, *, num_items: int, top_k: int, listed: NDArray[np.bool_] | None = None
) -> dict[bool, IntArray]:
    """Recommend the most popular items, the same to every user unless seen items are excluded.

    With `listed`, bool [N], only those items are recommended.

    Returns:
        exclude_seen -> int64 [U, top_k], best item first, padded with `NO_ITEM` where the catalogue is too small.
    """
    order = _popularity_order(popularity_counts(histories, num_items=num_items))
    order = order if listed is None else order[listed[order]]
    seen = _SeenItems(histories, num_items=num_items)
    lists = _empty_lists(histories, top_k=top_k)
    for users in _user_chunks(histories.num_users, rows=max(1, _MAX_CELLS_PER_CHUNK // num_items)):
        candidates = np.tile(order[: top_k + seen.max_per_user(users)], (len(users), 1))  # [B, C]
        _fill_lists(lists, candidates, users, seen=seen)
    return lists


def recommend_item_knn(
    histories: FlatHistories,
    *,
    num_items: int,
    top_k: int,
    history_length: int,
    listed: NDArray[np.bool_] | None = None,
) -> dict[bool, IntArray]:
    """Recommend the items that most often followed a user's most recent items.

    Let w = `history_length`, c(i, j) the number of times that item j came within w items after item i, and n(i) the
    number of interactions of item i. The score of item j is the sum, over the last w items i of the user's input with
    ages 0, 1, ... from newest to oldest, of 0.8^age * c(i, j) / sqrt(n(i) n(j)), rounded to six decimals. With
    `listed`, bool [N], only those items are recommended; the others still count as items of a history.

    Returns:
        exclude_seen -> int64 [U, top_k], best item first, padded with `NO_ITEM` where the catalogue is too small.
    """
    counts = popularity_counts(histories, num_items=num_items)
    popular = _popularity_order(counts)
    indexed = popular[:MAX_INDEXED_ITEMS]
    followers = _followers(histories, counts=counts, indexed=indexed, window=history_length)
    if listed is not None:
        popular = popular[listed[popular]]
        followers = followers @ sparse.diags_array(listed[indexed].astype(np.float64))
    recent = histories.most_recent_inputs(history_length)  # [U, history_length]
    places = np.where(recent == NO_ITEM, NO_ITEM, _index_places(indexed, num_items=num_items)[recent])
    seen = _SeenItems(histories, num_items=num_items)
    lists = _empty_lists(histories, top_k=top_k)
    by_length = np.argsort(histories.lengths, kind="stable")  # a long history lengthens the lists of its whole chunk
    for chunk in _user_chunks(histories.num_users, rows=max(1, _MAX_CELLS_PER_CHUNK // len(indexed))):
        users = by_length[chunk]
        num_needed = top_k + seen.max_per_user(users)
        best = _best_places(_queries(places[users], num_indexed=len(indexed)) @ followers, num_needed)
        neighbours = np.where(best == NO_ITEM, NO_ITEM, indexed[best])
        fill_up = np.tile(popular[:num_needed], (len(users), 1))
        candidates = np.concatenate([neighbours, fill_up], axis=1)  # [B, C]
        _fill_lists(lists, candidates, users, seen=seen)
    return lists


class _SeenItems:
    """The items in each user's input `[:-1]`, stored as sorted keys user * N + item."""

    def __init__(self, histories: FlatHistories, *, num_items: int) -> None:
        users, items = histories.without_last(1)
        self._num_items = num_items
        self._keys = np.unique(users * num_items + items)
        self._lengths = histories.lengths

    def max_per_user(self, users: IntArray) -> int:
        """Return an upper bound of the number of items that any of `users` has seen."""
        return int(self._lengths[users].max())

    def contains(self, users: IntArray, items: IntArray) -> NDArray[np.bool_]:
        """Tell whether users[b] has seen items[b, c]: bool [B, C]."""
        keys = users[:, None] * self._num_items + items
        places = np.searchsorted(self._keys, keys)
        return self._keys[np.minimum(places, len(self._keys) - 1)] == keys if len(self._keys) else keys < 0


def _empty_lists(histories: FlatHistories, *, top_k: int) -> dict[bool, IntArray]:
    """exclude_seen -> int64 [U, top_k], filled with `NO_ITEM`."""
    shape = (histories.num_users, top_k)
    return {exclude_seen: np.full(shape, NO_ITEM, dtype=np.int64) for exclude_seen in (False, True)}


def _fill_lists(lists: dict[bool, IntArray], candidates: IntArray, users: IntArray, *, seen: _SeenItems) -> None:
    """Write the first distinct candidates of each user into the lists of both settings.

    Args:
        lists: the result of `_empty_lists`, filled in place.
        candidates: int64 [B, C], best item first; `NO_ITEM` is skipped.
        users: int64 [B], the users whose candidates these are.
        seen: the seen items of all users.
    """
    order = np.argsort(candidates, axis=1, kind="stable")
    ascending = np.take_along_axis(candidates, order, axis=1)
    repeated = np.zeros(candidates.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    distinct = (candidates != NO_ITEM) & ~repeated
    for exclude_seen, filled in lists.items():
        allowed = distinct & ~seen.contains(users, candidates) if exclude_seen else distinct
        places = np.cumsum(allowed, axis=1) - 1
        rows, columns = np.nonzero(allowed & (places < filled.shape[1]))
        filled[users[rows], places[rows, columns]] = candidates[rows, columns]


def _popularity_order(counts: IntArray) -> IntArray:
    return np.argsort(-counts, kind="stable")


def _user_chunks(num_users: int, *, rows: int) -> Iterator[IntArray]:
    for start in range(0, num_users, rows):
        yield np.arange(start, min(start + rows, num_users))


def _followers(histories: FlatHistories, *, counts: IntArray, indexed: IntArray, window: int) -> sparse.csr_array:
    """c(i, j) / sqrt(n(i) n(j)) of the training part, for indexed items: float64 [num_indexed, num_indexed]."""
    users, items = histories.training_part()
    places = _index_places(indexed, num_items=len(counts))[items]
    shape = len(indexed), len(indexed)
    followers = sparse.csr_array(shape, dtype=np.float64)
    for distance in range(1, window + 1):
        same_user = users[distance:] == users[:-distance]
        before, after = places[:-distance], places[distance:]
        usable = same_user & (before != NO_ITEM) & (after != NO_ITEM)
        pairs = before[usable], after[usable]
        followers = followers + sparse.csr_array((np.ones(len(pairs[0])), pairs), shape=shape)  # equal pairs add up
    scale = sparse.diags_array(1 / np.sqrt(np.maximum(counts[indexed], 1)))
    return scale @ followers @ scale


def _queries(recent: IntArray, *, num_indexed: int) -> sparse.csr_array:
    """Weight the most recent items of each user by age; every occurrence of a repeated item counts.

    Args:
        recent: int64 [B, history_length], places in the index, newest item first, padded with `NO_ITEM`.
        num_indexed: the size of the index.

    Returns:
        float64 [B, num_indexed].
    """
    rows, ages = np.nonzero(recent != NO_ITEM)
    cells = rows, recent[rows, ages]
    return sparse.csr_array((RECENCY_DECAY**ages, cells), shape=(len(recent), num_indexed))


def _best_places(scores: sparse.csr_array, number: int) -> IntArray:
    """List the best items of each user by score, and equal scores by popularity.

    Args:
        scores: float64 [B, num_indexed], items in the order of popularity. Items without a score are left out.
        number: how many items to list.

    Returns:
        int64 [B, number], places in the index, padded with `NO_ITEM`.
    """
    num_users, num_indexed = scores.shape
    # Scores below a row's threshold cannot be listed, whatever their rounding. Most scores are left out here.
    thresholds = np.zeros(num_users)
    for row, (first, end) in enumerate(pairwise(scores.indptr)):
        if end - first > number:
            thresholds[row] = np.partition(scores.data[first:end], end - first - number)[end - first - number]
    lengths = np.diff(scores.indptr)
    kept = np.flatnonzero(scores.data >= np.repeat(thresholds - _SCORE_UNIT, lengths))
    rows = np.repeat(np.arange(num_users), lengths)[kept]
    # One whole number orders by user, by falling rounded score and by popularity, so that equal scores have one order.
    rounded = np.rint(scores.data[kept] / _SCORE_UNIT).astype(np.int64)
    highest = int(rounded.max(initial=0)) + 1
    keys = (rows * highest + highest - 1 - rounded) * num_indexed + scores.indices[kept]
    keys, rows = np.sort(keys[rounded > 0]), rows[rounded > 0]  # rows are ascending, also in the order of the keys
    rank = np.arange(len(keys)) - np.searchsorted(rows, np.arange(num_users))[rows]
    best = np.full((num_users, number), NO_ITEM, dtype=np.int64)
    listed = rank < number
    best[rows[listed], rank[listed]] = keys[listed] % num_indexed
    return best


def _index_places(indexed: IntArray, *, num_items: int) -> IntArray:
    """Return the position of each item in the index, `NO_ITEM` for items that are not indexed: int64 [N]."""
    places = np.full(num_items, NO_ITEM, dtype=np.int64)
    places[indexed] = np.arange(len(indexed))
    return places
