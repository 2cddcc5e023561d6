"""Challenger and champion: a comparison computed by hand, the rules at their limits, and the version card."""

from dataclasses import replace
from math import log2

import polars as pl
import pytest

from macrec_pipeline.config import PromotionConfig
from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.promotion.comparison import (
    ModelComparison,
    ModelMetrics,
    ModelRecommendations,
    compare_models,
    compare_with_popularity,
)
from macrec_pipeline.evaluation.promotion.held_out import HeldOutUsers, held_out_users
from macrec_pipeline.evaluation.promotion.rules import apply_rules
from macrec_pipeline.evaluation.promotion.version_card import comparison_card, metrics_card, refit_note, version_card
from macrec_pipeline.evaluation.statistics import PairedDifference
from macrec_pipeline.schemas import HISTORIES

SECOND = 1 / log2(3)  # NDCG of a target at rank 2
TARGETS = ["a", "b", "c", "new"]
CODES = {"a": ((0, 0), (0, 0)), "b": ((0, 1), (0, 1)), "c": ((1, 0), (1, 0)), "x": ((1, 1), (1, 1))}
CHALLENGER = ModelRecommendations(
    [["a"], ["x", "b"], ["x"], ["new", "x"]], CODES | {"new": ((2, 0), (2, 0))}, 2.0, 3_000_000
)
# The champion has an older catalogue, which has an item that is gone (z), lacks a new item, and has another image ID
# for item b.
CHAMPION = ModelRecommendations(
    [["z", "a"], ["b"], ["c"], ["z"]],
    {"z": ((3, 3), (3, 3)), "a": CODES["a"], "b": ((0, 1), (1, 0)), "c": CODES["c"]},
    1.0,
    2_000_000,
)
USERS = HeldOutUsers([["x"]] * 4, TARGETS, [["a", "x"]] * 4, frozenset(("a", "b", "c", "x", "new")))


def compare_by_default(
    challenger: ModelRecommendations = CHALLENGER,
    champion: ModelRecommendations = CHAMPION,
    users: HeldOutUsers = USERS,
) -> ModelComparison:
    return compare_models(challenger, champion, users, num_samples=200, confidence=0.9, seed=1)


def test_a_comparison_computed_by_hand() -> None:
    """The challenger has ranks 1, 2, missed, 1; the champion has 2, 1, 1, unknown. Coverage is of five items."""
    comparison = compare_by_default()
    mean = (2 + SECOND) / 4
    challenger = ModelMetrics(0.75, pytest.approx(mean), 4 / 5, 0.0, 2.0, 3_000_000, 5)
    champion = ModelMetrics(0.75, pytest.approx(mean), 3 / 5, 1 / 4, 1.0, 2_000_000, 4)
    assert (comparison.challenger, comparison.champion) == (challenger, champion)
    assert comparison.ndcg_10.difference == pytest.approx(0)
    assert comparison.hr_10.difference == 0
    assert comparison.ndcg_10_known is not None
    assert (comparison.ndcg_10_known.difference, comparison.ndcg_10_known.num_users) == (pytest.approx(-1 / 3), 3)
    assert comparison.popularity_ndcg_10 == 1 / 4
    assert (comparison.moved_ids, comparison.num_shared_items) == (1 / 3, 3)
    assert (comparison.num_users, comparison.confidence) == (4, 0.9)
    assert -1 <= comparison.ndcg_10.low < 0 < comparison.ndcg_10.high <= 1
    assert comparison == compare_by_default()


def test_only_the_first_ten_count() -> None:
    """A target at rank 11 is a miss, and items from there on do not count for the coverage."""
    items = [f"i{number}" for number in range(11)]
    catalogue = dict.fromkeys(items, ((0,), (0,)))
    users = HeldOutUsers([["i0"]], ["i10"], [items], frozenset(items))
    found = compare_by_default(
        ModelRecommendations([items], catalogue, 1.0, 1), ModelRecommendations([items[::-1]], catalogue, 1.0, 1), users
    )
    assert (found.challenger.hr_10, found.champion.hr_10) == (0, 1)
    assert found.challenger.coverage == 10 / 11


