"""Training curves of the Instruments benchmark: validation figures against samples and against minutes.

    python benchmarks/accuracy/curves.py

In: the results files of `instruments.py`. Out: in docs/images, instruments-curves.png of the trainings that were ranked
afterwards, and instruments-encodings.png of those with `--training-only`. A sample is one target of one task, whatever
the encoding, so that the exact and the item-causal objective are seen at equal samples. Minutes are those of the
machine that trained, and are left out for a training that went on after a cut.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the folder above `benchmarks` takes the place of this file's own
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
PICTURES = HERE.parents[1] / "docs" / "images"
FIGURES = {"validation_loss": "validation loss, nats a code", "validation_ndcg": "validation NDCG@10, fused"}
_COLOURS = ("#1f6f8b", "#c8553d", "#6a8d3a", "#7d5ba6")
# Targets of one pass over the training parts, and items: what a history task and an ID -> ID task learn in an epoch.
TARGETS, ITEMS = 84_890, 6_250


def curves(document: Mapping[str, Any]) -> Iterator[tuple[str, list[float], list[float], dict[str, list[float]]]]:
    """Of every run: its name, samples (millions) and minutes at the end of each epoch, and the figures.

    Minutes are empty where they were not measured.
    """
    tasks = document["settings"]["tasks"]
    alignments = sum(task.endswith("_id") for task in tasks)
    samples = ((len(tasks) - alignments) * TARGETS + alignments * ITEMS) / 1e6
    for run in document["runs"]:
        log = run["log"]
        figures = {name: [row[name] for row in log if name in row] for name in FIGURES}
        minutes = [seconds / 60 for seconds in run.get("epoch_seconds", [])]
        yield f"{document['variant']}, seed {run['seed']}", [samples * row["epoch"] for row in log], minutes, figures


def picture(documents: Sequence[Mapping[str, Any]]) -> Figure:
    """Two figures against samples and against minutes, a line a run and a colour a variant."""
    figure = Figure(figsize=(9.6, 6.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex="col", sharey="row", squeeze=False)
    runs = [(number, *curve) for number, document in enumerate(documents) for curve in curves(document)]
    named: set[int] = set()
    for number, _, samples, minutes, figures in runs:
        colour, variant = _COLOURS[number % len(_COLOURS)], documents[number]["variant"]
        name = "" if number in named else f"{variant}, {_seeds(documents[number])}"
        named.add(number)
        for row, key in zip(panels, FIGURES, strict=True):
            for axes, x in zip(row, (samples, minutes), strict=True):
                if figures[key] and len(x) == len(figures[key]):
                    axes.plot(
                        x, figures[key], color=colour, marker="o", markersize=2.5, linewidth=1.4, label=name or None
                    )
    for row, label in zip(panels, FIGURES.values(), strict=True):
        row[0].set_ylabel(label)
        for axes, below in zip(row, ("samples, millions", "minutes"), strict=True):
            axes.set_xlabel(below)
            axes.grid(visible=True, color="#e3e3e3", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def _seeds(document: Mapping[str, Any]) -> str:
    seeds = [str(run["seed"]) for run in document["runs"]]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder")
    asked = parser.parse_args()
    paths = sorted(asked.results.glob("instruments-*.json"))
    if not paths:
        parser.error(f"{asked.results} holds no instruments-*.json; run instruments.py first")
    compared = [path for path in paths if path.stem.endswith("-training")]
    ranked = [path for path in paths if path not in compared]
    for name, group in (("instruments-curves.png", ranked), ("instruments-encodings.png", compared)):
        if group:
            documents = [json.loads(path.read_text(encoding="utf-8")) for path in group]
            picture(documents).savefig(asked.out / name, metadata={"Software": None})
            print(asked.out / name)


if __name__ == "__main__":
    main()
