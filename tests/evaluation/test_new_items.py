"""New items are items without training interactions, and their share is that of all recommended items."""

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation import Evaluation, metrics_document
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, FlatHistories, flat_histories
from macrec_pipeline.evaluation.new_items import NewItems, measure_new_items

CONFIG = EvaluationConfig(bootstrap_samples=200)
NUM_ITEMS = 20
# Items 0 to 3 are trained on. Item 4 is a validation target, item 5 the test target of two users: both are new, and so
# are all others.
HISTORIES = [[0, 1, 4, 5], [2, 3, 4, 5], [0, 2, 4, 0]]


def _flat(histories: list[list[int]]) -> FlatHistories:
    schema = {"user_index": pl.Int64, "item_indices": pl.List(pl.Int64)}
    table = pl.DataFrame({"user_index": range(len(histories)), "item_indices": histories}, schema=schema)
    return flat_histories(table, num_items=NUM_ITEMS)


def _measure(lists: list[list[int]], *, listed: np.ndarray | None = None) -> NewItems:
    flat = _flat(HISTORIES)
    by_setting = {("macrec", exclude_seen): np.array(lists) for exclude_seen in (False, True)}
    return measure_new_items(flat, by_setting, num_items=NUM_ITEMS, config=CONFIG, seed=1, listed=listed)


def test_only_items_without_training_interactions_are_new() -> None:
    """A validation target and a test target are new unless they are also in a training part."""
    found = _measure([[0, 4], [5, 1], [5, 2]])
    assert (found.num_items, found.num_catalogue_items, found.num_target_users) == (16, 20, 2)
    assert (found.systems["macrec"].share, found.systems["macrec"].num_items) == (0.5, 2)


def test_the_share_is_that_of_all_recommended_items() -> None:
    """Padding is no recommendation: of 1 + 2 + 3 items, 1 is new, which is a sixth and not the mean of the users."""
    found = _measure([[4, NO_ITEM, NO_ITEM], [0, 1, NO_ITEM], [2, 3, 1]]).systems["macrec"]
    assert found.share == pytest.approx(1 / 6)
    low, high = found.share_ci
    assert 0.0 == low < 1 / 6 < high <= 1.0


def test_only_the_first_ten_items_count() -> None:
    """A new item at rank 11 is not recommended, one at rank 10 is."""
    old = [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    after = _measure([[*old, 7]] * 3).systems["macrec"]
    within = _measure([[*old[:9], 7, 0]] * 3).systems["macrec"]
    assert (after.share, after.share_ci, after.num_items) == (0.0, (0.0, 0.0), 0)
    assert (within.share, within.share_ci, within.num_items) == (0.1, (0.1, 0.1), 1)


def test_items_that_have_left_the_catalogue_are_not_new() -> None:
    """Nothing may recommend such an item, so it is no new item that lacks recommendations."""
    listed = np.arange(NUM_ITEMS) < 6
    found = _measure([[0], [1], [2]], listed=listed)
    assert (found.num_items, found.num_catalogue_items) == (2, 6)


def test_empty_lists_recommend_nothing() -> None:
    """Without any recommendation the share is zero, not undefined."""
    found = _measure([[NO_ITEM], [NO_ITEM], [NO_ITEM]]).systems["macrec"]
    assert (found.share, found.share_ci, found.num_items) == (0.0, (0.0, 0.0), 0)


def test_every_system_is_measured_in_both_settings(evaluation: Evaluation) -> None:
    """`metrics.json` has the share of new items of every system with seen items allowed and excluded."""
    document = metrics_document(evaluation, dataset="demo", collision_rate={})["new_items"]
    for setting in ("systems", "systems_excluding_seen"):
        assert list(document[setting]) == list(evaluation.systems)
        for values in document[setting].values():
            low, high = values["share_ci"]
            assert 0 <= low <= values["share"] <= high <= 1
