"""Numbers -> the geometry of the report's charts, in percent of the drawing, so that the page can scale and theme them.

What enters: metrics with intervals, training logs, code counts. What leaves: frozen records that the template draws as
SVG with the page's own colours and fonts. Nothing here knows HTML.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# More points than this cannot be told apart on a page; a longer curve is thinned evenly.
_MAX_POINTS = 400
_MAX_BINS = 256


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its place in percent and what is written there."""

    place: float
    label: str


@dataclass(frozen=True)
class IntervalRow:
    """One line of an interval plot; places in percent of the axis."""

    name: str
    place: float
    low: float
    high: float
    value: float
    interval: tuple[float, float]
    note: str = ""


@dataclass(frozen=True)
class IntervalPlot:
    """Values with intervals on one axis. `zero`: the place of 0 in percent, None if the axis begins there."""

    rows: tuple[IntervalRow, ...]
    ticks: tuple[Tick, ...]
    zero: float | None


@dataclass(frozen=True)
class Series:
    """A curve: `points` is an SVG list in a 100 x 100 box, y downwards; `last` and `best` are its values."""

    name: str
    points: str
    last: float
    best: float


@dataclass(frozen=True)
class LineChart:
    """Curves over one x axis."""

    title: str
    x_label: str
    series: tuple[Series, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


@dataclass(frozen=True)
class UsageStrip:
    """How often each code of a level is used, most used first.

    Attributes:
        level: 1-based.
        area: SVG points of a filled step curve in a 100 x 100 box.
        num_used, num_codes: codes with an item, and K.
        most: items of the most used code.
        perplexity: 2 to the entropy in bits: as many codes, used evenly, would tell items apart as well.
    """

    level: int
    area: str
    num_used: int
    num_codes: int
    most: int
    perplexity: float


def interval_plot(rows: Sequence[tuple[str, float, tuple[float, float], str]], *, num_ticks: int = 5) -> IntervalPlot:
    """Lay out (name, value, (low, high), note) rows on one axis that holds zero and every interval."""
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
    """Curves of a training log.

    Args:
        log: one mapping a measurement; a key may be absent from some rows.
        title: what the chart shows.
        series: key in the log -> name in the legend.
        x_key: what the x axis counts; the row number where the log lacks it.

    Returns:
        None if no series has a finite value.
    """
    curves = _curves(log, series=series, x_key=x_key)
    if not curves:
        return None
    everything = np.array([point for points in curves.values() for point in points])
    (x_low, y_low), (x_high, y_high) = everything.min(axis=0), everything.max(axis=0)
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
                best=min(y for _, y in points),
            )
            for name, points in curves.items()
        ),
        x_ticks=tuple(Tick(round(100 * (tick - x_low) / x_span, 3), f"{tick:g}") for tick in x_ticks),
        y_ticks=tuple(
            Tick(round(100 - 100 * (tick - y_low) / y_span, 3), tick_label(tick, y_ticks)) for tick in y_ticks
        ),
    )


def usage_strips(usage: NDArray[np.int64]) -> tuple[UsageStrip, ...]:
    """One strip a level from items a code: int64 [L, K]."""
    return tuple(_usage_strip(level, counts) for level, counts in enumerate(usage, start=1))


def nice_ticks(low: float, high: float, *, target: int) -> list[float]:
    """About `target` round numbers that enclose [low, high], evenly spaced."""
    span = high - low
    if span <= 0:
        return [low, low + (abs(low) or 1.0)]
    rough = span / target
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """`value` with as many decimals as the distance of the ticks needs."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value) or 1.0
    decimals = next((digits for digits in range(9) if math.isclose(round(step, digits), step, rel_tol=1e-6)), 9)
    return f"{value:.{decimals}f}"


def _curves(
    log: Sequence[Mapping[str, float]], *, series: Mapping[str, str], x_key: str
) -> dict[str, list[tuple[float, float]]]:
    """Name -> its finite (x, y) points; without series that have none."""
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
        num_codes=len(counts),
        most=int(counts.max(initial=0)),
        perplexity=perplexity,
    )


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if len(points) <= _MAX_POINTS:
        return list(points)
    kept = np.unique(np.linspace(0, len(points) - 1, _MAX_POINTS).round().astype(int))
    return [points[index] for index in kept]
