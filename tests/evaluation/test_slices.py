"""Slices divide the users, and each slice is measured on its own users."""

import math

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation import Evaluation
from macrec_pipeline.evaluation.flat_histories import flat_histories
from macrec_pipeline.evaluation.slices import SliceResult, measure_slices, slices_document

# The inputs have 3, 4 and 6 items. Item 0 has 3 of the 10 training interactions; items 1 and 6 have 2.
ITEMS = [[0, 1, 5, 0], [0, 1, 5, 5, 1], [0, 2, 3, 6, 6, 6, 9]]


def _table(histories: list[list[int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"user_index": range(len(histories)), "item_indices": histories},
        schema={"user_index": pl.Int64, "item_indices": pl.List(pl.Int64)},
    )


def _measure_all(
    histories: list[list[int]],
    ranks: np.ndarray,
    *,
    untested: list[list[int]] | None = None,
    others: dict[str, np.ndarray] | None = None,
) -> tuple[SliceResult, ...]:
    flat = flat_histories(_table(histories), num_items=10, untested=_table(untested or []))
    config = EvaluationConfig(bootstrap_samples=50)
    systems = {"macrec": ranks, **(others or {})}
    return measure_slices(flat, systems, num_items=10, items_imputed={}, config=config, seed=1)


def _measure(items_imputed: dict[str, np.ndarray]) -> dict[tuple[str, str], SliceResult]:
    results = measure_slices(
        flat_histories(_table(ITEMS), num_items=10),
        {"macrec": np.array([1, 3, 0])},
        num_items=10,
        items_imputed=items_imputed,
        config=EvaluationConfig(bootstrap_samples=10),
        seed=1,
    )
    return {(result.group, result.part): result for result in results}


def test_history_length_divides_users_at_fixed_lengths() -> None:
    """An input of 4 items is in the first band and one of 5 in the second; 9 and 10, 19 and 20, 49 and 50 part too."""
    lengths = (2, 4, 5, 9, 10, 19, 20, 49, 50, 51)
    results = _measure_all([[0] * length + [1] for length in lengths], np.arange(len(lengths)) % 2)
    found = {result.part: result.num_users for result in results if result.group == "history_length"}
    assert found == {"1-4": 2, "5-9": 2, "10-19": 2, "20-49": 2, "50+": 2}


def test_targets_are_divided_by_their_training_interactions() -> None:
    """Items with 0, 1, 2, 3, 9 and 10 training interactions are the targets; held-out interactions do not count.

    Item 0 is the validation target of every user and the test target of one, and none of that is training. Only the
    user whose target is item 3 has a hit, at rank 2.
    """
    training = [item for item, times in {1: 1, 2: 2, 3: 3, 4: 9, 5: 10}.items() for _ in range(times)]
    histories = [[*training, 0, 0], *([0, target] for target in (1, 2, 3, 4, 5))]
    results = _measure_all(histories, np.array([0, 0, 0, 2, 11, 0]))
    found = {result.part: result for result in results if result.group == "target_training_interactions"}
    assert {part: result.num_users for part, result in found.items()} == {"0": 1, "1-2": 2, "3-9": 2, "10+": 1}
    metrics = found["3-9"].systems["macrec"]
    assert (metrics.hr_10, metrics.ndcg_10) == (0.5, pytest.approx(0.5 / math.log2(3)))
    assert found["1-2"].systems["macrec"].hr_10 == 0.0
    low, high = metrics.hr_10_ci
    assert 0.0 <= low < 0.5 < high <= 1.0


def test_users_who_are_only_trained_on_count_as_training() -> None:
    """A user without a test target adds all items but the last one, which is the validation target."""
    results = _measure_all([[1, 2, 0], [1, 2, 3]], np.array([1, 1]), untested=[[0, 0, 0, 3]])
    found = {result.part: result.num_users for result in results if result.group == "target_training_interactions"}
    assert found == {"0": 1, "3-9": 1}  # item 3 is only held out; item 0 has three training interactions


def test_another_system_changes_no_interval() -> None:
    """Every system has its own random stream, so the figures of one do not depend on which others are measured."""
    ranks = np.arange(40) % 13
    histories = [[item % 5, 5, item % 7] for item in range(40)]
    alone = _measure_all(histories, ranks)
    together = _measure_all(histories, ranks, others={"popularity": ranks[::-1]})
    assert [one.systems["macrec"] for one in alone] == [one.systems["macrec"] for one in together]
    assert alone == _measure_all(histories, ranks)


def test_the_document_has_the_measured_values() -> None:
    """`metrics.json` arranges the slices by group and part."""
    results = _measure_all([[0, 0, 1]], np.array([1]))
    perfect = {"hr_10": 1.0, "ndcg_10": 1.0, "hr_10_ci": [1.0, 1.0], "ndcg_10_ci": [1.0, 1.0]}
    part = {"num_users": 1, "systems": {"macrec": perfect}}
    assert slices_document(results) == {
        "target_training_interactions": {"0": part},
        "history_length": {"1-4": part},
        "target_popularity": {"tail": {**part, "num_items": 9}},
    }


def test_target_popularity_counts_training_interactions() -> None:
    """The most popular item is the head; an item without training interactions is in the tail."""
    found = _measure({})
    assert found["target_popularity", "head"].systems["macrec"].hr_10 == 1.0
    assert found["target_popularity", "tail"].num_users == 1
    assert sum(result.num_users for key, result in found.items() if key[0] == "target_popularity") == 3
    assert found["target_popularity", "head"].num_items == 2  # items 0 and 1; no target is in the mid


def test_missing_images_are_a_slice() -> None:
    """Users whose target has no image are measured separately."""
    imputed = np.zeros(10, dtype=bool)
    imputed[9] = True
    found = _measure({"image": imputed})
    without, with_image = (found["target_image", word] for word in ("without", "with"))
    assert (without.num_users, without.systems["macrec"].hr_10) == (1, 0.0)
    assert (with_image.num_users, with_image.systems["macrec"].hr_10) == (2, 1.0)


def test_slices_without_users_are_omitted(evaluation: Evaluation) -> None:
    """No target lacks a text, so there is no such slice; every slice in the results has users."""
    assert "target_text" not in {result.group for result in evaluation.slices}
    assert all(result.num_users > 0 for result in evaluation.slices)


def test_the_slices_of_a_group_contain_every_user_once(evaluation: Evaluation) -> None:
    """The slices of each group add up to all test users, and their hits add up to the headline."""
    for group in {result.group for result in evaluation.slices}:
        parts = [result for result in evaluation.slices if result.group == group]
        assert sum(part.num_users for part in parts) == evaluation.num_test_users
        hits = sum(part.num_users * part.systems["macrec"].hr_10 for part in parts)
        assert hits / evaluation.num_test_users == pytest.approx(evaluation.systems["macrec"]["hr_10"])


def test_flags_of_another_catalogue_are_rejected() -> None:
    """There must be one flag per item."""
    with pytest.raises(DataError, match=r"shape \(4,\), expected \(10,\)"):
        _measure({"text": np.zeros(4, dtype=bool)})
