"""May the challenger replace the champion? Each rule of `PromotionConfig` gives one sentence, and whether it is kept.

In: a `HeadToHead` and the rules. Out: a `Verdict`. It advises; who acts on it is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macrec_pipeline.config import PromotionConfig
    from macrec_pipeline.evaluation.promotion.comparison import HeadToHead


@dataclass(frozen=True)
class Finding:
    """What one rule says: whether it is kept, and the figures, as a sentence."""

    kept: bool
    sentence: str


@dataclass(frozen=True)
class Verdict:
    """What all rules say.

    Attributes:
        findings: one a rule that is switched on, in the order of the settings.
    """

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        """Whether every rule is kept."""
        return all(finding.kept for finding in self.findings)

    @property
    def reason(self) -> str:
        """The sentences of the rules that are broken; where there are none, of all of them."""
        broken = [finding.sentence for finding in self.findings if not finding.kept]
        return " ".join(broken or [finding.sentence for finding in self.findings])


def judge(match: HeadToHead, rules: PromotionConfig) -> Verdict:
    """Hold a comparison against the rules; the interval of the comparison counts, whatever its confidence."""
    return Verdict((_quality(match, rules), *_popularity(match, rules), *_limits(match, rules)))


def _quality(match: HeadToHead, rules: PromotionConfig) -> Finding:
    most = rules.max_loss_ndcg_10 * match.champion.ndcg_10
    result = match.ndcg_10
    sentence = (
        f"NDCG@10 is {match.challenger.ndcg_10:.4f}, the champion's {match.champion.ndcg_10:.4f}: a difference of "
        f"{result.difference:+.4f} [{result.low:+.4f}, {result.high:+.4f}] at {100 * match.confidence:g}%, where "
        f"{-most:+.4f} is allowed."
    )
    return Finding(result.low >= -most, sentence)


def _popularity(match: HeadToHead, rules: PromotionConfig) -> Iterator[Finding]:
    if rules.never_below_popularity:
        ours, popular = match.challenger.ndcg_10, match.popularity_ndcg_10
        yield Finding(ours >= popular, f"The most popular items reach {popular:.4f}, the challenger {ours:.4f}.")


def _limits(match: HeadToHead, rules: PromotionConfig) -> Iterator[Finding]:
    ours, theirs = match.challenger, match.champion
    if rules.max_coverage_drop is not None:
        drop = theirs.coverage - ours.coverage
        yield Finding(
            drop <= rules.max_coverage_drop,
            f"Coverage is {ours.coverage:.3f} after {theirs.coverage:.3f}; it may drop by {rules.max_coverage_drop:g}.",
        )
    if rules.max_moved_ids is not None:
        moved = match.moved_ids or 0.0
        yield Finding(
            moved <= rules.max_moved_ids,
            f"{moved:.1%} of {match.num_shared_items:,} shared items moved to another semantic ID; "
            f"{rules.max_moved_ids:.1%} may.",
        )
    for limit, name, new, old in (
        (rules.max_latency_ratio, "Time a history", ours.milliseconds, theirs.milliseconds),
        (rules.max_size_ratio, "Size of the bundle", ours.num_bytes, theirs.num_bytes),
    ):
        if limit is not None:
            text = f"{name} is {new / old:.2f} times the champion's; {limit:g} times is allowed."
            yield Finding(new <= limit * old, text)
