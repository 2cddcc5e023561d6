"""Two ranks train what a single process trains, up to the order of sums, and both end with the same bytes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun.two_rank_trainings import TRAININGS


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_two_ranks_train_what_one_process_trains(training: str, two_rank_folder: Path, tmp_path: Path) -> None:
    """Logs agree to about seven digits. Equal bytes on both ranks mean that they took the same decisions throughout."""
    TRAININGS[training]().save(tmp_path)
    first, second = two_rank_folder / training / "0", two_rank_folder / training / "1"
    for file in sorted(tmp_path.iterdir()):
        assert (first / file.name).read_bytes() == (second / file.name).read_bytes(), file.name
        if file.suffix != ".safetensors":
            continue
        expected, weights = load_file(file), load_file(first / file.name)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5, msg=f"{file.name}: {name}")
    expected_log, log = (json.loads((folder / "training_log.json").read_text()) for folder in (tmp_path, first))
    for expected_row, row in zip(expected_log, log, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-5)
