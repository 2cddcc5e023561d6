"""Where tensors live, and how to make the CPU's numbers repeatable."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import torch

from macrec_pipeline.errors import ConfigError

# glibc's <malloc.h>.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_GROWTH = 64 * 2**20  # bytes

if TYPE_CHECKING:  # numeric code must run where pydantic is not installed
    from macrec_pipeline.config import RuntimeConfig


def prepare_device(config: RuntimeConfig) -> torch.device:
    """Choose the device and fix what would make the same seed give other bytes.

    The number of threads is set, since it orders the sums, and nondeterministic kernels are refused on the CPU.

    Raises:
        ConfigError: CUDA is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("runtime.device is 'cuda', but no CUDA device is visible. Use 'auto' or 'cpu'.")
    use_gpu = config.device != "cpu" and torch.cuda.is_available()
    keep_freed_memory()
    torch.set_num_threads(config.num_threads)
    torch.use_deterministic_algorithms(not use_gpu)
    # the rest of that switch writes NaN into every fresh buffer, which costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda" if use_gpu else "cpu")


def keep_freed_memory() -> None:
    """Let this process keep large blocks that it frees, for the next ones; elsewhere than with glibc nothing happens.

    As a rule glibc asks the system for every large block and gives it back at once, and the system clears each page
    again before it is used: as much work as a training step's arithmetic (docs/performance.md). The process does not
    shrink from its peak until it ends.
    """
    adjust = getattr(ctypes.CDLL(None), "mallopt", None)
    if adjust is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, _GROWTH)):
            adjust(option, value)
