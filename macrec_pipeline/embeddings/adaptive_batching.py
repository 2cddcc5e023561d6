"""How many inputs pass an encoder at once: as many as are asked for or fit into memory, and fewer where they did not.

In: inputs of an encoder. Out: their vectors, in order. What shares a batch with an input changes the last bits of its
vector at most, since sums of other shapes are added up in another order.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from macrec_pipeline.errors import EncoderError

# More gain nothing: a CPU's caches, and a GPU's cores, are full by then.
MOST = {"cpu": 64, "cuda": 1024}
# Of the memory that is free; the rest is for what is read and decoded meanwhile.
_SHARE = 0.25

T = TypeVar("T")


class Batching:
    """The batch size in force; it only ever falls.

    Args:
        asked: inputs at once, or "auto" for as many as fit into memory.
        device: where the encoder runs.
        bytes_an_input: what a pass holds for one input, a rough estimate; only looked at for "auto" on a CPU, since a
            GPU says when its memory is full.

    Attributes:
        size: inputs at once.
    """

    def __init__(self, asked: int | Literal["auto"], *, device: torch.device, bytes_an_input: int) -> None:
        self.size = _fitting(device, bytes_an_input) if asked == "auto" else asked
        self._device = device

    def run(self, encode: Callable[[Sequence[T]], NDArray[np.float32]], inputs: Sequence[T]) -> NDArray[np.float32]:
        """Encode inputs, `size` at once, and half as many from the moment on when memory does not suffice.

        Args:
            encode: inputs -> float32 [B, D].
            inputs: at least one.

        Raises:
            EncoderError: memory does not suffice for one.
        """
        found: list[NDArray[np.float32]] = []
        done = 0
        while done < len(inputs):
            piece = inputs[done : done + self.size]
            vectors = self._tried(encode, piece)
            if vectors is None:
                self._halve(len(piece))
            else:
                found.append(vectors)
                done += len(piece)
        return np.concatenate(found)

    @staticmethod
    def _tried(encode: Callable[[Sequence[T]], NDArray[np.float32]], piece: Sequence[T]) -> NDArray[np.float32] | None:
        """The vectors, None where memory did not suffice: what the error held on to is let go with it."""
        try:
            return encode(piece)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
                raise
            return None

    def _halve(self, tried: int) -> None:
        if tried == 1:
            raise EncoderError(
                f"The memory of {self._device} does not suffice to encode one input. Use a smaller encoder, a shorter "
                "text_encoder.max_tokens or, for texts, text_encoder.precision=bfloat16."
            )
        self.size = tried // 2
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def free_memory() -> int:
    """Bytes that new work may take without swapping, as Linux says; elsewhere half of what the machine has."""
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text(encoding="ascii").splitlines() if meminfo.is_file() else []
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
    return available or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _fitting(device: torch.device, bytes_an_input: int) -> int:
    if device.type == "cuda":
        return MOST["cuda"]
    return max(1, min(MOST["cpu"], int(_SHARE * free_memory()) // max(1, bytes_an_input)))
