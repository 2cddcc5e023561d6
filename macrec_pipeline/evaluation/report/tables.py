"""From an `Evaluation` to what the page prints: labels, formatted cells, best values, sentences.

What enters: metrics as numbers. What leaves: records whose texts the template prints as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from macrec_pipeline.evaluation.predictions import BASELINES, FUSED_SYSTEM, ITEM_KNN, POPULARITY, SASREC
from macrec_pipeline.evaluation.protocol import Comparison, Evaluation, Metrics
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
_HEADLINES = ("hr_10", "ndcg_10")


@dataclass(frozen=True)
class Cell:
    """A value with its interval; `best` where no system has a higher one."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True)
class MetricRow:
    """One system of a table."""

    name: str
    is_fused: bool
    is_baseline: bool
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class MetricTable:
    """Systems by metrics."""

    columns: tuple[str, ...]
    rows: tuple[MetricRow, ...]


@dataclass(frozen=True)
class SliceRow:
    """One slice: per headline metric, the value and interval of the fused system and of popularity."""

    name: str
    num_users: int
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Verdict:
    """What the paired bootstrap says of the fused system against one other: better, worse or unclear."""

    outcome: str
    claim: str
    numbers: str


def system_name(system: str) -> str:
    """How a system is called on the page."""
    return _SYSTEM_NAMES.get(system, system)


def metric_name(metric: str) -> str:
    """`hr_10` -> `HR@10`, `mrr` -> `MRR`, `coverage` -> `Coverage`."""
    name, _, cutoff = metric.partition("_")
    if cutoff:
        return f"{name.upper()}@{cutoff}"
    return "MRR" if name == "mrr" else name.capitalize()


def metric_table(systems: Mapping[str, Metrics]) -> MetricTable:
    """All metrics of all systems, without NDCG@1, which is HR@1; the best of each column is marked, ties too."""
    metrics = [name for name in next(iter(systems.values())) if not name.endswith("_ci") and name != "ndcg_1"]
    shown = {(system, name): _decimals(values[name]) for system, values in systems.items() for name in metrics}
    best = {name: max(shown[system, name] for system in systems) for name in metrics}
    rows = tuple(
        MetricRow(
            name=system_name(system),
            is_fused=system == FUSED_SYSTEM,
            is_baseline=system in BASELINES,
            cells=tuple(
                Cell(shown[system, name], _span(interval_of(values, name)), shown[system, name] == best[name])
                for name in metrics
            ),
        )
        for system, values in systems.items()
    )
    return MetricTable(columns=tuple(metric_name(name) for name in metrics), rows=rows)


def headline_plots(systems: Mapping[str, Metrics]) -> dict[str, IntervalPlot]:
    """HR@10 and NDCG@10 of every system with intervals, one plot each."""
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
    """The paired differences of the fused system to every other one, in one setting."""
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


def verdicts(evaluation: Evaluation) -> list[Verdict]:
    """A sentence for each other system, the baselines first; seen items allowed."""
    chosen = [comparison for comparison in evaluation.comparisons if not comparison.exclude_seen]
    return [_verdict(comparison) for comparison in sorted(chosen, key=lambda one: one.against not in BASELINES)]


def slice_groups(evaluation: Evaluation) -> dict[str, list[SliceRow]]:
    """The slices by what they part the users by."""
    groups: dict[str, list[SliceRow]] = {}
    for result in evaluation.slices:
        groups.setdefault(result.group, []).append(_slice_row(result))
    return groups


def value_of(values: Metrics, metric: str) -> float:
    """The mean under `metric`."""
    value = values[metric]
    assert isinstance(value, float), "a metric's own name holds its mean"
    return value


def interval_of(values: Metrics, metric: str) -> tuple[float, float]:
    """The interval under `<metric>_ci`."""
    interval = values[f"{metric}_ci"]
    assert isinstance(interval, list), "a metric's interval is a pair"
    return interval[0], interval[1]


def _slice_row(result: SliceResult) -> SliceRow:
    fused, popular = (result.systems[system] for system in (FUSED_SYSTEM, POPULARITY))
    pairs = [(_headline(fused, metric), _headline(popular, metric)) for metric in _HEADLINES]
    cells = [
        Cell(_decimals(own), _span(interval), own > other)
        for (fused_value, popular_value) in pairs
        for (own, interval), (other, _) in ((fused_value, popular_value), (popular_value, fused_value))
    ]
    return SliceRow(name=result.name, num_users=result.num_users, cells=tuple(cells))


def _headline(metrics: SliceMetrics, metric: str) -> tuple[float, tuple[float, float]]:
    return (metrics.hr_10, metrics.hr_10_ci) if metric == "hr_10" else (metrics.ndcg_10, metrics.ndcg_10_ci)


def _verdict(comparison: Comparison) -> Verdict:
    result, name = comparison.result, system_name(comparison.against)
    if result.low > 0:
        outcome, claim = "better", f"is better than {name}"
    elif result.high < 0:
        outcome, claim = "worse", f"is worse than {name}"
    else:
        outcome, claim = "unclear", f"cannot be told apart from {name}"
    interval = f"[{_signed(result.low)}, {_signed(result.high)}]"
    return Verdict(outcome, claim, f"{metric_name(comparison.metric)} {_signed(result.difference)} {interval}")


def _signed(value: float) -> str:
    return f"{value:+.4f}".replace("-", "\N{MINUS SIGN}")


def _decimals(value: float | list[float]) -> str:
    assert isinstance(value, float), "only means are printed alone"
    return f"{value:.4f}"


def _span(interval: tuple[float, float]) -> str:
    return f"{interval[0]:.3f}\N{EN DASH}{interval[1]:.3f}"
