"""What a recommender must beat: popularity, and item-kNN over the most recent items.

Both are fitted on the training part of every history, `[:-2]` where there is a test target; the input of a test user is
`[:-1]`, as for the model. Equal scores go to the more popular item, then to the lower item index; item-kNN is filled up
with popular items.
U users, N items, R items a list, B users at once, C candidates a user, M items in the index.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.flat_histories import NO_ITEM, FlatHistories, IntArray

# The newest item counts fully, each older one 0.8 times the one after it. Fixed for all data sets, but not blindly:
# this decay, the window, the direction and the normalization were picked so that the figures known for MovieLens-100K
# come out, and those are figures of its test targets (docs/results.md).
RECENCY_DECAY = 0.8
# The index is a dense M x M matrix of float32: the most popular items, at most 1 GiB of them.
MAX_INDEXED_ITEMS = 16_384
_CELLS_AT_ONCE = 4_000_000
# So few users share a search that most dimensions are zero in all their queries and can be left out.
_USERS_A_SEARCH = 64
# Retrieved beyond what is needed, so that ties at the end of a list are broken by the rule above and not by faiss.
_TIE_SLACK = 64


def popularity_counts(histories: FlatHistories, *, num_items: int) -> IntArray:
    """Interactions of each item in the training part of the histories: int64 [N]."""
    _, items = histories.training_part()
    return np.bincount(items, minlength=num_items)


def recommend_popular(histories: FlatHistories, *, num_items: int, top_k: int) -> dict[bool, IntArray]:
    """The most popular items, the same for everyone but for seen items.

    Returns:
        exclude_seen -> int64 [U, top_k], best first, padded with `NO_ITEM` where the catalogue is too small.
    """
    order = _popularity_order(popularity_counts(histories, num_items=num_items))
    seen = SeenItems(histories, num_items=num_items)
    lists = empty_lists(histories, top_k=top_k)
    for users in _user_chunks(histories.num_users, rows=max(1, _CELLS_AT_ONCE // num_items)):
        candidates = np.tile(order[: top_k + seen.most(users)], (len(users), 1))
        fill_lists(lists, candidates, users, seen=seen)
    return lists


def recommend_item_knn(
    histories: FlatHistories, *, num_items: int, top_k: int, history_length: int
) -> dict[bool, IntArray]:
    """Items that used to follow what the user took last.

    With w = `history_length`, c(i, j) the times j came within w items after i, and n(i) the interactions of i, an
    item j scores the sum over the last w items i of the input, newest first, of
    0.8^age * c(i, j) / sqrt(n(i) n(j)). faiss finds the best j by inner product, exactly, among all indexed items;
    one search serves both settings.

    Returns:
        exclude_seen -> int64 [U, top_k], best first, padded with `NO_ITEM` where the catalogue is too small.
    """
    import faiss  # heavy, and of no use to who only reads metrics

    counts = popularity_counts(histories, num_items=num_items)
    popular = _popularity_order(counts)
    indexed = popular[:MAX_INDEXED_ITEMS]
    vectors = _follower_vectors(histories, counts=counts, indexed=indexed, window=history_length)  # [M, M]
    recent = histories.most_recent_inputs(history_length)  # [U, history_length]
    seen = SeenItems(histories, num_items=num_items)
    lists = empty_lists(histories, top_k=top_k)
    for users in _user_chunks(histories.num_users, rows=_USERS_A_SEARCH):
        num_needed = top_k + seen.most(users)
        queries = _history_vectors(recent[users], indexed=indexed, num_items=num_items)
        used = np.flatnonzero(queries.any(axis=0))
        used = used if len(used) else np.arange(1)  # nobody has an input: every score is zero, as it should be
        scores, found = faiss.knn(
            np.ascontiguousarray(queries[:, used]),
            np.ascontiguousarray(vectors[:, used]),
            min(len(indexed), num_needed + _TIE_SLACK),
            metric=faiss.METRIC_INNER_PRODUCT,
        )
        filling = np.tile(popular[:num_needed], (len(users), 1))
        candidates = np.concatenate([_in_order(scores, found, indexed), filling], axis=1)  # [B, C]
        fill_lists(lists, candidates, users, seen=seen)
    return lists


class SeenItems:
    """Which items are in a user's input `[:-1]`, as sorted keys user * N + item."""

    def __init__(self, histories: FlatHistories, *, num_items: int) -> None:
        users, items = histories.without_last(1)
        self._num_items = num_items
        self._keys = np.unique(users * num_items + items)
        self._lengths = histories.lengths

    def most(self, users: IntArray) -> int:
        """No user of `users` has seen more items."""
        return int(self._lengths[users].max())

    def contains(self, users: IntArray, items: IntArray) -> NDArray[np.bool_]:
        """Whether users[b] has seen items[b, c]: bool [B, C]."""
        keys = users[:, None] * self._num_items + items
        places = np.searchsorted(self._keys, keys)
        return self._keys[np.minimum(places, len(self._keys) - 1)] == keys if len(self._keys) else keys < 0