def test_catalogues_without_a_common_item() -> None:
    """No ID can have changed, no target is known to both models, and the champion misses everything."""
    comparison = compare_by_default(champion=ModelRecommendations([["z"]] * 4, {"z": ((0,), (0,))}, 1.0, 1))
    assert (comparison.moved_ids, comparison.num_shared_items, comparison.ndcg_10_known) == (None, 0, None)
    assert comparison.champion.unknown_targets == 1
    assert comparison.ndcg_10.difference == comparison.challenger.ndcg_10
    assert apply_rules(comparison, PromotionConfig(max_moved_ids=0)).passed
    card = comparison_card(comparison, apply_rules(comparison, PromotionConfig()), champion=1)
    assert "no item in common" in card


def test_every_user_needs_one_list() -> None:
    """A missing list, or no users at all, raises an error."""
    with pytest.raises(DataError, match="There are 4 test users and 3 recommendation lists"):
        compare_by_default(challenger=replace(CHALLENGER, lists=CHALLENGER.lists[:3]))
    with pytest.raises(DataError, match="There are 0 test users"):
        compare_by_default(
            replace(CHALLENGER, lists=[]), replace(CHAMPION, lists=[]), HeldOutUsers([], [], [], frozenset("a"))
        )


def test_the_champion_is_compared_with_the_popular_items() -> None:
    """The champion has NDCG 0.63, 1, 1, unknown; the popular items have 1, missed, missed, missed."""
    metrics, difference = compare_with_popularity(CHAMPION, USERS, num_samples=200, confidence=0.9, seed=1)
    assert metrics == compare_by_default().champion
    assert difference.difference == pytest.approx((2 + SECOND - 1) / 4)
    assert difference.low < difference.difference < difference.high


def test_held_out_users_are_described_by_item_ids() -> None:
    """The last item is the target, the items before it are the input, and popularity counts the training part."""
    rows = {
        "user_index": [0, 1],
        "user_id": ["u", "v"],
        "item_indices": [[2, 0, 2, 1], [2, 1, 0]],
        "tested": [True, True],
    }
    table = pl.DataFrame(rows | {"timestamps": [[1, 2, 3, 4], [1, 2, 3]]}, schema=HISTORIES.columns)
    users = held_out_users(table, ["p", "q", "r"])
    assert users.inputs == [["r", "p", "r"], ["r", "q"]]
    assert users.targets == ["q", "p"]
    assert users.popular == [["r", "p", "q"]] * 2
    assert users.catalogue == {"p", "q", "r"}


