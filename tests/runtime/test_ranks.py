"""Two processes find what one finds: the same losses and weights but for the order of sums, and each other's to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runtime.as_ranks import TRAININGS

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote of every training, in `<training>/<rank>`."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [*TORCHRUN, "-m", "tests.runtime.as_ranks", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    return folder


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
