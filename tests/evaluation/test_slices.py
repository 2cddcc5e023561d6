"""Slices divide the users, and each slice is measured on its own users."""

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation import Evaluation
from macrec_pipeline.evaluation.flat_histories import flat_histories
from macrec_pipeline.evaluation.slices import SliceResult, measure_slices

# The inputs have 3, 4 and 6 items. Item 0 has 3 of the 10 training interactions; items 1 and 6 have 2.
ITEMS = [[0, 1, 5, 0], [0, 1, 5, 5, 1], [0, 2, 3, 6, 6, 6, 9]]


def _measure(items_imputed: dict[str, np.ndarray]) -> dict[tuple[str, str], SliceResult]:
    table = pl.DataFrame(
        {"user_index": range(3), "item_indices": ITEMS},
        schema={"user_index": pl.Int64, "item_indices": pl.List(pl.Int64)},
    )
    results = measure_slices(
        flat_histories(table, num_items=10),
        {"macrec": np.array([1, 3, 0])},
        num_items=10,
        items_imputed=items_imputed,
        config=EvaluationConfig(bootstrap_samples=10),
        seed=1,
    )
    return {(result.group, result.name.split(":")[0]): result for result in results}


def test_history_length_divides_users_into_thirds() -> None:
    """Of three users with histories of different lengths, one is short, one medium and one long."""
    found = _measure({})
    hits = [found["history length", name].systems["macrec"].hr_10 for name in ("short", "medium", "long")]
    assert hits == [1.0, 1.0, 0.0]
    assert found["history length", "short"].name == "short: up to 3 items"
    assert found["history length", "medium"].systems["macrec"].ndcg_10 == pytest.approx(0.5)


def test_target_popularity_counts_training_interactions() -> None:
    """The most popular item is the head; an item without training interactions is in the tail."""
    found = _measure({})
    assert found["target popularity", "head"].systems["macrec"].hr_10 == 1.0
    assert found["target popularity", "tail"].num_users == 1
    assert sum(result.num_users for key, result in found.items() if key[0] == "target popularity") == 3


def test_missing_images_are_a_slice() -> None:
    """Users whose target has no image are measured separately."""
    imputed = np.zeros(10, dtype=bool)
    imputed[9] = True
    found = _measure({"image": imputed})
    without, with_image = (found["target's image", f"{word} an image"] for word in ("without", "with"))
    assert (without.num_users, without.systems["macrec"].hr_10) == (1, 0.0)
    assert (with_image.num_users, with_image.systems["macrec"].hr_10) == (2, 1.0)


def test_slices_without_users_are_omitted(evaluation: Evaluation) -> None:
    """No target lacks a text, so there is no such slice; every slice in the results has users."""
    assert "target's text" not in {result.group for result in evaluation.slices}
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