def equal_models(low: float = 0.0, **changes: object) -> ModelComparison:
    """Return a comparison of two models with NDCG@10 0.2, with an interval of the difference that starts at `low`."""
    metrics = ModelMetrics(0.4, 0.2, 0.5, 0.0, 1.0, 100, 10)
    paired = PairedDifference(0.0, low, 0.01, 0.5, 100)
    return replace(
        ModelComparison(metrics, metrics, paired, paired, paired, 0.1, 0.25, 10, 100, 0.95),
        **changes,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(("low", "passed"), [(0.01, True), (0.0, True), (-0.0099, True), (-0.0101, False)])
def test_a_challenger_may_lose_only_the_allowed_share(low: float, passed: bool) -> None:
    """5% of 0.2 is 0.01: the lower end of the interval is above 0, at 0, slightly above the limit, and below it."""
    verdict = apply_rules(equal_models(low), PromotionConfig(max_loss_ndcg_10=0.05))
    assert verdict.passed is passed
    assert f"(95% interval [{low:+.4f}, +0.0100]); its lower end must be at least -0.0100." in verdict.reason


@pytest.mark.parametrize(
    ("rules", "changes", "sentence"),
    [
        ({}, {"ndcg_10": 0.05}, "NDCG@10 is 0.0500, and the most popular items reach 0.1000;"),
        (
            {"max_coverage_drop": 0.1},
            {"coverage": 0.39},
            "Coverage is 0.390, and the champion's is 0.500; it may drop by at most 0.1.",
        ),
        (
            {"max_moved_ids": 0.2},
            {},
            "The semantic ID changed for 25.0% of the 10 items that both models know; it may change for at most 20.0%.",
        ),
        (
            {"max_latency_ratio": 2},
            {"milliseconds": 2.5},
            "The time per history is 2.50 times the champion's; at most 2 times",
        ),
        (
            {"max_size_ratio": 1.5},
            {"num_bytes": 160},
            "The size of the bundle is 1.60 times the champion's; at most 1.5 times",
        ),
    ],
)
def test_each_rule_can_fail(rules: dict, changes: dict, sentence: str) -> None:
    """One failed rule is enough, and its sentence is the reason. A rule that is switched off is not applied."""
    comparison = equal_models()
    comparison = replace(comparison, challenger=replace(comparison.challenger, **changes))
    verdict = apply_rules(comparison, PromotionConfig(**rules))
    assert not verdict.passed
    assert verdict.reason.startswith(sentence)
    assert sum(not result.passed for result in verdict.results) == 1
    off = PromotionConfig(never_below_popularity=False)
    assert apply_rules(comparison, off).passed


def test_each_rule_passes_at_its_limit() -> None:
    """A challenger that equals popularity and exactly reaches each limit passes every rule."""
    comparison = equal_models(popularity_ndcg_10=0.2)
    challenger = replace(comparison.challenger, coverage=0.25, milliseconds=2.0, num_bytes=200)
    limits = {"max_coverage_drop": 0.25, "max_moved_ids": 0.25, "max_latency_ratio": 2, "max_size_ratio": 2}
    verdict = apply_rules(replace(comparison, challenger=challenger), PromotionConfig(**limits))
    assert verdict.passed
    assert len(verdict.results) == 6


def test_the_card_shows_every_figure() -> None:
    """The card has the metrics of both models, the intervals, the changed IDs, and the result of each rule."""
    comparison = compare_by_default()
    card = comparison_card(comparison, apply_rules(comparison, PromotionConfig(max_size_ratio=1)), champion=3)
    mean = (2 + SECOND) / 4
    paired = f"[{comparison.ndcg_10.low:+.4f}, {comparison.ndcg_10.high:+.4f}]"
    for text in (
        "| | this version | champion (version 3) | difference |",
        f"| NDCG@10 | {mean:.4f} | {mean:.4f} | {comparison.ndcg_10.difference:+.4f} {paired} |",
        "on the 3 users whose target both models know |  |  | -0.3333",
        "| targets that the model does not know | 0.0% | 25.0% |",
        "| coverage | 0.800 | 0.600 | +0.200 |",
        "| milliseconds per history | 2.00 | 1.00 | x 2.00 |",
        "| size of the bundle in MB | 3.00 | 2.00 | x 1.50 |",
        "| items | 5 | 4 | +1 |",
        "Of the 3 items that both models know, 33.3% have another semantic ID",
        "the most popular items reaches NDCG@10 0.2500",
        "- **failed**: The size of the bundle",
        "- passed: NDCG@10 is 0.6577, and the most popular items reach",
    ):
        assert text in card


def test_a_card_starts_with_the_escaped_title() -> None:
    """The figures are Markdown, the title is plain text."""
    card = version_card("<b>Shop</b> | *one*", metrics_card({"hr_10": 0.5}))
    assert card.splitlines()[0] == r"**&lt;b&gt;Shop&lt;/b&gt; \| \*one\***"
    assert "| hr_10 | 0.5000 |" in card


def test_the_description_of_a_refit_names_the_model_that_was_evaluated() -> None:
    """It says whose metrics are shown, on what they were measured, and on what the registered model was trained."""
    note = refit_note(
        method="continue", epochs=3, interactions=12345, evaluated_bundle="0123456789abcdef", test_users=1200
    )
    assert note == (
        "All metrics are those of the evaluated model, bundle 0123456789ab, on the held-out targets of 1,200 users. "
        "This version is its refit: continued from its weights on all 12,345 interactions, including the held-out ones "
        "(epochs: 3). So no metrics exist for the refit itself."
    )
    assert version_card("Shop", "figures", note=note) == f"**Shop**\n\nfigures\n\n{note}\n"
    assert version_card("Shop", "figures") == "**Shop**\n\nfigures\n"
