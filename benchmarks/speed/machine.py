"""What the machine is and what it can do: matrix products, copies, the disk. The roof of the roofline."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_REPEATS = 5


@dataclass(frozen=True)
class Machine:
    """Rates measured now, by the run that is compared with them.

    Attributes:
        name: processor, cores, memory.
        gigaflops: fp32 matrix products by the faster of torch's libraries, 2048 x 2048.
        gigabytes_a_second: copies of 256 MB, bytes read and bytes written counted.
    """

    name: str
    gigaflops: float
    gigabytes_a_second: float


def measure_machine() -> Machine:
    """The best of a few runs each: what others take of the machine meanwhile is not the machine's limit."""
    import torch

    from macrec_pipeline.runtime.fast_layers import linear

    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    source = np.full(32 * 2**20, 2.0)
    target = np.ones_like(source)
    return Machine(
        machine_name(),
        2 * 2048**3 / _best(lambda: linear(left, right)) / 1e9,
        2 * source.nbytes / _best(lambda: np.copyto(target, source)) / 1e9,
    )


def machine_name() -> str:
    """Processor model, cores this process may use, memory; no name of the machine itself."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def forget(path: Path) -> None:
    """Write a file's pages back and drop them from memory, so that the next read comes from the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def _best(run: Callable[[], object]) -> float:
    run()
    seconds = []
    for _ in range(_REPEATS):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
