"""Backward passes on a GPU as recorded CUDA graphs.

The models here are small: a training step is thousands of kernels of a few microseconds each, and starting them one by
one takes the host many times as long as the GPU needs to run them. A CUDA graph starts them all at once. It has fixed
shapes and addresses, so one graph is recorded per shape.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

Losses = Callable[..., dict[str, torch.Tensor]]
"""Maps some tensors to scalars by name. The first scalar is the one to backpropagate."""


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    losses: dict[str, torch.Tensor]


class CudaGraphBackward:
    """Computes losses and backpropagates the first one; replays a CUDA graph for shapes seen before.

    Implements `runtime.training.BackwardPass`.

    Args:
        parameters: their gradients accumulate in tensors that must stay at the same addresses; they start at zero.
        device: a GPU.
    """

    keeps_gradients = True

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # one memory pool for all graphs, since no graph reads what another one left in it
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: set[Hashable] = set()
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses, detached: the first one has been backpropagated."""
        if key not in self._seen:
            self._seen.add(key)  # the ordinary first pass is the warm-up that a recording needs
            with self._on_recording_stream():
                return _losses_and_backward(losses, [value.to(self._device) for value in inputs])
        if key not in self._recordings:
            self._recordings[key] = self._record(losses, inputs)
        recording = self._recordings[key]
        for graph_input, value in zip(recording.inputs, inputs, strict=True):
            graph_input.copy_(value if value.is_cuda else value.pin_memory(), non_blocking=True)
        recording.graph.replay()
        # copies, because the next replay overwrites the graph's outputs
        return {name: value.clone() for name, value in recording.losses.items()}

    def _record(self, losses: Losses, inputs: Sequence[torch.Tensor]) -> _Recording:
        graph_inputs = tuple(value.to(self._device, copy=True) for value in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            graph_losses = _losses_and_backward(losses, graph_inputs)
        return _Recording(graph, graph_inputs, graph_losses)

    @contextmanager
    def _on_recording_stream(self) -> Iterator[None]:
        """Work on the stream of the recordings, so that everything that autograd keeps belongs to it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def _losses_and_backward(losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    values = losses(*inputs)
    next(iter(values.values())).backward()  # type: ignore[no-untyped-call]
    return {name: value.detach() for name, value in values.items()}
