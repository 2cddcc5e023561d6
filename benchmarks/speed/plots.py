"""Puts the results into docs/performance.md: the table, and how the cost of each stage grows, as pictures.

    python -m benchmarks.speed.plots

In: results/latest.json and results/growth.json. Out: the part of the document between `<!-- table:speed -->` and
`<!-- /table -->`, and docs/images/speed-<stage>.png, time and peak memory against size.
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
    """A picture's name and its curves: rows of one kind, by size; a single size is no curve."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: row["size"]):
        kinds.setdefault(row["name"].replace(f"{row['size']:,}", "", 1).replace("  ", " "), []).append(row)
    pictures: dict[str, dict[str, Rows]] = {}
    for kind, own in kinds.items():
        if len(own) > 1:
            label = kind.partition(",")[2].split(",")[0].split(" x ")[0].strip() if kind.count(",") > 1 else ""
            label = "" if label == own[0]["size_of"] else label
            pictures.setdefault(kind.split(",")[0].split(" from ")[0], {})[label] = own
    yield from ((name.lower().replace(" ", "-"), curves) for name, curves in pictures.items())


def picture(curves: dict[str, Rows]) -> Figure:
    """Seconds and peak memory against size, ours and, where it was run, the baseline."""
    figure = Figure(figsize=(9.0, 3.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    time, memory = figure.subplots(1, 2)
    for number, (label, rows) in enumerate(curves.items()):
        colour, sizes = _COLOURS[number % len(_COLOURS)], [row["size"] for row in rows]
        time.plot(
            sizes, [_seconds(row, "ours") for row in rows], color=colour, marker="o", label=f"{label} ours".strip()
        )
        plain = [(row["size"], _seconds(row, "baseline")) for row in rows if row["baseline"] is not None]
        if plain:
            time.plot(*zip(*plain, strict=True), color=colour, marker="s", ls="--", label=f"{label} baseline".strip())
        memory.plot(
            sizes, [row["peak_rss_mb"] for row in rows], color=colour, marker="o", label=f"{label} ours".strip()
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
    """1, 2 and 5 of each power of ten, written out; fewer where powers are many, more within one."""
    low, high = axis.get_view_interval()
    steps = (1,) if high > 500 * low else (1, 2, 5) if high > 5 * low else tuple(range(1, 10))
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if low < 1 else EngFormatter(sep="")(value)))
    axis.set_minor_formatter(NullFormatter())


def _seconds(row: dict[str, Any], side: str) -> float:
    """Of one run; a rate is of the float32 matrix of 768 columns."""
    figure: float = row[side]
    return figure if row["unit"] == "s" else row["size"] * 768 * 4 / 1e6 / figure


def with_table(text: str, rows: Rows) -> str:
    """The document with the table of these rows, and below it on what and when they were measured."""
    origins = sorted({f"{row['machine']}, commit {row['commit']}" for row in rows})
    loads = [row["load"] for row in rows if "load" in row]
    below = f"Measured on: {'; '.join(origins)}. Load average during the rows: {min(loads)} to {max(loads)}."
    marked = f"<!-- table:speed -->\n{table(rows)}\n\n{below}\n<!-- /table -->"
    return _TABLE.sub(lambda _: marked, text)


def main() -> None:
    """Write the table, and draw every stage that was measured at more than one size."""
    latest, growth = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        for path in (RESULTS / "latest.json", RESULTS / "growth.json")
    )
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), latest), encoding="utf-8")
    rows = [*latest, *growth]
    for name, curves in stages(rows):
        out = IMAGES / f"speed-{name}.png"
        picture(curves).savefig(out, metadata={"Software": None})
        print(out.relative_to(ROOT))


if __name__ == "__main__":
    main()
