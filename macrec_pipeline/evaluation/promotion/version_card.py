"""Write the description of a registered version as Markdown: its metrics, the champion's, and the results of the rules.

The input is a `ModelComparison` and its `PromotionVerdict`, or metrics alone if there was no comparison. The output is
shown on MLflow's page of the version and in Dagster's metadata. Whoever decides about the version appends the decision.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from macrec_pipeline.runtime.text_sanitizing import as_markdown

if TYPE_CHECKING:
    from macrec_pipeline.evaluation.promotion.comparison import ModelComparison
    from macrec_pipeline.evaluation.promotion.evidence import ChampionAge
    from macrec_pipeline.evaluation.promotion.rules import PromotionVerdict
    from macrec_pipeline.evaluation.statistics import PairedDifference


def comparison_card(comparison: ModelComparison, verdict: PromotionVerdict, *, champion: int, age: ChampionAge) -> str:
    """Show the metrics of both models, the differences with their intervals, and the result of each rule.

    Args:
        comparison: this version (the challenger) compared with the champion.
        verdict: the results of the rules.
        champion: the champion's version number.
        age: how far the champion is behind today's data.
    """
    head = [f"| | this version | champion (version {champion}) | difference |", "| --- | ---: | ---: | ---: |"]
    rows = ["| " + " | ".join(row) + " |" for row in _rows(comparison)]
    rules = [f"- {'passed' if result.passed else '**failed**'}: {result.sentence}" for result in verdict.results]
    note = (
        f"Both models recommended to the same {comparison.num_users:,} test users of the newest histories. Brackets "
        f"hold {100 * comparison.confidence:g}% intervals of a paired bootstrap. On these users, recommending the most "
        f"popular items reaches NDCG@10 {comparison.popularity_ndcg_10:.4f}. {_moved_ids(comparison)} "
        f"The champion's data is {age.weeks:.1f} weeks old, and the champion does not know {age.unknown_items:.1%} of "
        "today's items."
    )
    return "\n".join([*head, *rows, "", note, "", "Rules of promotion:", "", *rules])


def metrics_card(metrics: Mapping[str, float]) -> str:
    """Show the metrics of a version that was not compared, taken from the evaluation of its own run."""
    rows = [f"| {name} | {value:.4f} |" for name, value in metrics.items()]
    return "\n".join(["| metric | this version |", "| --- | ---: |", *rows])


def refit_note(*, method: str, epochs: int, interactions: int, evaluated_bundle: str, test_users: int) -> str:
    """Say which model was evaluated, on what, and that the registered one is its refit.

    Args:
        method: "from_scratch" or "continue".
        epochs: of the refit.
        interactions: that the refit was trained on.
        evaluated_bundle: digest of the evaluated bundle.
        test_users: users that it was evaluated on.
    """
    how = "continued from its weights" if method == "continue" else "trained from scratch with its settings"
    return (
        f"All metrics are those of the evaluated model, bundle {evaluated_bundle[:12]}, on the held-out targets of "
        f"{test_users:,} users. This version is its refit: {how} on all {interactions:,} interactions, "
        f"including the held-out ones (epochs: {epochs}). So no metrics exist for the refit itself."
    )


def champion_refit_note(
    *, method: str, epochs: int, interactions: int, evaluated_bundle: str, evaluated_version: str
) -> str:
    """Say which evaluated model a champion is the refit of; the arguments are the facts in its `refit.json`.

    Args:
        method: "continue"; the refit starts from the evaluated weights.
        epochs: of the refit.
        interactions: that the refit was trained on.
        evaluated_bundle: digest of the evaluated bundle.
        evaluated_version: the version that was registered with it.
    """
    assert method == "continue", method
    return (
        f"All metrics are those of the evaluated model, bundle {evaluated_bundle[:12]}, when version "
        f"{evaluated_version} was registered. This version is a later refit of that model: continued from its weights "
        f"on all {interactions:,} interactions that there were when this version was made (epochs: {epochs}). So no "
        "metrics exist for the refit itself, and later challengers are compared with the evaluated model."
    )


def version_card(title: str, figures: str, *, note: str = "") -> str:
    """Build the whole description: the data set's title, escaped, and below it the figures.

    Args:
        title: the title of the data set, plain text.
        figures: Markdown of `comparison_card` or `metrics_card`.
        note: Markdown below the figures, such as `refit_note`.
    """
    return "\n\n".join([f"**{as_markdown(title)}**", figures, *([note] if note else [])]) + "\n"


def _rows(comparison: ModelComparison) -> Iterator[tuple[str, str, str, str]]:
    new, old = comparison.challenger, comparison.champion
    yield "NDCG@10", f"{new.ndcg_10:.4f}", f"{old.ndcg_10:.4f}", _with_interval(comparison.ndcg_10)
    yield "HR@10", f"{new.hr_10:.4f}", f"{old.hr_10:.4f}", _with_interval(comparison.hr_10)
    if comparison.ndcg_10_known is not None:
        name = f"NDCG@10 on the {comparison.ndcg_10_known.num_users:,} users whose target both models know"
        yield name, "", "", _with_interval(comparison.ndcg_10_known)
    yield "targets that the model does not know", f"{new.unknown_targets:.1%}", f"{old.unknown_targets:.1%}", ""
    yield "coverage", f"{new.coverage:.3f}", f"{old.coverage:.3f}", f"{new.coverage - old.coverage:+.3f}"
    for name, new_value, old_value in (
        ("milliseconds per history", new.milliseconds, old.milliseconds),
        ("size of the bundle in MB", new.num_bytes / 1e6, old.num_bytes / 1e6),
    ):
        yield name, f"{new_value:.2f}", f"{old_value:.2f}", f"x {new_value / old_value:.2f}"
    yield "items", f"{new.num_items:,}", f"{old.num_items:,}", f"{new.num_items - old.num_items:+,}"


def _with_interval(paired: PairedDifference) -> str:
    return f"{paired.difference:+.4f} [{paired.low:+.4f}, {paired.high:+.4f}]"


def _moved_ids(comparison: ModelComparison) -> str:
    if comparison.moved_ids is None:
        return "The models have no item in common."
    return (
        f"Of the {comparison.num_shared_items:,} items that both models know, {comparison.moved_ids:.1%} have another "
        "semantic ID (the tuple of codes that stands for an item) than before."
    )
