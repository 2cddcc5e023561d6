"""The batch size: as set or as memory allows, and lowered when memory runs out."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from macrec_pipeline.embeddings import adaptive_batching
from macrec_pipeline.embeddings.adaptive_batching import MAX_BATCH_SIZE, AdaptiveBatching, free_memory
from macrec_pipeline.errors import EncoderError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Encoder:
    """Returns each input as its vector, and raises `error` for a batch of more than `capacity` inputs."""

    def __init__(self, capacity: int, error: Exception) -> None:
        self.capacity, self.error = capacity, error
        self.sizes: list[int] = []

    def __call__(self, inputs: Sequence[int]) -> np.ndarray:
        self.sizes.append(len(inputs))
        if len(inputs) > self.capacity:
            raise self.error
        return np.array(inputs, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_halves_the_batch_size_for_good(error: Exception) -> None:
    """With batches of eight and memory for three inputs, batches of 8 and 4 fail, and all further batches have two."""
    batching, encoder = AdaptiveBatching(8, device=CPU, bytes_per_input=1), Encoder(3, error)
    assert batching.run(encoder, range(10)).ravel().tolist() == list(range(10))
    assert encoder.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert batching.size == 2
    batching.run(encoder, range(3))
    assert encoder.sizes[-2:] == [2, 1]


def test_errors_that_a_smaller_batch_cannot_avoid_are_raised() -> None:
    """If one input does not fit, the message says what to change; an error that is not about memory is passed on."""
    with pytest.raises(EncoderError, match="too small to encode even one input"):
        AdaptiveBatching(4, device=CPU, bytes_per_input=1).run(Encoder(0, torch.OutOfMemoryError("full")), range(4))
    with pytest.raises(RuntimeError, match="a fault"):
        AdaptiveBatching(4, device=CPU, bytes_per_input=1).run(Encoder(0, RuntimeError("a fault")), range(4))


def test_auto_uses_free_memory_on_a_cpu_and_the_maximum_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 4,000 free bytes holds ten inputs of 100 bytes; the size is at least 1 and at most the maximum."""
    assert 2**20 < free_memory() < 2**50
    monkeypatch.setattr(adaptive_batching, "free_memory", lambda: 4000)
    sizes = [AdaptiveBatching("auto", device=CPU, bytes_per_input=size).size for size in (100, 1, 5000)]
    assert sizes == [10, MAX_BATCH_SIZE["cpu"], 1]
    assert AdaptiveBatching("auto", device=CUDA, bytes_per_input=5000).size == MAX_BATCH_SIZE["cuda"]
