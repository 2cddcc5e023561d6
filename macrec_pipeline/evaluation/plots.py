"""Draw plots as PNG bytes, for places that show images but no markup, such as the metadata of an asset.

The input is training logs, code counts or metrics. The output is PNG bytes, identical for identical input. The report
does not use these plots; it draws its own charts, which follow the reader's colour scheme.
Shapes (docs/notation.md): K codes per level, L levels.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = ("#1f6f8b", "#c8553d", "#6a8d3a", "#7d5ba6", "#b8860b", "#4d4d4d")
_INK, _GRID = "#333333", "#e3e3e3"
_DPI = 120


def plot_training_log(log: Sequence[Mapping[str, float]], keys: Sequence[str], *, x_key: str = "epoch") -> bytes:
    """Plot values of a training log as lines.

    Args:
        log: one mapping per measurement; rows without a key are skipped for that key.
        keys: the values to plot, one line each.
        x_key: the key of the x axis; rows without it are placed at their row number.

    Returns:
        PNG bytes.
    """
    figure, axes = _figure(width=6.4, height=3.4)
    for number, key in enumerate(keys):
        rows = [(row.get(x_key, place), row[key]) for place, row in enumerate(log) if key in row]
        if rows:
            x, y = zip(*rows, strict=True)
            colour = _COLOURS[number % len(_COLOURS)]
            marker = "o" if len(rows) < 3 else None
            axes.plot(x, y, color=colour, linewidth=1.6, marker=marker, label=key.replace("_", " "))
    axes.set_xlabel(x_key, fontsize=9, color=_INK)
    if axes.get_lines():
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def plot_code_usage(usage: NDArray[np.int64]) -> bytes:
    """Plot how many items use each code as a heat map, with one row per level and the most used codes first.

    Args:
        usage: int64 [L, K], items per code.

    Returns:
        PNG bytes.
    """
    num_levels, codebook_size = usage.shape
    figure, axes = _figure(width=6.4, height=0.7 + 0.45 * num_levels)
    ordered = -np.sort(-usage, axis=1)
    image = axes.imshow(
        ordered, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0, vmax=max(int(usage.max(initial=0)), 1)
    )
    num_used = (usage > 0).sum(axis=1)
    labels = [f"level {level + 1}: {num_used[level]}/{codebook_size}" for level in range(num_levels)]
    axes.set_yticks(range(num_levels), labels)
    axes.set_xlabel("codes, most used first", fontsize=9, color=_INK)
    axes.grid(visible=False)
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label("items", fontsize=9, color=_INK)
    bar.ax.tick_params(labelsize=8, colors=_INK)
    return _png(figure)


def plot_metrics(systems: Mapping[str, Mapping[str, Any]], *, metrics: Sequence[str] = ("hr_10", "ndcg_10")) -> bytes:
    """Plot a group of bars per metric, with one bar per system and its interval where there is one.

    Args:
        systems: system -> its metrics, as in `Evaluation.systems`.
        metrics: names of the metrics to plot.

    Returns:
        PNG bytes.
    """
    figure, axes = _figure(width=6.4, height=3.4)
    width = 0.8 / max(len(systems), 1)
    for number, (system, values) in enumerate(systems.items()):
        heights = np.array([float(values[metric]) for metric in metrics])
        intervals = np.array([values.get(f"{metric}_ci", [values[metric]] * 2) for metric in metrics], dtype=float)
        # Rounding can put the mean just outside its interval, and matplotlib rejects negative error bars.
        errors = np.maximum(np.abs(intervals - heights[:, None]).T, 0.0)
        axes.bar(
            np.arange(len(metrics)) + (number - (len(systems) - 1) / 2) * width,
            heights,
            width=width * 0.92,
            yerr=errors,
            color=_COLOURS[number % len(_COLOURS)],
            error_kw={"linewidth": 0.9, "ecolor": _INK},
            label=system,
        )
    axes.set_xticks(range(len(metrics)), [_metric_label(metric) for metric in metrics])
    axes.grid(visible=False, axis="x")
    if systems:
        axes.legend(frameon=False, fontsize=8)
    return _png(figure)


def _metric_label(metric: str) -> str:
    name, _, cutoff = metric.partition("_")
    return f"{name.upper()}@{cutoff}" if cutoff else name.upper()


def _figure(*, width: float, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)  # without pyplot, because pyplot keeps its figures in global state
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=8)
    return figure, axes


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
