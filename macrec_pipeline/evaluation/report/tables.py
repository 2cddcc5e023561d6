"""Prepare an `Evaluation` for the page: labels, formatted table cells, marks of the best values, and conclusions.

The input is metrics as numbers. The output is records whose texts the template prints unchanged.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from macrec_pipeline.evaluation.predictions import BASELINES, FUSED_SYSTEM, ITEM_KNN, POPULARITY, SASREC
from macrec_pipeline.evaluation.protocol import Evaluation, Metrics, SystemComparison
from macrec_pipeline.evaluation.report.charts import IntervalPlot, interval_plot
from macrec_pipeline.evaluation.slices import SliceMetrics, SliceResult

_SYSTEM_NAMES = {
    FUSED_SYSTEM: "MACRec",
    "macrec_text": "MACRec, text route",
    "macrec_image": "MACRec, image route",
    POPULARITY: "Popularity",
    ITEM_KNN: "Item-kNN",
    SASREC: "SASRec",
}
_NAMES_IN_SENTENCES = {"macrec_text": "its text route alone", "macrec_image": "its image route alone"}
_HEADLINES = ("hr_10", "ndcg_10")


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
    """The row of one slice: for each headline metric, a cell of the fused system and a cell of popularity."""

    name: str
    num_users: int
    cells: tuple[Cell, ...]


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

    NDCG@1 has no column because it equals HR@1.
    """
    metrics = [name for name in next(iter(systems.values())) if not name.endswith("_ci") and name != "ndcg_1"]
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


def slice_groups(evaluation: Evaluation) -> dict[str, list[SliceRow]]:
    """Group the rows of the slices by the property that divides the users."""
    groups: dict[str, list[SliceRow]] = {}
    for result in evaluation.slices:
        groups.setdefault(result.group, []).append(_slice_row(result))
    return groups


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
    fused, popular = (result.systems[system] for system in (FUSED_SYSTEM, POPULARITY))
    pairs = [(_headline(fused, metric), _headline(popular, metric)) for metric in _HEADLINES]
    cells = [
        Cell(_four_decimals(value), _interval_text(interval), value > other_value)
        for (fused_value, popular_value) in pairs
        for (value, interval), (other_value, _) in ((fused_value, popular_value), (popular_value, fused_value))
    ]
    return SliceRow(name=result.name, num_users=result.num_users, cells=tuple(cells))


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
