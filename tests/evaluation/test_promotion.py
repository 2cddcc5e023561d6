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
from macrec_pipeline.evaluation.promotion.evidence import ChampionAge, PairedScores
from macrec_pipeline.evaluation.promotion.held_out import HeldOutUsers, held_out_users, newest_interaction
from macrec_pipeline.evaluation.promotion.held_out import test_targets as targets_of
from macrec_pipeline.evaluation.promotion.rules import (
    PromotionVerdict,
    apply_rules,
    judge_quality,
    sequence_width,
)
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
    assert apply_with(comparison, PromotionConfig(max_moved_ids=0)).passed
    card = comparison_card(comparison, apply_with(comparison, PromotionConfig()), champion=1, age=YOUNG)
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
        "num_at_target_time": [1, 1],
    }
    table = pl.DataFrame(rows | {"timestamps": [[1, 2, 3, 4], [1, 2, 3]]}, schema=HISTORIES.columns)
    users = held_out_users(table, ["p", "q", "r"])
    assert users.inputs == [["r", "p", "r"], ["r", "q"]]
    assert users.targets == ["q", "p"]
    assert users.popular == [["r", "p", "q"]] * 2
    assert users.catalogue == {"p", "q", "r"}
    found = targets_of(table.with_columns(tested=pl.Series([True, False])), ["p", "q", "r"])
    assert found.to_dicts() == [{"user_id": "u", "item_id": "q", "timestamp": 4}]
    assert newest_interaction(table) == 4


YOUNG = ChampionAge(weeks=1.0, unknown_items=0.0, unknown_targets=0.0)


def scores(
    difference: float = 0.0,
    error: float = 0.0,
    *,
    champion: float = 0.2,
    num_targets: int = 5_000,
    num_users: int = 1_000,
    num_comparisons: int = 1,
) -> PairedScores:
    """Return scores whose difference has the given standard error."""
    return PairedScores(champion + difference, champion, error**2, 0.0, 0.0, num_targets, num_users, num_comparisons)


def apply_with(
    comparison: ModelComparison,
    rules: PromotionConfig,
    *,
    pooled: PairedScores | None = None,
    newest: PairedScores | None = None,
    age: ChampionAge = YOUNG,
) -> PromotionVerdict:
    """Apply the rules to evidence that satisfies them unless it is given."""
    return apply_rules(comparison, rules, pooled=pooled or scores(), newest=newest or scores(), age=age)


def equal_models(**changes: object) -> ModelComparison:
    """Return a comparison of two models with NDCG@10 0.2."""
    metrics = ModelMetrics(0.4, 0.2, 0.5, 0.0, 1.0, 100, 10)
    paired = PairedDifference(0.0, 0.0, 0.01, 0.5, 100)
    return replace(
        ModelComparison(metrics, metrics, paired, paired, paired, 0.1, 0.25, 10, 100, 0.95),
        **changes,  # type: ignore[arg-type]
    )


def test_the_width_of_the_sequence_computed_by_hand() -> None:
    """At 5,000 targets and 95%, rho^2 n = 5.9915 + ln 6.9915 = 7.9362; at 100,000, it is 158.72.

    An interval for one look has a width of 1.645 standard errors.
    """
    assert sequence_width(5_000, confidence=0.95) == pytest.approx(2.7795, abs=1e-4)
    assert sequence_width(20, confidence=0.95) > 10
    assert sequence_width(5_000, confidence=0.99) > sequence_width(5_000, confidence=0.95)
    assert sequence_width(100_000, confidence=0.95) == pytest.approx(3.1234, abs=1e-4)


