"""Chooses the device, and makes computation on the CPU repeatable and fast."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from macrec_pipeline.errors import ConfigError

if TYPE_CHECKING:  # numeric code must run where pydantic is not installed
    from macrec_pipeline.config import RuntimeConfig

# Options of `mallopt`, from glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_HEAP_GROWTH = 64 * 2**20  # bytes


def prepare_device(config: RuntimeConfig) -> torch.device:
    """Choose the device, and fix whatever would make the same seed give different bytes on the CPU.

    The number of threads is set because it orders the sums, and on the CPU nondeterministic kernels are rejected.

    Raises:
        ConfigError: `runtime.device` is "cuda" and there is no CUDA device.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "`runtime.device` is 'cuda', but no CUDA device is visible. Set it to 'auto' or 'cpu', or make a GPU "
            "visible to this process."
        )
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    torch.use_deterministic_algorithms(not use_gpu)
    # deterministic mode would also fill every new buffer with NaN, which costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda" if use_gpu else "cpu")


def keep_freed_memory() -> None:
    """Let this process keep large freed blocks of memory for reuse. Has an effect with glibc only.

    By default glibc requests every large block from the system and returns it at once, and the system clears each page
    before it is used again: as much work as the arithmetic of a training step (docs/performance.md). The price is that
    the process does not shrink from its peak before it ends.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _HEAP_GROWTH)):
            mallopt(option, value)
