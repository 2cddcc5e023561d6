"""Chooses how many inputs pass through an encoder at once, and lowers that number when memory runs out.

The other inputs of a batch can change only the last bits of a vector, because sums of another shape are added up in
another order. Shapes (docs/notation.md): B batch rows, D embedding width.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.errors import EncoderError

# By device type. Larger batches gain nothing: the caches of a CPU, or the cores of a GPU, are already full.
MAX_BATCH_SIZE = {"cpu": 64, "cuda": 1024}
# The part of the free memory that a batch may use. The rest is for inputs that are read and decoded meanwhile.
_MEMORY_SHARE = 0.25

T = TypeVar("T")


class AdaptiveBatching:
    """Encodes inputs in batches whose size falls, and never rises again, when memory runs out.

    Args:
        batch_size: number of inputs per batch, or "auto" for as many as fit into memory.
        device: device of the encoder.
        bytes_per_input: rough estimate of the memory that one input needs on its way through the encoder. It is used
            only for "auto" on a CPU; a GPU reports when its memory is full.

    Attributes:
        size: the current batch size.
    """

    def __init__(self, batch_size: int | Literal["auto"], *, device: torch.device, bytes_per_input: int) -> None:
        self.size = _size_that_fits(device, bytes_per_input) if batch_size == "auto" else batch_size
        self._device = device

    def run(self, encode: Callable[[Sequence[T]], NDArray[np.float32]], inputs: Sequence[T]) -> NDArray[np.float32]:
        """Encode inputs in batches of `size`, and halve `size` whenever a batch does not fit into memory.

        Args:
            encode: B inputs -> float32 [B, D].
            inputs: at least one input.

        Returns:
            One vector per input, in the same order.

        Raises:
            EncoderError: a single input does not fit into memory.
        """
        blocks: list[NDArray[np.float32]] = []
        num_encoded = 0
        while num_encoded < len(inputs):
            batch = inputs[num_encoded : num_encoded + self.size]
            vectors = self._encode_unless_out_of_memory(encode, batch)
            if vectors is None:
                self._lower_size(len(batch))
            else:
                blocks.append(vectors)
                num_encoded += len(batch)
        return np.concatenate(blocks)

    @staticmethod
    def _encode_unless_out_of_memory(
        encode: Callable[[Sequence[T]], NDArray[np.float32]], batch: Sequence[T]
    ) -> NDArray[np.float32] | None:
        """Return the vectors, or None if memory ran out.

        When this function returns, the exception is gone, and with it the tensors that its traceback kept alive.
        """
        try:
            return encode(batch)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            return None

    def _lower_size(self, failed_size: int) -> None:
        if failed_size == 1:
            raise EncoderError(
                f"The memory of {self._device} is too small to encode even one input. Use a smaller encoder, lower "
                "text_encoder.max_tokens or, for texts, set text_encoder.precision=bfloat16."
            )
        self.size = failed_size // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def free_memory() -> int:
    """Return the bytes that can be allocated without swapping: Linux's own estimate, else half of all memory."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return available or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _size_that_fits(device: torch.device, bytes_per_input: int) -> int:
    if device.type == "cuda":
        return MAX_BATCH_SIZE["cuda"]
    return max(1, min(MAX_BATCH_SIZE["cpu"], int(_MEMORY_SHARE * free_memory()) // max(1, bytes_per_input)))
