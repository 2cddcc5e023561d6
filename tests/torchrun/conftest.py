"""The models that two ranks have trained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture(scope="session")
def two_rank_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `<training>/<rank>` holds what each rank saved, for the trainings of `two_rank_trainings`."""
    folder = tmp_path_factory.mktemp("ranks")
    subprocess.run(
        [*TORCHRUN, "-m", "tests.torchrun.two_rank_trainings", str(folder)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    return folder
