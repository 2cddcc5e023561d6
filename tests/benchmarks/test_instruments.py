"""The Instruments command on a small log in the public format, and the training curves of its results."""

import gzip
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.accuracy.curves import curves
from benchmarks.accuracy.rendering import instruments_table
from benchmarks.accuracy.tables import HERE

NUM_ITEMS, NUM_USERS = 30, 40
TINY = (
    "d_model=16",
    "d_ff=16",
    "d_kv=8",
    "num_heads=2",
    "num_epochs=2",
    "batch_size=64",
)


def small_log(folder: Path, *, poisoned: bool = False) -> Path:
    """Write users who walk through the catalogue in cycles; `poisoned` replaces the last item of each history."""
    instruments = folder / "amazon-instruments"
    instruments.mkdir(parents=True)
    histories = {}
    for user in range(NUM_USERS):
        history = [(user + step) % NUM_ITEMS for step in range(4 + user % 5)]
        history[-1] = (history[-1] + 11 * poisoned) % NUM_ITEMS
        histories[str(user)] = history
    index = []
    for rows in np.random.default_rng(0).integers(0, 256, (2, NUM_ITEMS, 4)).tolist():
        tokens = [[f"<{letter}_{code}>" for letter, code in zip("abcd", row, strict=True)] for row in rows]
        index.append({str(item): row for item, row in enumerate(tokens)})
    for name, content in {"inter.json": histories, "index_lemb.json": index[0], "index_vitemb.json": index[1]}.items():
        with gzip.open(instruments / f"Instruments.{name}.gz", "wt", encoding="utf-8") as stream:
            json.dump(content, stream)
    return folder


def run(folder: Path, data: Path, *words: str) -> dict[str, Any]:
    """Run the command, and return its results document."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    folders = ["--data", str(data), "--out", str(folder), "--work", str(folder / "work")]
    command = [sys.executable, str(HERE / "instruments.py"), "shallow", *folders, *settings, "--threads", "1", *words]
    subprocess.run(command, check=True, capture_output=True, cwd=HERE.parents[1])
    (path,) = folder.glob("instruments-*.json")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("instruments")
    return run(folder, small_log(folder / "data"), "--beam-widths", "20")


def test_every_system_is_evaluated(results: dict[str, Any]) -> None:
    """The systems are each route and SASRec with and without seen items, all fusions, and the published metric."""
    (result,) = results["runs"]
    single = {"fused", "text", "image", "sasrec"}
    systems = single | {f"{name}_unseen" for name in single} | {"two_routes", "three_routes", "text_by_code_string"}
    assert set(result["test_beam_20"]) == set(result["validation"]) == systems
    assert set(result["fusions"]["three_routes"]["weights"]) == {"text", "image", "collaborative"}
    # the grid of three routes contains that of two
    assert result["fusions"]["three_routes"]["validation_ndcg"] >= result["fusions"]["two_routes"]["validation_ndcg"]


def test_curves_count_samples_of_all_tasks(results: dict[str, Any]) -> None:
    """An epoch has four history tasks with 84,890 targets and two alignment tasks with 6,250 items."""
    ((name, samples, minutes, metrics),) = curves(results)
    assert name == "shallow, seed 1"
    assert samples == pytest.approx([0.35206, 0.70412])
    assert len(minutes) == len(metrics["validation_loss"]) == len(metrics["validation_ndcg"]) == 2
    assert minutes == sorted(minutes)


def test_with_validation_only_no_test_item_is_read(results: dict[str, Any], tmp_path: Path) -> None:
    """Other test items give the same validation results, and there are no test results."""
    document = run(tmp_path, small_log(tmp_path / "data", poisoned=True), "--validation-only")
    (poisoned,), (unchanged,) = document["runs"], results["runs"]
    assert not [name for name in poisoned if name.startswith("test_")]
    assert poisoned["validation"] == unchanged["validation"]
    assert poisoned["fusions"] == unchanged["fusions"]


def test_with_training_only_there_are_curves_and_no_rankings(results: dict[str, Any], tmp_path: Path) -> None:
    """The training log is the same, and the tables ignore the file."""
    document = run(tmp_path, small_log(tmp_path / "data"), "--training-only")
    (training_only,), (complete,) = document["runs"], results["runs"]
    assert training_only["log"] == complete["log"]
    assert "validation" not in training_only
    assert (tmp_path / "instruments-shallow-training.json").is_file()
    ((_, samples, minutes, _),) = curves(document)
    assert len(samples) == len(minutes) == 2
    assert "shallow" not in instruments_table([document], {"systems": []})
