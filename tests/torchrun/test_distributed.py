"""Two processes find what one finds, but for the order of sums, and each what the other finds, to the bit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.torchrun.as_ranks import TRAININGS


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAININGS)
def test_two_ranks_find_what_one_process_finds(training: str, of_two: Path, tmp_path: Path) -> None:
    """Logs agree to seven digits or so; both ranks end with equal bytes, so they decided alike all the way."""
    TRAININGS[training]().save(tmp_path)
    first, second = of_two / training / "0", of_two / training / "1"
    for file in sorted(tmp_path.iterdir()):
        assert (first / file.name).read_bytes() == (second / file.name).read_bytes(), file.name
        if file.suffix != ".safetensors":
            continue
        alone, ours = load_file(file), load_file(first / file.name)
        for name, value in alone.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-5, msg=f"{file.name}: {name}")
    alone_log, our_log = (json.loads((own / "training_log.json").read_text()) for own in (tmp_path, first))
    for alone_row, our_row in zip(alone_log, our_log, strict=True):
        assert our_row == pytest.approx(alone_row, rel=1e-5)
