"""Every entry point makes OpenMP threads spin only briefly, before torch is loaded."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "entry_point",
    ["import macrec_pipeline.definitions", "from macrec_pipeline.cli.application import main; main(['--version'])"],
)
@pytest.mark.parametrize("configured", [None, "77"])
def test_the_variable_is_set_before_torch_is_loaded(entry_point: str, configured: str | None) -> None:
    """Dagster's processes and the command line set it, and keep a value that the environment already has."""
    code = (
        "import atexit, os, sys\n"
        "atexit.register(lambda: print(os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules))\n" + entry_point
    )
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if configured is not None:
        environment["GOMP_SPINCOUNT"] = configured
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert process.stdout.splitlines()[-1] == f"{configured or 5000} False"
