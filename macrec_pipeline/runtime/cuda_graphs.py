"""Working a loss out and propagating it: as usual, or on a GPU by a recording that is played again.

The models here are small: a step is thousands of kernels of a few microseconds, and to start them one by one takes the
host many times as long as the GPU needs. A CUDA graph starts them all at once. Its shapes and addresses are fixed, so
there is one for each shape that is met.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn

Losses = Callable[..., dict[str, torch.Tensor]]
"""Of some tensors: scalars by name, of which the first is to be propagated."""


class Propagation(Protocol):
    """Works losses out, and propagates the first of them or leaves that to the caller."""

    keeps_gradients: bool
    """Whether gradients are accumulated in tensors that must stay where they are."""

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The losses of the inputs; the first still has to be propagated if it requires a gradient.

        Args:
            key: equal for inputs of equal shapes with which `losses` does the same.
            losses: must not draw on the host, nor ask the device for a value; if recorded, nor other ranks.
            inputs: on the host or on the device.
        """


def propagation(parameters: Iterable[nn.Parameter], device: torch.device, *, may_record: bool = True) -> Propagation:
    """The one that suits the device, for a training of these parameters; see `Propagation` for what may be recorded."""
    return Recorder(parameters, device) if may_record and device.type == "cuda" else AsUsual(device)


class AsUsual:
    """Leaves propagation to the caller; on any device."""

    keeps_gradients = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses that are still to be propagated."""
        return losses(*(value.to(self._device) for value in inputs))


@dataclass(frozen=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    inputs: tuple[torch.Tensor, ...]
    losses: dict[str, torch.Tensor]


class Recorder:
    """Propagates by CUDA graphs: a shape is worked out as usual when first met, and recorded the second time.

    Args:
        parameters: whose gradients are accumulated; they get tensors of zeros that have to stay in their place.
        device: a GPU.
    """

    keeps_gradients = True

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device) -> None:
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # one pool for all: what a graph leaves in it is of no use to the next
        self._pool = torch.cuda.graph_pool_handle()
        self._met: set[Hashable] = set()
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses that have been propagated."""
        if key not in self._met:
            self._met.add(key)  # the warm-up that a recording needs
            with self._beside():
                return _propagated(losses, [value.to(self._device) for value in inputs])
        if key not in self._recordings:
            self._recordings[key] = self._record(losses, inputs)
        recording = self._recordings[key]
        for own, value in zip(recording.inputs, inputs, strict=True):
            own.copy_(value if value.is_cuda else value.pin_memory(), non_blocking=True)
        recording.graph.replay()
        return {name: value.clone() for name, value in recording.losses.items()}  # the next replay writes over them

    def _record(self, losses: Losses, inputs: Sequence[torch.Tensor]) -> _Recording:
        own = tuple(value.to(self._device, copy=True) for value in inputs)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            found = _propagated(losses, own)
        return _Recording(graph, own, found)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Inside, on the stream that recordings are made on, so that all that autograd keeps belongs to it."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)


def _propagated(losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    found = losses(*inputs)
    next(iter(found.values())).backward()  # type: ignore[no-untyped-call]
    return {name: value.detach() for name, value in found.items()}
