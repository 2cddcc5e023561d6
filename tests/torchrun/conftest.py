"""What two ranks have trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="session")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each rank wrote of every training of `as_ranks.py`, in `<training>/<rank>`."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [*TORCHRUN, "-m", "tests.torchrun.as_ranks", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    return folder
