"""Diversity, novelty, exposure and debiased NDCG have the values that follow from their definitions."""

import json
import math
from itertools import combinations

import numpy as np
import pytest

from macrec_pipeline.evaluation import Evaluation
from macrec_pipeline.evaluation.beyond_accuracy import (
    gini,
    intra_list_diversity,
    measure_beyond_accuracy,
    self_information,
)
from macrec_pipeline.evaluation.flat_histories import NO_ITEM
from macrec_pipeline.evaluation.protocol import metrics_document
from macrec_pipeline.evaluation.report.tables import quality_table

TEXT = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
IMAGE = np.array([[0, 0], [1, 0], [2, 0], [2, 1]])


def test_intra_list_diversity_by_hand() -> None:
    """Text: items 0, 1 and 2, 3 are half different and the others wholly; image: only items 2 and 3 are half alike."""
    lists = np.array([[0, 1, 2], [2, 3, NO_ITEM], [3, NO_ITEM, NO_ITEM]])
    # first user: pairs 01, 02, 12; second: pair 23; the third has no pair and does not count
    assert intra_list_diversity(lists, {"text": TEXT}) == pytest.approx(((0.5 + 1 + 1) / 3 + 0.5) / 2)
    assert intra_list_diversity(lists, {"image": IMAGE}) == pytest.approx((1 + 0.5) / 2)
    both = ((0.75 + 1 + 1) / 3 + 0.5) / 2
    assert intra_list_diversity(lists, {"text": TEXT, "image": IMAGE}) == pytest.approx(both)
    assert intra_list_diversity(lists[2:], {"text": TEXT}) is None


def test_intra_list_diversity_equals_a_plain_loop() -> None:
    """For more users than are measured at once, with lists of every length."""
    generator = np.random.default_rng(3)
    codes = generator.integers(3, size=(50, 4))
    lists = generator.integers(50, size=(5_000, 10))
    lists[np.arange(10) >= generator.integers(11, size=(5_000, 1))] = NO_ITEM
    means = []
    for items in lists.tolist():
        pairs = list(combinations([item for item in items if item != NO_ITEM], 2))
        if pairs:
            means.append(np.mean([1 - np.cumprod(codes[first] == codes[second]).sum() / 4 for first, second in pairs]))
    assert intra_list_diversity(lists, {"text": codes}) == pytest.approx(np.mean(means))


def test_self_information_by_hand() -> None:
    """5 interactions and one more per item make 8: shares of 1/2, 1/4, 1/8 and 1/8, the last for an item with none."""
    assert self_information(np.array([3, 1, 0, 0])).tolist() == [1, 2, 3, 3]


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [([5, 5, 5, 5], 0), ([0, 0, 0, 8], 0.75), ([1, 3], 0.25), ([4, 1, 1, 2], 2 * (1 + 2 + 6 + 16) / (4 * 8) - 1.25)],
)
def test_gini_by_hand(amounts: list[int], expected: float) -> None:
    """0 for equal amounts, 1 - 1/N if one item has everything; the order does not matter."""
    assert gini(np.array(amounts)) == pytest.approx(expected)


def test_all_figures_of_two_systems_by_hand() -> None:
    """Three users, four items of which the last has left the catalogue, and targets trained 0, 3 and 8 times."""
    lists = {
        ("macrec", False): np.array([[0, 1], [0, 2], [1, NO_ITEM]]),
        ("empty", False): np.full((3, 2), NO_ITEM),
        ("macrec", True): np.array([[0, 1], [0, 1], [0, 1]]),
    }
    ranks = {
        ("macrec", False): np.array([2, 0, 1]),
        ("empty", False): np.zeros(3, int),
        ("macrec", True): np.ones(3, int),
    }
    found = measure_beyond_accuracy(
        lists,
        ranks,
        targets=np.array([1, 2, 0]),
        training_counts=np.array([8, 0, 3, 1]),
        listed=np.array([True, True, True, False]),
        codes={"text": TEXT},
    )
    macrec = found.systems["macrec"]
    assert macrec.intra_list_diversity == pytest.approx((0.5 + 1) / 2)
    # shares with one interaction more per item: 9/16, 1/16, 4/16, 2/16; recommended are items 0, 1, 0, 2, 1
    assert macrec.novelty == pytest.approx((2 * math.log2(16 / 9) + 2 * 4 + 2) / 5)
    assert macrec.exposure_gini == pytest.approx(2 * (1 * 1 + 2 * 2 + 3 * 2) / (3 * 5) - 4 / 3)
    weights = [1, 1 / 2, 1 / 3]  # targets trained 0, 3 and 8 times
    assert macrec.debiased_ndcg_10 == pytest.approx((weights[0] / math.log2(3) + weights[2]) / sum(weights))
    empty = found.systems["empty"]
    assert (empty.intra_list_diversity, empty.novelty, empty.exposure_gini, empty.debiased_ndcg_10) == (
        None,
        None,
        None,
        0,
    )
    assert found.systems_excluding_seen["macrec"].debiased_ndcg_10 == 1
    assert list(found.systems_excluding_seen) == ["macrec"]


def test_only_the_first_ten_items_count() -> None:
    """The eleventh changes no figure."""
    counts, targets, codes = np.ones(12, int), np.array([3]), {"text": np.arange(24).reshape(12, 2)}
    lists = np.arange(11)[None]
    ten, eleven = (
        measure_beyond_accuracy(
            {("macrec", False): items},
            {("macrec", False): np.array([4])},
            targets=targets,
            training_counts=counts,
            codes=codes,
        )
        for items in (lists[:, :10], lists)
    )
    assert ten == eleven


def test_every_system_is_measured_in_both_settings(evaluation: Evaluation) -> None:
    """`metrics.json` has the figures with their definitions, and the page one row per system."""
    document = metrics_document(evaluation, dataset="demo", collision_rate={})["beyond_accuracy"]
    names = ["intra_list_diversity", "novelty", "exposure_gini", "debiased_ndcg_10"]
    assert list(document["definitions"]) == names
    assert all(text.endswith(".") for text in document["definitions"].values())
    for setting, systems in (
        ("systems", evaluation.systems),
        ("systems_excluding_seen", evaluation.systems_excluding_seen),
    ):
        assert list(document[setting]) == list(systems)
        for values in document[setting].values():
            assert list(values) == names
            assert all(isinstance(value, float) for value in values.values())
    json.dumps(document)
    popular, random = (evaluation.beyond_accuracy.systems[system] for system in ("popularity", "macrec"))
    assert popular.novelty < random.novelty
    assert popular.exposure_gini > random.exposure_gini
    table = quality_table(evaluation.beyond_accuracy.systems)
    assert [row.name for row in table.rows][:1] == ["MACRec"]
    assert table.rows[0].cells == (
        f"{random.intra_list_diversity:.4f}",
        f"{random.novelty:.2f}",
        f"{random.exposure_gini:.4f}",
        f"{random.debiased_ndcg_10:.4f}",
    )
