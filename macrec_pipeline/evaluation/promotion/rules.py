"""Decide whether the challenger may replace the champion, by the rules of `PromotionConfig`.

The input is a `ModelComparison`, the evidence of all comparisons with the same champion, the champion's age, and the
rules. The output is a `PromotionVerdict` with one result per rule. The verdict is advice; the tracking package decides
what to do with it.

The rule about quality is a test of non-inferiority on the pooled evidence (docs/decisions/028). It is repeated in every
run, so its limit is the lower end of a confidence sequence, which is valid for all runs together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macrec_pipeline.config import PromotionConfig
    from macrec_pipeline.evaluation.promotion.comparison import ModelComparison
    from macrec_pipeline.evaluation.promotion.evidence import ChampionAge, PairedScores

_TIGHTEST_AT = 5_000
"""Number of test targets at which the confidence sequence is narrowest, compared with an interval for one look."""


@dataclass(frozen=True)
class RuleResult:
    """The result of one rule: whether the challenger passed it, and a sentence with the figures."""

    passed: bool
    sentence: str


@dataclass(frozen=True)
class PromotionVerdict:
    """The results of all rules.

    Attributes:
        results: one per rule that is switched on, in the order of the settings.
    """

    results: tuple[RuleResult, ...]

    @property
    def passed(self) -> bool:
        """Whether the challenger passed every rule."""
        return all(result.passed for result in self.results)

    @property
    def reason(self) -> str:
        """The sentence of the first rule that failed or, if none failed, of the rule about quality."""
        return next((result.sentence for result in self.results if not result.passed), self.results[0].sentence)


def apply_rules(
    comparison: ModelComparison,
    rules: PromotionConfig,
    *,
    pooled: PairedScores,
    newest: PairedScores,
    age: ChampionAge,
) -> PromotionVerdict:
    """Apply the rules.

    Args:
        comparison: the challenger compared with the champion.
        rules: the section `promotion`.
        pooled: the evidence of all challengers of the same recipe against this champion, with this challenger.
        newest: the part of this challenger.
        age: of the champion.
    """
    return PromotionVerdict(
        (
            judge_quality(pooled, newest, age, rules),
            *_popularity(comparison, rules),
            *_limits(comparison, rules),
        )
    )


def judge_quality(pooled: PairedScores, newest: PairedScores, age: ChampionAge, rules: PromotionConfig) -> RuleResult:
    """Decide whether the challenger recommends well enough; the arguments are those of `apply_rules`."""
    if pooled.num_users < rules.min_test_users:
        return RuleResult(
            False,
            f"The comparison has {pooled.num_users:,} test users, and at least {rules.min_test_users:,} are required.",
        )
    required = 0.0 - rules.max_loss_ndcg_10 * newest.champion
    highest = newest.difference + NormalDist().inv_cdf(rules.confidence) * newest.standard_error()
    if newest.difference < required and highest < 0:
        return RuleResult(
            False,
            f"{_figures(newest)}; with {_percent(rules.confidence)} confidence it is at most {highest:+.4f}, so this "
            f"challenger is clearly worse, and at least {required:+.4f} is required whatever the champion's age.",
        )
    required = 0.0 - rules.max_loss_ndcg_10 * pooled.champion
    error = pooled.standard_error(champion_weight=1 - rules.max_loss_ndcg_10)
    lowest = pooled.difference - error * sequence_width(pooled.num_targets, confidence=rules.confidence)
    outdated = _outdated(age, rules)
    if lowest >= required or outdated is None:
        return RuleResult(
            lowest >= required,
            f"{_figures(pooled)}; with {_percent(rules.confidence)} confidence it is at least {lowest:+.4f}, and at "
            f"least {required:+.4f} is required.",
        )
    lowest = pooled.difference - error * NormalDist().inv_cdf(rules.outdated_confidence)
    return RuleResult(
        lowest >= required,
        f"{_figures(pooled)}; with {_percent(rules.outdated_confidence)} confidence, which is enough because the "
        f"champion {outdated}, it is at least {lowest:+.4f}, and at least {required:+.4f} is required.",
    )


def sequence_width(num_targets: int, *, confidence: float) -> float:
    """Compute the half-width of a one-sided confidence sequence, in standard errors of the mean.

    With a probability of `confidence`, the mean minus this width stays below the true mean for every number of targets,
    however often one looks. This is the asymptotic sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas
    (Time-uniform central limit theory and asymptotic confidence sequences, 2024), one-sided.

    Args:
        num_targets: number of observations so far.
        confidence: such as 0.95.
    """
    error = 1 - confidence
    tuning = (-2 * log(error) + log(1 - 2 * log(error))) / _TIGHTEST_AT  # rho squared
    scaled = num_targets * tuning
    return sqrt(2 * (1 + 1 / scaled) * log(1 + sqrt(scaled + 1) / (2 * error)))


def _outdated(age: ChampionAge, rules: PromotionConfig) -> str | None:
    """Return why the champion is outdated, to be read after "the champion"; None if it is not."""
    share, weeks = rules.outdated_unknown_share, rules.outdated_weeks
    if share is not None and age.unknown_items >= share:
        return f"does not know {age.unknown_items:.1%} of today's items"
    if share is not None and age.unknown_targets >= share:
        return f"does not know the items of {age.unknown_targets:.1%} of the newest test targets"
    if weeks is not None and age.weeks >= weeks:
        return f"is {age.weeks:.0f} weeks old"
    return None


def _figures(scores: PairedScores) -> str:
    targets = f"On {scores.num_targets:,} test targets"
    if scores.num_comparisons > 1:
        models = f"{targets} of {scores.num_comparisons} challengers, their NDCG@10"
    else:
        models = f"{targets}, the challenger's NDCG@10"
    return (
        f"{models} is {scores.challenger:.4f}, the champion's is {scores.champion:.4f}, and the difference is "
        f"{scores.difference:+.4f}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:g}%"


def _popularity(comparison: ModelComparison, rules: PromotionConfig) -> Iterator[RuleResult]:
    if rules.never_below_popularity:
        challenger, popular = comparison.challenger.ndcg_10, comparison.popularity_ndcg_10
        yield RuleResult(
            challenger >= popular,
            f"NDCG@10 is {challenger:.4f}, and the most popular items reach {popular:.4f}; the challenger must not be "
            "below that.",
        )


def _limits(comparison: ModelComparison, rules: PromotionConfig) -> Iterator[RuleResult]:
    challenger, champion = comparison.challenger, comparison.champion
    if rules.max_coverage_drop is not None:
        drop = champion.coverage - challenger.coverage
        yield RuleResult(
            drop <= rules.max_coverage_drop,
            f"Coverage is {challenger.coverage:.3f}, and the champion's is {champion.coverage:.3f}; it may drop by at "
            f"most {rules.max_coverage_drop:g}.",
        )
    if rules.max_moved_ids is not None:
        moved = comparison.moved_ids or 0.0
        yield RuleResult(
            moved <= rules.max_moved_ids,
            f"The semantic ID changed for {moved:.1%} of the {comparison.num_shared_items:,} items that both models "
            f"know; it may change for at most {rules.max_moved_ids:.1%}.",
        )
    for limit, name, new, old in (
        (rules.max_latency_ratio, "The time per history", challenger.milliseconds, champion.milliseconds),
        (rules.max_size_ratio, "The size of the bundle", challenger.num_bytes, champion.num_bytes),
    ):
        if limit is not None:
            sentence = f"{name} is {new / old:.2f} times the champion's; at most {limit:g} times is allowed."
            yield RuleResult(new <= limit * old, sentence)
