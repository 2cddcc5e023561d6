"""The baselines, compared with slow and obvious implementations, and with published figures for MovieLens-100K."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.evaluation import baselines
from macrec_pipeline.evaluation.baselines import popularity_counts, recommend_item_knn, recommend_popular
from macrec_pipeline.evaluation.flat_histories import FlatHistories, flat_histories
from macrec_pipeline.evaluation.metrics import hit_rate, ndcg, target_ranks

NUM_ITEMS = 9
HISTORIES = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), min_size=1, max_size=8), min_size=1, max_size=8)


def _flat(items: list[list[int]], num_items: int = NUM_ITEMS) -> FlatHistories:
    table = pl.DataFrame(
        {"user_index": range(len(items)), "item_indices": items},
        schema={"user_index": pl.Int64, "item_indices": pl.List(pl.Int64)},
    )
    return flat_histories(table, num_items=num_items)


def _popular_first(items: list[list[int]]) -> list[int]:
    counts = Counter(item for row in items for item in row[:-2])
    return sorted(range(NUM_ITEMS), key=lambda item: (-counts[item], item))


def _slow_item_knn(items: list[list[int]], *, window: int, top_k: int, exclude_seen: bool) -> list[list[int]]:
    counts = Counter(item for row in items for item in row[:-2])
    follows: Counter[tuple[int, int]] = Counter()
    for row in items:
        training = row[:-2]
        for place, item in enumerate(training):
            follows.update((item, later) for later in training[place + 1 : place + 1 + window])
    popular = _popular_first(items)
    lists = []
    for row in items:
        recent = row[:-1][::-1][:window]
        scores = {
            item: sum(
                0.8**age * follows[old, item] / math.sqrt(max(counts[old], 1) * max(counts[item], 1))
                for age, old in enumerate(recent)
            )
            for item in range(NUM_ITEMS)
        }
        order = sorted(popular, key=lambda item: -round(scores[item], 6))
        lists.append([item for item in order if not (exclude_seen and item in row[:-1])][:top_k])
    return lists


def _unpadded(lists: np.ndarray) -> list[list[int]]:
    return [[item for item in row if item >= 0] for row in lists.tolist()]


def test_popularity_counts_only_the_training_part() -> None:
    """Validation and test items are not counted, and items with equal counts are ordered by item index."""
    histories = _flat([[2, 3, 3, 8, 8], [3, 1, 8], [2, 0, 7]])
    assert popularity_counts(histories, num_items=NUM_ITEMS).tolist() == [0, 0, 2, 3, 0, 0, 0, 0, 0]
    lists = recommend_popular(histories, num_items=NUM_ITEMS, top_k=3)
    assert lists[False].tolist() == [[3, 2, 0]] * 3
    assert lists[True].tolist() == [[0, 1, 4], [2, 0, 4], [3, 1, 4]]


def test_baselines_do_not_recommend_unlisted_items() -> None:
    """The lists are those of all items without the unlisted ones, which still count in histories."""
    histories = _flat([[2, 3, 3, 8, 8], [3, 1, 8], [2, 0, 7], [2, 3, 4, 5, 2]])
    listed = np.ones(NUM_ITEMS, dtype=bool)
    listed[[3, 0]] = False
    for recommend in (recommend_popular, lambda *args, **more: recommend_item_knn(*args, history_length=3, **more)):
        everything = recommend(histories, num_items=NUM_ITEMS, top_k=NUM_ITEMS)
        found = recommend(histories, num_items=NUM_ITEMS, top_k=NUM_ITEMS, listed=listed)
        for exclude_seen in (False, True):
            expected = [[item for item in row if listed[item]] for row in _unpadded(everything[exclude_seen])]
            assert _unpadded(found[exclude_seen]) == expected


@given(items=HISTORIES)
def test_popular_lists_agree_with_a_slow_implementation(items: list[list[int]]) -> None:
    """With and without seen items, the lists are the most popular items in order, as long as there are any."""
    lists = recommend_popular(_flat(items), num_items=NUM_ITEMS, top_k=6)
    popular = _popular_first(items)
    assert _unpadded(lists[False]) == [popular[:6]] * len(items)
    assert _unpadded(lists[True]) == [[item for item in popular if item not in row[:-1]][:6] for row in items]


@settings(deadline=None, max_examples=60)
@given(items=HISTORIES, window=st.integers(1, 4))
def test_item_knn_agrees_with_a_slow_implementation(items: list[list[int]], window: int) -> None:
    """Scores, ties, filling up and the exclusion of seen items agree with loops over users and items."""
    lists = recommend_item_knn(_flat(items), num_items=NUM_ITEMS, top_k=6, history_length=window)
    for exclude_seen in (False, True):
        expected = _slow_item_knn(items, window=window, top_k=6, exclude_seen=exclude_seen)
        assert _unpadded(lists[exclude_seen]) == expected


def test_item_knn_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processing one user at a time gives the same lists as processing all users at once."""
    items = np.random.default_rng(0).integers(0, NUM_ITEMS, (20, 6)).tolist()
    at_once = recommend_item_knn(_flat(items), num_items=NUM_ITEMS, top_k=5, history_length=3)
    monkeypatch.setattr(baselines, "_MAX_CELLS_PER_CHUNK", 1)
    one_by_one = recommend_item_knn(_flat(items), num_items=NUM_ITEMS, top_k=5, history_length=3)
    for exclude_seen in (False, True):
        np.testing.assert_array_equal(at_once[exclude_seen], one_by_one[exclude_seen])


