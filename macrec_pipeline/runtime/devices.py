"""Where tensors live, and how to make the CPU's numbers repeatable."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from macrec_pipeline.errors import ConfigError

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
    torch.set_num_threads(config.num_threads)
    torch.use_deterministic_algorithms(not use_gpu)
    # the rest of that switch writes NaN into every fresh buffer, which costs time and changes no result
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda" if use_gpu else "cpu")
