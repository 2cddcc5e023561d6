"""The processes that train one model together, each on its share of every step; a process alone is all of them.

In: what one rank has worked out. Out: the same on every rank, summed up or as rank 0 has it. Weights are never sent in
a step: equal weights and equal sums of gradients stay equal. Alone, nothing is computed and nothing is copied.

Every rank has to make the same calls in the same order. When a rank dies the others' calls fail, and `torchrun` starts
all of them again from the last checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """This process's number among them, from 0; rank 0 alone reports and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Inside, a process that `torchrun` started is a rank, with a GPU of its own if there is one a rank.

    Ranks that have to share a GPU talk by way of the host, since NCCL refuses them.

    Args:
        folder: where the ranks of a single machine find each other. `torch`'s usual way, a server without a password,
            listens to every network; only several machines need it.
    """
    told = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    on_host = told["LOCAL_WORLD_SIZE"] > torch.cuda.device_count()
    if not on_host:
        torch.cuda.set_device(told["LOCAL_RANK"])
    attempt = folder.absolute() / f"ranks-{os.environ['TORCHELASTIC_RESTART_COUNT']}"  # none meets the dead
    one_machine = told["LOCAL_WORLD_SIZE"] == told["WORLD_SIZE"]
    dist.init_process_group(
        "gloo" if on_host else "cpu:gloo,cuda:nccl",
        init_method=attempt.as_uri() if one_machine else "env://",
        rank=told["RANK"],
        world_size=told["WORLD_SIZE"],
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def stream(name: str) -> str:
    """The name of a stream of random numbers that each rank has its own of; rank 0 has that of a process alone."""
    return f"{name}/{rank()}" if rank() else name


def total(value: float) -> float:
    """The sum of a number over the ranks, in float64."""
    if not dist.is_initialized():
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.item()


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Give every rank the sum of all ranks' gradients, in place, by one transfer.

    A gradient that is there on some ranks alone counts as 0 on the others; one that is nowhere stays away, so that the
    optimizer leaves that parameter as it is.
    """
    if not dist.is_initialized():
        return
    own = [parameter.grad is not None for parameter in parameters]
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    together = torch.cat([*flat, torch.tensor(own, dtype=flat[0].dtype, device=flat[0].device)])
    dist.all_reduce(together)
    *sums, known = torch.split(together, [*(len(values) for values in flat), len(own)])
    for place, (parameter, summed) in enumerate(zip(parameters, sums, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(summed.view_as(parameter))
        elif known[place] > 0:
            parameter.grad = summed.view_as(parameter).clone()


@torch.no_grad()
def as_on_first(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors by what they are on rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def bytes_of_first(own: bytes) -> bytes:
    """What rank 0 hands over, on every rank."""
    if not dist.is_initialized():
        return own
    size = torch.tensor(len(own))
    dist.broadcast(size, 0)
    sent = torch.frombuffer(bytearray(own), dtype=torch.uint8) if rank() == 0 else torch.empty(int(size)).byte()
    dist.broadcast(sent, 0)
    return sent.numpy().tobytes()


def whole_batch(own: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    """The rows of all ranks, float [num_rows, ...], of which this one has `[rank()::count()]`.

    Every rank must derive the same from them. The gradient that comes back is that of the sum of the ranks' losses,
    hence `count()` times that of the own one, and nothing has to be sent for it.
    """
    if not dist.is_initialized():
        return own
    gathered: torch.Tensor = _WholeBatch.apply(own, num_rows)
    return gathered


class _WholeBatch(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, own: torch.Tensor, num_rows: int) -> torch.Tensor:
        rows = own.new_zeros(num_rows, *own.shape[1:])
        rows[rank() :: count()] = own
        dist.all_reduce(rows)  # of one number and zeros each, so exact, and shares need not be of equal size
        return rows

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][rank() :: count()] * count(), None