def empty_lists(histories: FlatHistories, *, top_k: int) -> dict[bool, IntArray]:
    """exclude_seen -> int64 [U, top_k], all `NO_ITEM`."""
    shape = (histories.num_users, top_k)
    return {exclude_seen: np.full(shape, NO_ITEM, dtype=np.int64) for exclude_seen in (False, True)}


def fill_lists(lists: dict[bool, IntArray], candidates: IntArray, users: IntArray, *, seen: SeenItems) -> None:
    """Write the first distinct candidates of `users` into both settings' lists.

    Args:
        lists: what `empty_lists` made; filled in place.
        candidates: int64 [B, C], best first; `NO_ITEM` is passed over.
        users: int64 [B], whose they are.
        seen: of all users.
    """
    order = np.argsort(candidates, axis=1, kind="stable")
    ascending = np.take_along_axis(candidates, order, axis=1)
    repeated = np.zeros(candidates.shape, dtype=bool)
    np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    distinct = (candidates != NO_ITEM) & ~repeated
    for exclude_seen, rows_of in lists.items():
        allowed = distinct & ~seen.contains(users, candidates) if exclude_seen else distinct
        places = np.cumsum(allowed, axis=1) - 1
        rows, columns = np.nonzero(allowed & (places < rows_of.shape[1]))
        rows_of[users[rows], places[rows, columns]] = candidates[rows, columns]


def _popularity_order(counts: IntArray) -> IntArray:
    return np.argsort(-counts, kind="stable")


def _user_chunks(num_users: int, *, rows: int) -> Iterator[IntArray]:
    for start in range(0, num_users, rows):
        yield np.arange(start, min(start + rows, num_users))


def _follower_vectors(
    histories: FlatHistories, *, counts: IntArray, indexed: IntArray, window: int
) -> NDArray[np.float32]:
    """c(i, j) / sqrt(n(i) n(j)) with j as the row, the vector that is searched: float32 [M, M]."""
    users, items = histories.training_part()
    places = _places(indexed, num_items=len(counts))[items]
    vectors = np.zeros((len(indexed), len(indexed)), dtype=np.float32)
    flat = vectors.reshape(-1)
    for distance in range(1, window + 1):
        same_user = users[distance:] == users[:-distance]
        before, after = places[:-distance], places[distance:]
        usable = same_user & (before != NO_ITEM) & (after != NO_ITEM)
        keys, times = np.unique(after[usable] * len(indexed) + before[usable], return_counts=True)
        flat[keys] += times
    scale = (1.0 / np.sqrt(np.maximum(counts[indexed], 1))).astype(np.float32)
    vectors *= scale[:, None]
    vectors *= scale
    return vectors


def _history_vectors(recent: IntArray, *, indexed: IntArray, num_items: int) -> NDArray[np.float32]:
    """The last items of each user, newest first, as weights by age: float32 [B, M]."""
    places = np.where(recent == NO_ITEM, NO_ITEM, _places(indexed, num_items=num_items)[recent])
    rows, ages = np.nonzero(places != NO_ITEM)
    queries = np.zeros((len(recent), len(indexed)), dtype=np.float32)
    np.add.at(queries, (rows, places[rows, ages]), RECENCY_DECAY**ages)  # a repeated item counts each time
    return queries


def _places(indexed: IntArray, *, num_items: int) -> IntArray:
    places = np.full(num_items, NO_ITEM, dtype=np.int64)
    places[indexed] = np.arange(len(indexed))
    return places


def _in_order(scores: NDArray[np.float32], found: IntArray, indexed: IntArray) -> IntArray:
    """Item indices by score, then by popularity, which `found` counts; without those that never followed: [B, C]."""
    # Rounded, since equal scores differ in the last bits by the order of their sums.
    rounded = np.round(scores.astype(np.float64), 6)
    order = np.lexsort((found, -rounded), axis=1)
    ordered = np.take_along_axis(found, order, axis=1)
    followed = (np.take_along_axis(rounded, order, axis=1) > 0) & (ordered >= 0)
    return np.where(followed, indexed[np.maximum(ordered, 0)], NO_ITEM)
