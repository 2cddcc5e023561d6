"""How many inputs pass an encoder at once: what is asked for, what memory holds, and less where it does not."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from macrec_pipeline.embeddings import adaptive_batching as module
from macrec_pipeline.embeddings.adaptive_batching import MOST, Batching, free_memory
from macrec_pipeline.errors import EncoderError

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Encoder:
    """Gives an input back as its vector, and has memory for so many inputs at once."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self.sizes: list[int] = []

    def __call__(self, inputs: Sequence[int]) -> np.ndarray:
        self.sizes.append(len(inputs))
        if len(inputs) > self.room:
            raise self.error
        return np.array(inputs, dtype=np.float32)[:, None]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_full_memory_halves_the_batch_from_then_on(error: Exception) -> None:
    """Ten inputs, eight at once asked for, room for three: 8 and 4 fail, from then on it is twos."""
    batching, encoder = Batching(8, device=CPU, bytes_an_input=1), Encoder(3, error)
    assert batching.run(encoder, range(10)).ravel().tolist() == list(range(10))
    assert encoder.sizes == [8, 4, 2, 2, 2, 2, 2]
    assert batching.size == 2
    batching.run(encoder, range(3))
    assert encoder.sizes[-2:] == [2, 1]


def test_no_room_for_one_and_other_errors_are_not_hidden() -> None:
    """One input that does not fit says what to change; an error that is none of memory comes through."""
    with pytest.raises(EncoderError, match="does not suffice to encode one input"):
        Batching(4, device=CPU, bytes_an_input=1).run(Encoder(0, torch.OutOfMemoryError("full")), range(4))
    with pytest.raises(RuntimeError, match="a fault"):
        Batching(4, device=CPU, bytes_an_input=1).run(Encoder(0, RuntimeError("a fault")), range(4))


def test_auto_goes_by_free_memory_on_a_cpu_and_by_trial_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of 4,000 free bytes holds ten inputs of 100; never more than is of use, never none."""
    assert 2**20 < free_memory() < 2**50
    monkeypatch.setattr(module, "free_memory", lambda: 4000)
    sizes = [Batching("auto", device=CPU, bytes_an_input=size).size for size in (100, 1, 5000)]
    assert sizes == [10, MOST["cpu"], 1]
    assert Batching("auto", device=CUDA, bytes_an_input=5000).size == MOST["cuda"]
