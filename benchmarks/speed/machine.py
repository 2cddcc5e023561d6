"""Description of the machine, and its measured limits for the roofline: matrix products and copies."""

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
    """The machine's rates, measured in the same command as the benchmarks that are compared with them.

    Attributes:
        name: processor, cores, memory.
        gigaflops: float32 products of 2048 x 2048 matrices, by the fastest library that torch has here.
        gigabytes_per_second: copies of 256 MB, counting bytes read and bytes written.
    """

    name: str
    gigaflops: float
    gigabytes_per_second: float


def measure_machine() -> Machine:
    """Measure the best of a few runs, so that other load on the machine does not lower its limits."""
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
    """Describe processor model, usable cores and memory, without the host name."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB"


def drop_from_cache(path: Path) -> None:
    """Flush a file and drop it from the page cache, so that the next read comes from the disk."""
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
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
