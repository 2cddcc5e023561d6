"""Prepare an `Evaluation` for the page: labels, formatted table cells, marks of the best values, and conclusions.

The input is metrics as numbers. The output is records whose texts the template prints unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from macrec_pipeline.evaluation.beyond_accuracy import DEFINITIONS, ListQuality
from macrec_pipeline.evaluation.new_items import RecommendedNewItems
from macrec_pipeline.evaluation.predictions import BASELINES, FUSED_SYSTEM, ITEM_KNN, POPULARITY, SASREC
from macrec_pipeline.evaluation.protocol import Evaluation, Metrics, SystemComparison
from macrec_pipeline.evaluation.report.charts import IntervalPlot, interval_plot
from macrec_pipeline.evaluation.slices import (
    HISTORY_LENGTH,
    TARGET_POPULARITY,
    TARGET_TRAINING,
    SliceMetrics,
    SliceResult,
)

_SYSTEM_NAMES = {
    FUSED_SYSTEM: "MACRec",
    "macrec_text": "MACRec, text route",
    "macrec_image": "MACRec, image route",
    POPULARITY: "Popularity",
    ITEM_KNN: "Item-kNN",
    SASREC: "SASRec",
}
_NAMES_IN_SENTENCES = {"macrec_text": "its text route alone", "macrec_image": "its image route alone"}
_QUALITY_NAMES = {
    "intra_list_diversity": "Intra-list diversity",
    "novelty": "Novelty (bits)",
    "exposure_gini": "Exposure Gini",
    "debiased_ndcg_10": "Popularity-debiased NDCG@10",
}
_HEADLINES = ("hr_10", "ndcg_10")
_SLICE_GROUPS = {
    TARGET_TRAINING: "Times that the next item was trained on (training interactions)",
    HISTORY_LENGTH: "Length of the user's history (items)",
    TARGET_POPULARITY: "Popularity of the next item",
    "target_image": "Image of the next item",
    "target_text": "Text of the next item",
}


@dataclass(frozen=True)
class Cell:
    """A formatted value with its interval; `best` is true if no other system has a higher value."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class MetricRow:
    """The row of one system in a table of metrics."""

    name: str
    is_fused: bool
    is_baseline: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class MetricTable:
    """A table with one row per system and one column per metric."""

    columns: tuple[str, ...]
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class SliceRow:
    """The row of one slice: for each headline metric, one cell per system."""

    name: str
    num_users: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class SliceTable:
    """The slices by the property that divides the users, with a column per system below each metric.

    Attributes:
        metrics, systems: names of the columns.
        groups: name of the property -> its rows.
        num_best: number of slices in which the fused system has the highest NDCG@10, including ties above zero.
        num_slices: number of slices.
    """

    metrics: tuple[str, ...]
    systems: tuple[str, ...]
    groups: dict[str, list[SliceRow]]
    num_best: int
    num_slices: int


@dataclass(frozen=True)
class NewItemRow:
    """The row of one system in the table of new items: shares and numbers, seen items allowed and then excluded."""

    name: str
    is_fused: bool
    is_baseline: bool
    shares: tuple[Cell, Cell]
    numbers: tuple[int, int]


@dataclass(frozen=True)
class QualityRow:
    """The row of one system in a table of diversity, novelty, exposure and popularity bias: one text per column."""

    name: str
    is_fused: bool
    is_baseline: bool
    cells: tuple[str, ...]


@dataclass(frozen=True)
class QualityTable:
    """A table with one row per system and one column per metric, and the definition of each metric."""

    definitions: dict[str, str]
    rows: tuple[QualityRow, ...]


@dataclass(frozen=True)
class Conclusion:
    """What the paired bootstrap says about the fused system and one other system.

    Attributes:
        outcome: "better", "worse" or "unclear".
        claim: the end of a sentence that begins with "MACRec".
        numbers: the difference with its interval.
    """

    outcome: str
    claim: str
    numbers: str


def system_name(system: str) -> str:
    """Return the name of a system on the page; systems without one keep their own name."""
    return _SYSTEM_NAMES.get(system, system)


def metric_name(metric: str) -> str:
    """Return the name of a metric on the page: `hr_10` -> `HR@10`, `mrr` -> `MRR`, `coverage` -> `Coverage`."""
    name, _, cutoff = metric.partition("_")
    if cutoff:
        return f"{name.upper()}@{cutoff}"
    return "MRR" if name == "mrr" else name.capitalize()


def metric_table(systems: Mapping[str, Metrics]) -> MetricTable:
    """Build the table of all metrics of all systems, and mark the best value of each column, including ties.

    NDCG@1 has no column because it equals HR@1. Without systems, the table has no rows and columns.
    """
    metrics = [name for name in next(iter(systems.values()), {}) if not name.endswith("_ci") and name != "ndcg_1"]
    texts = {(system, name): _four_decimals(values[name]) for system, values in systems.items() for name in metrics}
    best = {name: max(texts[system, name] for system in systems) for name in metrics}
    rows = tuple(
        MetricRow(
            name=system_name(system),
            is_fused=system == FUSED_SYSTEM,
            is_baseline=system in BASELINES,
            cells=tuple(
                Cell(texts[system, name], _interval_text(interval_of(values, name)), texts[system, name] == best[name])
                for name in metrics
            ),
        )
        for system, values in systems.items()
    )
    return MetricTable(columns=tuple(metric_name(name) for name in metrics), rows=rows)


def headline_plots(systems: Mapping[str, Metrics]) -> dict[str, IntervalPlot]:
    """Lay out one plot each of HR@10 and NDCG@10, with the interval of every system."""
    return {
        metric_name(metric): interval_plot(
            [
                (system_name(system), value_of(values, metric), interval_of(values, metric), "")
                for system, values in systems.items()
            ]
        )
        for metric in _HEADLINES
    }


