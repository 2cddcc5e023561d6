"""Collective operations of the processes (ranks) that train one model together, each on its share of every step.

Each function takes what one rank has computed and returns the same on every rank: summed, gathered, or as rank 0 has
it. Weights are not sent during training, because equal weights stay equal under equal sums of gradients. A process that
trains alone counts as rank 0 of 1; for it these functions compute and copy nothing.

Every rank must make the same calls in the same order. When a rank dies, the calls of the others fail, and `torchrun`
restarts all of them from the last checkpoint.

Shapes (docs/notation.md): B batch rows, B' the batch rows of one rank.
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


def world_size() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number, from 0; only rank 0 reports and writes."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(folder: Path) -> Iterator[None]:
    """Make a process that `torchrun` started a rank, with a GPU of its own if the machine has one for each rank.

    Ranks that have to share a GPU communicate through the host, since NCCL rejects them.

    Args:
        folder: where the ranks of a single machine find each other. torch's default, a server without a password that
            listens to every network, is used only for several machines.
    """
    env = {name: int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")}
    share_gpu = env["LOCAL_WORLD_SIZE"] > torch.cuda.device_count()
    if not share_gpu:
        torch.cuda.set_device(env["LOCAL_RANK"])
    # a file per attempt, so that restarted ranks do not wait for dead ones
    attempt = folder.absolute() / f"ranks-{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    one_machine = env["LOCAL_WORLD_SIZE"] == env["WORLD_SIZE"]
    dist.init_process_group(
        "gloo" if share_gpu else "cpu:gloo,cuda:nccl",
        init_method=attempt.as_uri() if one_machine else "env://",
        rank=env["RANK"],
        world_size=env["WORLD_SIZE"],
    )
    try:
        yield
    finally:
        dist.destroy_process_group()


def stream_name(name: str) -> str:
    """Return the name of a random stream that differs per rank; rank 0 keeps the name that a single process uses."""
    return f"{name}/{rank()}" if rank() else name


def sum_over_ranks(value: float) -> float:
    """Return the sum of a number over the ranks, in float64."""
    if not dist.is_initialized():
        return value
    summed = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(summed)
    return summed.item()


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every rank's gradients by their sum over all ranks, in one transfer.

    A gradient that only some ranks have counts as zero on the others. A gradient that no rank has stays None, so that
    the optimizer leaves that parameter unchanged.
    """
    if not dist.is_initialized():
        return
    has_gradient = [parameter.grad is not None for parameter in parameters]
    flat = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    message = torch.cat([*flat, torch.tensor(has_gradient, dtype=flat[0].dtype, device=flat[0].device)])
    dist.all_reduce(message)
    *sums, num_ranks_with = torch.split(message, [*(len(values) for values in flat), len(has_gradient)])
    for index, (parameter, summed) in enumerate(zip(parameters, sums, strict=True)):
        if parameter.grad is not None:
            parameter.grad.copy_(summed.view_as(parameter))
        elif num_ranks_with[index] > 0:
            parameter.grad = summed.view_as(parameter).clone()


@torch.no_grad()
def broadcast_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Overwrite tensors with their values on rank 0."""
    if dist.is_initialized():
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def broadcast_bytes(content: bytes) -> bytes:
    """Return rank 0's content on every rank."""
    if not dist.is_initialized():
        return content
    size = torch.tensor(len(content))
    dist.broadcast(size, 0)
    sent = torch.frombuffer(bytearray(content), dtype=torch.uint8) if rank() == 0 else torch.empty(int(size)).byte()
    dist.broadcast(sent, 0)
    return sent.numpy().tobytes()


def gather_batch(share: torch.Tensor, *, num_rows: int) -> torch.Tensor:
    """Gather the rows of all ranks into one batch, with gradients.

    Every rank must compute the same from the batch. The gradient that flows back is that of the sum of the ranks'
    losses, that is `world_size()` times the rank's own gradient, so nothing has to be sent for it.

    Args:
        share: float [B', ...], this rank's rows, the rows `[rank()::world_size()]` of the batch.
        num_rows: B.

    Returns:
        float [B, ...].
    """
    if not dist.is_initialized():
        return share
    gathered: torch.Tensor = _GatheredBatch.apply(share, num_rows)
    return gathered


class _GatheredBatch(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, share: torch.Tensor, num_rows: int) -> torch.Tensor:
        rows = share.new_zeros(num_rows, *share.shape[1:])
        rows[rank() :: world_size()] = share
        # exact, since each element is a sum of one number and zeros; and the shares may differ in size
        dist.all_reduce(rows)
        return rows

    @staticmethod
    def backward(_context: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0][rank() :: world_size()] * world_size(), None