@pytest.mark.parametrize(("error", "passed"), [(0.0, True), (0.0035, True), (0.0037, False)])
def test_the_pooled_evidence_decides(error: float, passed: bool) -> None:
    """5% of 0.2 is 0.01, and 0.01 / 2.7795 is 0.0036: the largest standard error with which an equal model passes."""
    result = judge_quality(scores(error=error, num_comparisons=4), scores(), YOUNG, PromotionConfig())
    assert result.passed is passed
    low = 0.0 - 2.7795 * error
    assert result.sentence == (
        "On 5,000 test targets of 4 challengers, their NDCG@10 is 0.2000, the champion's is 0.2000, and the difference "
        f"is +0.0000; with 95% confidence it is at least {low:+.4f}, and at least -0.0100 is required."
    )


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (ChampionAge(1, 0.1, 0), "does not know 10.0% of today's items"),
        (ChampionAge(1, 0.09, 0.2), "does not know the items of 20.0% of the newest test targets"),
        (ChampionAge(26, 0.09, 0), "is 26 weeks old"),
    ],
)
def test_an_outdated_champion_is_replaced_on_less_evidence(age: ChampionAge, words: str) -> None:
    """With a standard error of 0.0075, 95% is out of reach, but 90% needs 1.2816 * 0.0075 = 0.0096, within 0.01."""
    assert not judge_quality(scores(error=0.0075), scores(), YOUNG, PromotionConfig()).passed
    result = judge_quality(scores(error=0.0075), scores(), age, PromotionConfig())
    assert result.passed
    assert f"; with 90% confidence, which is enough because the champion {words}, it is at least -0.0096" in (
        result.sentence
    )
    assert not judge_quality(scores(error=0.0079), scores(), age, PromotionConfig()).passed
    off = PromotionConfig(outdated_weeks=None, outdated_unknown_share=None)
    assert not judge_quality(scores(error=0.0075), scores(), age, off).passed
    estimate = PromotionConfig(outdated_confidence=0.5)
    assert judge_quality(scores(-0.0099, 0.05), scores(), age, estimate).passed
    assert not judge_quality(scores(-0.0101, 0.05), scores(), age, estimate).passed


def test_a_clearly_worse_challenger_is_refused_whatever_the_age() -> None:
    """The earlier challengers were better, and the champion knows nothing, but this challenger loses 0.04 of 0.2."""
    ancient = ChampionAge(weeks=500, unknown_items=1, unknown_targets=0.9)
    worse = scores(-0.04, 0.02, num_targets=300)  # at most -0.04 + 1.645 * 0.02 = -0.0071
    result = judge_quality(scores(0.05, 0.001, num_comparisons=9), worse, ancient, PromotionConfig())
    assert not result.passed
    assert result.sentence == (
        "On 300 test targets, the challenger's NDCG@10 is 0.1600, the champion's is 0.2000, and the difference is "
        "-0.0400; with 95% confidence it is at most -0.0071, so this challenger is clearly worse, and at least -0.0100 "
        "is required whatever the champion's age."
    )
    uncertain = scores(-0.04, 0.03, num_targets=300)  # at most +0.0093
    tolerable = scores(-0.009, 0.001)  # certainly worse, but within the allowed loss
    for newest in (uncertain, tolerable):
        assert judge_quality(scores(0.05, 0.001), newest, ancient, PromotionConfig()).passed


def test_too_few_users_show_nothing() -> None:
    """29 users are too few by default, even for equal models without any spread."""
    result = judge_quality(scores(num_users=29), scores(), YOUNG, PromotionConfig())
    assert (result.passed, result.sentence) == (
        False,
        "The comparison has 29 test users, and at least 30 are required.",
    )
    assert judge_quality(scores(num_users=30), scores(), YOUNG, PromotionConfig()).passed


def test_the_reason_is_one_sentence() -> None:
    """It is that of the first rule that failed; if all passed, it is that of the rule about quality."""
    assert apply_with(equal_models(), PromotionConfig()).reason.startswith("On 5,000 test targets, the challenger's")
    failed = apply_with(equal_models(), PromotionConfig(max_moved_ids=0.2, max_size_ratio=0.5))
    assert sum(not result.passed for result in failed.results) == 2
    assert failed.reason.startswith("The semantic ID changed for 25.0% of the 10 items")
    assert failed.reason.count(". ") == 0


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
    verdict = apply_with(comparison, PromotionConfig(**rules))
    assert not verdict.passed
    assert verdict.reason.startswith(sentence)
    assert sum(not result.passed for result in verdict.results) == 1
    off = PromotionConfig(never_below_popularity=False)
    assert apply_with(comparison, off).passed


def test_each_rule_passes_at_its_limit() -> None:
    """A challenger that equals popularity and exactly reaches each limit passes every rule."""
    comparison = equal_models(popularity_ndcg_10=0.2)
    challenger = replace(comparison.challenger, coverage=0.25, milliseconds=2.0, num_bytes=200)
    limits = {"max_coverage_drop": 0.25, "max_moved_ids": 0.25, "max_latency_ratio": 2, "max_size_ratio": 2}
    verdict = apply_with(replace(comparison, challenger=challenger), PromotionConfig(**limits))
    assert verdict.passed
    assert len(verdict.results) == 6


def test_the_card_shows_every_figure() -> None:
    """The card has the metrics of both models, the intervals, the changed IDs, and the result of each rule."""
    comparison = compare_by_default()
    verdict = apply_with(comparison, PromotionConfig(max_size_ratio=1))
    card = comparison_card(comparison, verdict, champion=3, age=ChampionAge(2.25, 0.2, 0.25))
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
        "The champion's data is 2.2 weeks old, and the champion does not know 20.0% of today's items.",
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
