"""Threads that give up the processor soon: whoever runs a stage says so before torch is loaded."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "entry",
    ["import macrec_pipeline.definitions", "from macrec_pipeline.cli.application import main; main(['--version'])"],
)
@pytest.mark.parametrize("said", [None, "77"])
def test_it_is_said_before_torch_is_loaded_and_what_the_owner_says_stays(entry: str, said: str | None) -> None:
    """As Dagster's processes and the command line begin."""
    code = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules))\n" + entry
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if said is not None:
        environment["GOMP_SPINCOUNT"] = said
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == f"{said or 5000} False"
