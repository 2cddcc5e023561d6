"""What a process does with memory that it frees."""

import ctypes
import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource, sys, torch
from macrec_pipeline.runtime.devices import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for size in range(10, 40):
        torch.ones(size * 2**18) + 1  # two blocks of that many MiB, freed at once
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults(), faults()
print(faults() + faults())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_large_blocks_are_asked_of_the_system_once() -> None:
    """Pages of a block that was freed are there for the next one; without our doing they are asked for again."""
    for _ in range(5):  # on a busy machine the system was seen to count no fault at all, whatever was done
        kept, given_back = (
            int(subprocess.run([sys.executable, "-c", _COUNT_FAULTS, how], capture_output=True, check=True).stdout)
            for how in ("kept", "given back")
        )
        if given_back:
            break
    assert kept < given_back / 20