def test_items_outside_the_index_only_fill_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the index holds two items, only those are scored; the others follow by popularity."""
    items = [
        [0, 1, 0, 5, 6],
        [0, 1, 0, 5, 6],
        [1, 2, 3, 2, 6],
    ]  # item 3 follows item 2, but both are rarer than 0 and 1
    of_all = recommend_item_knn(_flat(items), num_items=NUM_ITEMS, top_k=4, history_length=2)
    assert of_all[False].tolist() == [[1, 0, 2, 3], [1, 0, 2, 3], [3, 0, 1, 2]]
    monkeypatch.setattr(baselines, "MAX_INDEXED_ITEMS", 2)
    of_two = recommend_item_knn(_flat(items), num_items=NUM_ITEMS, top_k=4, history_length=2)
    assert of_two[False].tolist() == [[1, 0, 2, 3], [1, 0, 2, 3], [0, 1, 2, 3]]


def _movielens(folder: Path, *, ids_as_text: bool) -> list[list[int]]:
    """Load 5-core histories. Sorting ids as numbers or as text breaks the many ties in time differently."""
    dtype = pl.String if ids_as_text else pl.Int64
    log = pl.read_csv(
        folder / "u.data", separator="\t", has_header=False, new_columns=["user", "item", "rating", "time"]
    ).with_columns(pl.col("user", "item").cast(dtype))
    height = -1
    while height != log.height:
        height = log.height
        log = log.filter((pl.len().over("item") >= 5) & (pl.len().over("user") >= 5))
    log = log.sort("user", "time", "item").with_columns(
        (pl.col("item").rank("dense").cast(pl.Int64) - 1).alias("index")
    )
    return log.group_by("user", maintain_order=True).agg("index")["index"].to_list()


@pytest.mark.parametrize(
    ("ids_as_text", "figures"),
    [
        pytest.param(
            False, (0.029, 0.012, 0.050, 0.025, 0.138, 0.074, 0.181, 0.096), id="ties by number, as published"
        ),
        pytest.param(
            True, (0.032, 0.016, 0.066, 0.033, 0.155, 0.081, 0.194, 0.107), id="ties by text, as with ties: item_id"
        ),
    ],
)
def test_movielens_gives_the_published_figures(
    shared_data: Path, ids_as_text: bool, figures: tuple[float, ...]
) -> None:
    """HR@10 and NDCG@10 of popularity and item-kNN agree to three digits, with seen items allowed and excluded."""
    items = _movielens(shared_data / "movielens-100k", ids_as_text=ids_as_text)
    assert len(items) == 943
    assert max(map(max, items)) == 1348
    histories = _flat(items, num_items=1349)
    found = []
    for lists in (
        recommend_popular(histories, num_items=1349, top_k=20),
        recommend_item_knn(histories, num_items=1349, top_k=20, history_length=10),
    ):
        for exclude_seen in (False, True):
            ranks = target_ranks(lists[exclude_seen], histories.targets)
            found += [hit_rate(ranks, cutoff=10).mean(), ndcg(ranks, cutoff=10).mean()]
    assert [round(float(figure), 3) for figure in found] == list(figures)