def comparison_plot(evaluation: Evaluation, *, exclude_seen: bool) -> IntervalPlot:
    """Lay out the paired differences between the fused system and every other system, in one setting."""
    chosen = [comparison for comparison in evaluation.comparisons if comparison.exclude_seen == exclude_seen]
    return interval_plot(
        [
            (
                system_name(comparison.against),
                comparison.result.difference,
                (comparison.result.low, comparison.result.high),
                f"better in {100 * comparison.result.share_better:.1f}%",
            )
            for comparison in chosen
        ],
        num_ticks=3,
    )


def conclusions(evaluation: Evaluation) -> list[Conclusion]:
    """Draw one conclusion per other system with seen items allowed, about the baselines first."""
    chosen = [comparison for comparison in evaluation.comparisons if not comparison.exclude_seen]
    return [_conclusion(comparison) for comparison in sorted(chosen, key=lambda one: one.against not in BASELINES)]


def slice_table(evaluation: Evaluation) -> SliceTable:
    """Build the table of the slices, and mark the best value of each metric in each row, including ties above zero."""
    systems = tuple(evaluation.slices[0].systems)
    groups: dict[str, list[SliceRow]] = {}
    for result in evaluation.slices:
        groups.setdefault(_SLICE_GROUPS[result.group], []).append(_slice_row(result))
    return SliceTable(
        metrics=tuple(metric_name(metric) for metric in _HEADLINES),
        systems=tuple(system_name(system) for system in systems),
        groups=groups,
        num_best=sum(
            result.systems[FUSED_SYSTEM].ndcg_10 == max(metrics.ndcg_10 for metrics in result.systems.values()) > 0
            for result in evaluation.slices
        ),
        num_slices=len(evaluation.slices),
    )


def new_item_rows(evaluation: Evaluation) -> list[NewItemRow]:
    """Build the rows of the table of new items, one per system."""
    found = evaluation.new_items
    return [
        NewItemRow(
            name=system_name(system),
            is_fused=system == FUSED_SYSTEM,
            is_baseline=system in BASELINES,
            shares=(_share_cell(allowed), _share_cell(found.systems_excluding_seen[system])),
            numbers=(allowed.num_items, found.systems_excluding_seen[system].num_items),
        )
        for system, allowed in found.systems.items()
    ]


def quality_table(systems: Mapping[str, ListQuality]) -> QualityTable:
    """Build the table of diversity, novelty, exposure and popularity bias; a figure that does not exist is a dash."""
    rows = tuple(
        QualityRow(
            name=system_name(system),
            is_fused=system == FUSED_SYSTEM,
            is_baseline=system in BASELINES,
            cells=tuple(_quality_text(name, getattr(found, name)) for name in DEFINITIONS),
        )
        for system, found in systems.items()
    )
    return QualityTable({_QUALITY_NAMES[name]: text for name, text in DEFINITIONS.items()}, rows)


def value_of(values: Metrics, metric: str) -> float:
    """Return the mean, which is stored under the metric's own name."""
    value = values[metric]
    assert isinstance(value, float), "a metric's own name holds its mean"
    return value


def interval_of(values: Metrics, metric: str) -> tuple[float, float]:
    """Return the interval, which is stored under `<metric>_ci`."""
    interval = values[f"{metric}_ci"]
    assert isinstance(interval, list), "a metric's interval is a pair"
    return interval[0], interval[1]


def _slice_row(result: SliceResult) -> SliceRow:
    cells: list[Cell] = []
    for metric in _HEADLINES:
        values = [_headline(metrics, metric) for metrics in result.systems.values()]
        texts = [_four_decimals(value) for value, _ in values]
        cells += [
            Cell(text, _interval_text(interval), value > 0 and text == max(texts))
            for text, (value, interval) in zip(texts, values, strict=True)
        ]
    name = result.part.replace("-", "\N{EN DASH}").replace("+", " or more").capitalize()
    if result.num_items is not None:
        name += f": {result.num_items:,} item{'' if result.num_items == 1 else 's'}"
    return SliceRow(name=name, num_users=result.num_users, cells=tuple(cells))


def _quality_text(metric: str, value: float | None) -> str:
    if value is None:
        return "\N{EN DASH}"
    return f"{value:.2f}" if metric == "novelty" else _four_decimals(value)


def _share_cell(found: RecommendedNewItems) -> Cell:
    low, high = (f"{100 * bound:.2f}" for bound in found.share_ci)
    return Cell(f"{100 * found.share:.2f}%", f"{low}\N{EN DASH}{high}%", best=False)


def _headline(metrics: SliceMetrics, metric: str) -> tuple[float, tuple[float, float]]:
    return (metrics.hr_10, metrics.hr_10_ci) if metric == "hr_10" else (metrics.ndcg_10, metrics.ndcg_10_ci)


def _conclusion(comparison: SystemComparison) -> Conclusion:
    result = comparison.result
    name = _NAMES_IN_SENTENCES.get(comparison.against, system_name(comparison.against))
    if result.low > 0:
        outcome, claim = "better", f"is better than {name}"
    elif result.high < 0:
        outcome, claim = "worse", f"is worse than {name}"
    else:
        outcome, claim = "unclear", f"is not distinguishable from {name}"
    interval = f"[{_signed(result.low)}, {_signed(result.high)}]"
    return Conclusion(outcome, claim, f"{metric_name(comparison.metric)} {_signed(result.difference)} {interval}")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _four_decimals(value: float | list[float]) -> str:
    assert isinstance(value, float), "an interval is formatted as a pair"
    return f"{value:.4f}"


def _interval_text(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}\N{EN DASH}{interval[1]:.3f}"
