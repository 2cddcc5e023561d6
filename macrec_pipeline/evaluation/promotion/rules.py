"""Decide whether the challenger may replace the champion, by the rules of `PromotionConfig`.

The input is a `ModelComparison` and the rules. The output is a `PromotionVerdict` with one result per rule. The verdict
is advice; the tracking package decides what to do with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macrec_pipeline.config import PromotionConfig
    from macrec_pipeline.evaluation.promotion.comparison import ModelComparison


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
        """The sentences of the rules that failed or, if none failed, of all rules."""
        failed = [result.sentence for result in self.results if not result.passed]
        return " ".join(failed or [result.sentence for result in self.results])


def apply_rules(comparison: ModelComparison, rules: PromotionConfig) -> PromotionVerdict:
    """Apply the rules to a comparison, using the intervals at the confidence level of the comparison."""
    return PromotionVerdict(
        (
            _quality(comparison, rules),
            *_popularity(comparison, rules),
            *_limits(comparison, rules),
        )
    )


def _quality(comparison: ModelComparison, rules: PromotionConfig) -> RuleResult:
    allowed_loss = rules.max_loss_ndcg_10 * comparison.champion.ndcg_10
    difference = comparison.ndcg_10
    sentence = (
        f"NDCG@10 is {comparison.challenger.ndcg_10:.4f}, and the champion's is {comparison.champion.ndcg_10:.4f}. The "
        f"difference is {difference.difference:+.4f} ({100 * comparison.confidence:g}% interval "
        f"[{difference.low:+.4f}, {difference.high:+.4f}]); its lower end must be at least {0.0 - allowed_loss:+.4f}."
    )
    return RuleResult(difference.low >= -allowed_loss, sentence)


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
