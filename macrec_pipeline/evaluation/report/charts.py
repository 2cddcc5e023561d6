"""Compute the geometry of the report's charts in percent of the drawing, so that the page can scale and theme them.

The input is metrics with intervals, training logs and code counts. The output is frozen records that the template draws
as SVG with the colours and fonts of the page. This module contains no HTML.
Shapes (docs/notation.md): K codes per level, L levels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# More points than this are not distinguishable on a page, so longer curves are thinned evenly.
_MAX_POINTS = 400
_MAX_BINS = 256


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in percent and its label."""

    place: float
    label: str


@dataclass(frozen=True)
class IntervalRow:
    """One row of an interval plot.

    Attributes:
        name: the label of the row.
        place, low, high: positions of the value and of its interval, in percent of the axis.
        value, interval: the numbers themselves.
        note: text to show instead of the value; may be empty.
    """

    name: str
    place: float
    low: float
    high: float
    value: float
    interval: tuple[float, float]
    note: str = ""


@dataclass(frozen=True)
class IntervalPlot:
    """Values with intervals on a common axis. `zero` is the position of 0 in percent; None if the axis starts at 0."""

    rows: tuple[IntervalRow, ...]
    ticks: tuple[Tick, ...]
    zero: float | None


@dataclass(frozen=True)
class Series:
    """A curve.

    Attributes:
        name: its label in the legend.
        points: SVG point list in a 100 x 100 box, with y pointing downwards.
        last, lowest: the last and the lowest value.
    """

    name: str
    points: str
    last: float
    lowest: float


@dataclass(frozen=True)
class LineChart:
    """Curves over a common x axis."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class UsageStrip:
    """How often each code of a level is used, most used codes first.

    Attributes:
        level: number of the level, starting at 1.
        area: SVG points of a filled step curve in a 100 x 100 box.
        num_used: number of codes with at least one item.
        codebook_size: K, the number of codes.
        max_items: items of the most used code.
        perplexity: 2 to the power of the entropy in bits. That many codes, if used evenly, would distinguish the items
            equally well.
    """

    level: int
    area: str
    num_used: int
    codebook_size: int
    max_items: int
    perplexity: float


def interval_plot(rows: Sequence[tuple[str, float, tuple[float, float], str]], *, num_ticks: int = 5) -> IntervalPlot:
    """Lay out rows of (name, value, (low, high), note) on an axis that covers zero and every interval."""
    edges = [edge for _, value, interval, _ in rows for edge in (value, *interval)]
    low, high = min(0.0, *edges), max(0.0, *edges)
    ticks = nice_ticks(low, high, target=num_ticks)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return round(100.0 * (value - low) / span, 3)

    return IntervalPlot(
        rows=tuple(
            IntervalRow(name, place(value), place(interval[0]), place(interval[1]), value, interval, note)
            for name, value, interval, note in rows
        ),
        ticks=tuple(Tick(place(tick), tick_label(tick, ticks)) for tick in ticks),
        zero=place(0.0) if low < 0 else None,
    )


def line_chart(
    log: Sequence[Mapping[str, float]], *, title: str, series: Mapping[str, str], x_key: str = "epoch"
) -> LineChart | None:
    """Lay out curves of a training log.

    Args:
        log: one mapping per measurement; a key may be absent from some rows.
        title: the title of the chart.
        series: key in the log -> name in the legend.
        x_key: key of the x axis; rows without it are placed at their row number.

    Returns:
        The chart; None if no series has a finite value.
    """
    curves = _curves(log, series=series, x_key=x_key)
    if not curves:
        return None
    all_points = np.array([point for points in curves.values() for point in points])
    (x_low, y_low), (x_high, y_high) = all_points.min(axis=0), all_points.max(axis=0)
    y_ticks = nice_ticks(0.0 if 0 <= y_low < 0.5 * y_high else y_low, y_high, target=4)
    y_low, y_high = min(y_low, y_ticks[0]), max(y_high, y_ticks[-1])
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
    x_ticks = [tick for tick in nice_ticks(x_low, x_high, target=5) if x_low <= tick <= x_high and tick == int(tick)]
    return LineChart(
        title=title,
        x_label=x_key,
        series=tuple(
            Series(
                name=name,
                points=" ".join(
                    f"{100 * (x - x_low) / x_span:.2f},{100 - 100 * (y - y_low) / y_span:.2f}"
                    for x, y in _thinned(points)
                ),
                last=points[-1][1],
                lowest=min(y for _, y in points),
            )
            for name, points in curves.items()
        ),
        x_ticks=tuple(Tick(round(100 * (tick - x_low) / x_span, 3), f"{tick:g}") for tick in x_ticks),
        y_ticks=tuple(
            Tick(round(100 - 100 * (tick - y_low) / y_span, 3), tick_label(tick, y_ticks)) for tick in y_ticks
        ),
    )


def usage_strips(usage: NDArray[np.int64]) -> tuple[UsageStrip, ...]:
    """Lay out one strip per level from the number of items per code, int64 [L, K]."""
    return tuple(_usage_strip(level, counts) for level, counts in enumerate(usage, start=1))


def nice_ticks(low: float, high: float, *, target: int) -> list[float]:
    """Return about `target` evenly spaced round numbers that enclose [low, high]."""
    span = high - low
    if span <= 0:
        return [low, low + (abs(low) or 1.0)]
    rough = span / target
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """Format `value` with as many decimals as the distance between the ticks needs."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value) or 1.0
    decimals = next((digits for digits in range(9) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 9)
    return f"{value:.{decimals}f}"


def _curves(
    log: Sequence[Mapping[str, float]], *, series: Mapping[str, str], x_key: str
) -> dict[str, list[tuple[float, float]]]:
    """Return name -> finite (x, y) points, without series that have none."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for key, name in series.items():
        points = [(float(row.get(x_key, number)), float(row[key])) for number, row in enumerate(log) if key in row]
        finite = [point for point in points if math.isfinite(point[1])]
        if finite:
            curves[name] = finite
    return curves


def _usage_strip(level: int, counts: NDArray[np.int64]) -> UsageStrip:
    total = int(counts.sum())
    shares = counts[counts > 0] / max(total, 1)
    perplexity = float(2.0 ** -(shares * np.log2(shares)).sum()) if total else 0.0
    ordered = np.sort(counts)[::-1]
    bins = np.array([part.mean() for part in np.array_split(ordered, min(len(ordered), _MAX_BINS))])
    heights = 100.0 - 100.0 * bins / max(bins.max(), 1e-12)
    edges = np.linspace(0.0, 100.0, len(bins) + 1)
    steps = [
        f"{x:.2f},{y:.2f}" for left, right, y in zip(edges[:-1], edges[1:], heights, strict=True) for x in (left, right)
    ]
    return UsageStrip(
        level=level,
        area=" ".join(["0,100", *steps, "100,100"]),
        num_used=int((counts > 0).sum()),
        codebook_size=len(counts),
        max_items=int(counts.max(initial=0)),
        perplexity=perplexity,
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MAX_POINTS:
        return list(points)
    indices = np.unique(np.linspace(0, len(points) - 1, _MAX_POINTS).round().astype(int))
    return [points[index] for index in indices]
