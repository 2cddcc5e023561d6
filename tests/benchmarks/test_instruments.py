"""The Instruments command on a small log in the files' own format, and the curves that are drawn of its results."""

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
    """People who go round the catalogue; poisoned, the last item of each is another one."""
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
    """The results document of the command."""
    settings = [word for setting in TINY for word in ("--set", setting)]
    places = ["--data", str(data), "--out", str(folder), "--work", str(folder / "work")]
    command = [sys.executable, str(HERE / "instruments.py"), "shallow", *places, *settings, "--threads", "1", *words]
    subprocess.run(command, check=True, capture_output=True, cwd=HERE.parents[1])
    (path,) = folder.glob("instruments-*.json")
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("instruments")
    return run(folder, small_log(folder / "data"), "--beam-widths", "20")


def test_every_system_is_measured(measured: dict[str, Any]) -> None:
    """Both routes, both ways to fuse them, SASRec, with and without seen items; all three; the published count."""
    (result,) = measured["runs"]
    each = {"fused", "text", "image", "sasrec"}
    systems = each | {f"{name}_unseen" for name in each} | {"two_routes", "three_routes", "text_by_code_string"}
    assert set(result["test_beam_20"]) == set(result["validation"]) == systems
    assert set(result["fusions"]["three_routes"]["weights"]) == {"text", "image", "collaborative"}
    # the grid of three routes holds that of two
    assert result["fusions"]["three_routes"]["validation_ndcg"] >= result["fusions"]["two_routes"]["validation_ndcg"]


def test_curves_count_samples_of_all_tasks(measured: dict[str, Any]) -> None:
    """Four history tasks of 84,890 targets and two ID -> ID tasks of 6,250 items an epoch; a time for each."""
    ((name, samples, minutes, figures),) = curves(measured)
    assert name == "shallow, seed 1"
    assert samples == pytest.approx([0.35206, 0.70412])
    assert len(minutes) == len(figures["validation_loss"]) == len(figures["validation_ndcg"]) == 2
    assert minutes == sorted(minutes)


def test_with_validation_only_no_test_item_is_read(measured: dict[str, Any], tmp_path: Path) -> None:
    """Other test items, the same figures; and no test figure."""
    document = run(tmp_path, small_log(tmp_path / "data", poisoned=True), "--validation-only")
    (poisoned,), (plain,) = document["runs"], measured["runs"]
    assert not [name for name in poisoned if name.startswith("test_")]
    assert poisoned["validation"] == plain["validation"]
    assert poisoned["fusions"] == plain["fusions"]


def test_with_training_only_there_are_curves_and_no_rankings(measured: dict[str, Any], tmp_path: Path) -> None:
    """The same log, and a file that the tables pass over."""
    document = run(tmp_path, small_log(tmp_path / "data"), "--training-only")
    (trained,), (whole,) = document["runs"], measured["runs"]
    assert trained["log"] == whole["log"]
    assert "validation" not in trained
    assert (tmp_path / "instruments-shallow-training.json").is_file()
    ((_, samples, minutes, _),) = curves(document)
    assert len(samples) == len(minutes) == 2
    assert "shallow" not in instruments_table([document], {"systems": []})
