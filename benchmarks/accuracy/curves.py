"""Plot training curves of the Instruments benchmark: validation metrics against samples and against minutes.

    python benchmarks/accuracy/curves.py

The input is the results files of `instruments.py`. The output is written to docs/images: instruments-curves.png with
the trainings that were ranked afterwards, and instruments-encodings.png with those of `--training-only`. A sample is
one target of one task in either encoding, so the exact and the item-causal encoding are compared at equal numbers of
samples. Minutes depend on the machine, and are omitted for a resumed training.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent
IMAGES = HERE.parents[1] / "docs" / "images"
METRICS = {"validation_loss": "validation loss, nats per code", "validation_ndcg": "validation NDCG@10, fused"}
_COLOURS = ("#1f6f8b", "#c8553d", "#6a8d3a", "#7d5ba6")
# Samples per epoch of a history task (targets in the training parts) and of an alignment task (items).
TARGETS, ITEMS = 84_890, 6_250


def curves(document: Mapping[str, Any]) -> Iterator[tuple[str, list[float], list[float], dict[str, list[float]]]]:
    """Yield for every run its name, samples (millions) and minutes at the end of each epoch, and the metrics.

    Minutes are empty if they were not measured.
    """
    tasks = document["settings"]["tasks"]
    num_alignments = sum(task.endswith("_id") for task in tasks)
    samples = ((len(tasks) - num_alignments) * TARGETS + num_alignments * ITEMS) / 1e6
    for run in document["runs"]:
        log = run["log"]
        metrics = {name: [row[name] for row in log if name in row] for name in METRICS}
        minutes = [seconds / 60 for seconds in run.get("epoch_seconds", [])]
        yield f"{document['variant']}, seed {run['seed']}", [samples * row["epoch"] for row in log], minutes, metrics


def plot(documents: Sequence[Mapping[str, Any]]) -> Figure:
    """Plot both metrics against samples and minutes, with a line per run and a colour per variant."""
    figure = Figure(figsize=(9.6, 6.4), dpi=110, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    panels = figure.subplots(2, 2, sharex="col", sharey="row", squeeze=False)
    runs = [(number, *curve) for number, document in enumerate(documents) for curve in curves(document)]
    in_legend: set[int] = set()
    for number, _, samples, minutes, metrics in runs:
        colour, variant = _COLOURS[number % len(_COLOURS)], documents[number]["variant"]
        name = "" if number in in_legend else f"{variant}, {_seeds(documents[number])}"
        in_legend.add(number)
        for row, key in zip(panels, METRICS, strict=True):
            for axes, x in zip(row, (samples, minutes), strict=True):
                if metrics[key] and len(x) == len(metrics[key]):
                    axes.plot(
                        x, metrics[key], color=colour, marker="o", markersize=2.5, linewidth=1.4, label=name or None
                    )
    for row, label in zip(panels, METRICS.values(), strict=True):
        row[0].set_ylabel(label)
        for axes, x_label in zip(row, ("samples, millions", "minutes"), strict=True):
            axes.set_xlabel(x_label)
            axes.grid(visible=True, color="#e3e3e3", linewidth=0.7)
            axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].legend(frameon=False, fontsize=8)
    return figure


def _seeds(document: Mapping[str, Any]) -> str:
    seeds = [str(run["seed"]) for run in document["runs"]]
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(seeds)}"


def main() -> None:
    """Write the plots."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--out", type=Path, default=IMAGES, help="folder of the plots")
    arguments = parser.parse_args()
    paths = sorted(arguments.results.glob("instruments-*.json"))
    if not paths:
        parser.error(f"{arguments.results} has no instruments-*.json; run instruments.py first")
    training_only = [path for path in paths if path.stem.endswith("-training")]
    ranked = [path for path in paths if path not in training_only]
    for name, group in (("instruments-curves.png", ranked), ("instruments-encodings.png", training_only)):
        if group:
            documents = [json.loads(path.read_text(encoding="utf-8")) for path in group]
            plot(documents).savefig(arguments.out / name, metadata={"Software": None})
            print(arguments.out / name)


if __name__ == "__main__":
    main()
