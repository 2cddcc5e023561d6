"""The training loop's common part: the optimizer's schedule, and one guarded step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from macrec_pipeline.errors import TrainingError

MAX_GRADIENT_NORM = 1.0


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over a share of the steps, then half a cosine down to zero."""
    warmup = max(1, round(num_steps * warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def guarded_step(
    loss: torch.Tensor, optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], *, where: str
) -> None:
    """Backpropagate, clip the gradient and step; a loss or gradient that is not finite stops training.

    Raises:
        TrainingError: names where it happened and the value.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    if not torch.isfinite(norm):
        raise TrainingError(
            f"{where}: the loss is {loss.item():.4g} and its gradient's norm {norm.item():.4g}. "
            "Lower the learning rate, or look for extreme values in the embeddings."
        )
    optimizer.step()
