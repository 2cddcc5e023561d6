"""Copy the results into docs/performance.md as a table, and plot how the cost of each stage grows.

    python -m benchmarks.speed.plots

The input is results/latest.json and results/growth.json. The output is the part of the document between
`<!-- table:speed -->` and `<!-- /table -->`, and time and peak memory by size in docs/images/speed-<stage>.png.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, NullFormatter

from benchmarks.speed.measuring import ROOT
from benchmarks.speed.run import RESULTS, table

DOCUMENT, IMAGES = ROOT / "docs" / "performance.md", ROOT / "docs" / "images"
_TABLE = re.compile(r"<!-- table:speed -->\n.*?<!-- /table -->", re.DOTALL)
_COLOURS = ("#1f6f8b", "#c8553d", "#6a8d3a", "#7d5ba6")
Rows = Sequence[dict[str, Any]]


def stages(rows: Rows) -> Iterator[tuple[str, dict[str, Rows]]]:
    """Yield the name and the curves of each plot; a curve is the rows of one kind, if it has several sizes."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        kinds.setdefault(row["name"].replace(f"{row['size']:,}", "", 1).replace("  ", " "), []).append(row)
    plots: dict[str, dict[str, Rows]] = {}
    for kind, rows_of_kind in kinds.items():
        if len(rows_of_kind) > 1:
            label = kind.partition(",")[2].split(",")[0].split(" x ")[0].strip() if kind.count(",") > 1 else ""
            label = "" if label == rows_of_kind[0]["size_of"] else label
            plots.setdefault(kind.split(",")[0].split(" from ")[0], {})[label] = rows_of_kind
    yield from ((name.lower().replace(" ", "-"), curves) for name, curves in plots.items())


def plot(curves: dict[str, Rows]) -> Figure:
    """Plot seconds and peak memory by size, of the pipeline and, if it was run, of the baseline."""
    figure = Figure(figsize=(9.0, 3.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    time, memory = figure.subplots(1, 2)
    for number, (label, rows) in enumerate(curves.items()):
        colour, sizes = _COLOURS[number % len(_COLOURS)], [row["size"] for row in rows]
        time.plot(
            sizes, [_seconds(row, "ours") for row in rows], color=colour, marker="o", label=f"{label} pipeline".strip()
        )
        baseline = [(row["size"], _seconds(row, "baseline")) for row in rows if row["baseline"] is not None]
        if baseline:
            time.plot(
                *zip(*baseline, strict=True), color=colour, marker="s", ls="--", label=f"{label} baseline".strip()
            )
        memory.plot(
            sizes, [row["peak_rss_mb"] for row in rows], color=colour, marker="o", label=f"{label} pipeline".strip()
        )
    size_of = next(iter(curves.values()))[0]["size_of"]
    for axes, label in ((time, "seconds"), (memory, "peak memory, MB")):
        axes.set(xscale="log", xlabel=size_of, ylabel=label)
        _round_ticks(axes.xaxis)
        axes.grid(visible=True, color="#e3e3e3", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    time.set_yscale("log")
    _round_ticks(time.yaxis)
    memory.set_ylim(0, 1.1 * memory.get_ylim()[1])
    time.legend(frameon=False, fontsize=8)
    return figure


def _round_ticks(axis: Axis) -> None:
    """Label 1, 2 and 5 in each power of ten; fewer labels over many powers, more within a single one."""
    low, high = axis.get_view_interval()
    steps = (1,) if high > 500 * low else (1, 2, 5) if high > 5 * low else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if low < 1 else EngFormatter(sep="")(value)))
    axis.set_minor_formatter(NullFormatter())


def _seconds(row: dict[str, Any], side: str) -> float:
    """Return the seconds of one run; a rate refers to a float32 matrix with 768 columns."""
    value: float = row[side]
    return value if row["unit"] == "s" else row["size"] * 768 * 4 / 1e6 / value


def with_table(text: str, rows: Rows) -> str:
    """Return the document with the table of these rows, and a line about the machine, commit and load."""
    origins = sorted({f"{row['machine']}, commit {row['commit']}" for row in rows})
    loads = [row["load"] for row in rows if "load" in row]
    footer = f"Measured on: {'; '.join(origins)}. Load average during the rows: {min(loads)} to {max(loads)}."
    marked = f"<!-- table:speed -->\n{table(rows)}\n\n{footer}\n<!-- /table -->"
    return _TABLE.sub(lambda _: marked, text)


def main() -> None:
    """Update the table, and plot every stage that was measured at more than one size."""
    latest, growth = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for path in (RESULTS / "latest.json", RESULTS / "growth.json")
    )
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), latest), encoding="utf-8")
    rows = [*latest, *growth]
    for name, curves in stages(rows):
        out = IMAGES / f"speed-{name}.png"
        plot(curves).savefig(out, metadata={"Software": None})
        print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
