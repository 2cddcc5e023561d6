"""The description of a registered version, as Markdown: its figures beside the champion's, and what the rules say.

In: a `HeadToHead` and a `Verdict`, or metrics alone where there is none. Out: text for MLflow's page of the version and
for Dagster's metadata. What was decided is added by whoever decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from macrec_pipeline.runtime.text_sanitizing import as_markdown

if TYPE_CHECKING:
    from macrec_pipeline.evaluation.promotion.comparison import HeadToHead
    from macrec_pipeline.evaluation.promotion.rules import Verdict
    from macrec_pipeline.evaluation.statistics import PairedDifference


def match_card(match: HeadToHead, verdict: Verdict, *, champion: int) -> str:
    """The figures of both, the differences with their intervals, and what each rule says.

    Args:
        match: the comparison.
        verdict: of the rules on it.
        champion: the version that it was compared with.
    """
    head = ["| | this version | version " + f"{champion} | difference |", "| --- | ---: | ---: | ---: |"]
    rows = ["| " + " | ".join(row) + " |" for row in _rows(match)]
    rules = [f"- {'kept' if finding.kept else '**broken**'}: {finding.sentence}" for finding in verdict.findings]
    note = (
        f"Both models asked in turn for the same {match.num_users:,} test users of the newest histories; intervals: "
        f"paired bootstrap, {100 * match.confidence:g}%. Of these users the most popular items reach NDCG@10 "
        f"{match.popularity_ndcg_10:.4f}. {_moved(match)}"
    )
    return "\n".join([*head, *rows, "", note, "", "Rules of promotion:", "", *rules])


def plain_card(metrics: Mapping[str, float]) -> str:
    """The figures of a version that was compared with nobody: of its own run's evaluation."""
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return "\n".join(["| metric | this version |", "| --- | ---: |", *rows])


def version_card(title: str, figures: str) -> str:
    """The whole description: `match_card` or `plain_card` below the data set's title, as its owner wrote it."""
    return f"**{as_markdown(title)}**\n\n{figures}\n"


def _rows(match: HeadToHead) -> Iterator[tuple[str, str, str, str]]:
    ours, theirs = match.challenger, match.champion
    yield "NDCG@10", f"{ours.ndcg_10:.4f}", f"{theirs.ndcg_10:.4f}", _interval(match.ndcg_10)
    yield "HR@10", f"{ours.hr_10:.4f}", f"{theirs.hr_10:.4f}", _interval(match.hr_10)
    if match.ndcg_10_known is not None:
        name = f"NDCG@10, {match.ndcg_10_known.num_users:,} users whose target both know"
        yield name, "", "", _interval(match.ndcg_10_known)
    yield "targets unknown to it", f"{ours.unknown_targets:.1%}", f"{theirs.unknown_targets:.1%}", ""
    yield "coverage", f"{ours.coverage:.3f}", f"{theirs.coverage:.3f}", f"{ours.coverage - theirs.coverage:+.3f}"
    for name, new, old in (
        ("milliseconds a history", ours.milliseconds, theirs.milliseconds),
        ("size of the bundle, MB", ours.num_bytes / 1e6, theirs.num_bytes / 1e6),
    ):
        yield name, f"{new:.2f}", f"{old:.2f}", f"x {new / old:.2f}"
    yield "items", f"{ours.num_items:,}", f"{theirs.num_items:,}", f"{ours.num_items - theirs.num_items:+,}"


def _interval(paired: PairedDifference) -> str:
    return f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"


def _moved(match: HeadToHead) -> str:
    if match.moved_ids is None:
        return "They have no item in common."
    return f"{match.moved_ids:.1%} of the {match.num_shared_items:,} items that both know have another semantic ID."
