"""Dropout whose masks are cheap on a CPU and come from a generator of the model's own."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn


class ByteDropout(nn.Module):
    """Dropout that draws one random byte an element.

    Eight decisions a draw: on a CPU the ordinary mask costs as much as the matrix products around it. The rate is
    rounded to a multiple of 1/256, and the survivors are scaled by the rounded rate, so the expectation is exact.

    Args:
        rate: share of the elements that become zero in training, in [0, 1).
        generator: on the CPU, for states there; may be set later. States elsewhere draw from their device's own.
    """

    def __init__(self, rate: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dropped = round(rate * 256)
        self.generator = generator

    @property
    def scale(self) -> float:
        """What the survivors are multiplied by."""
        return 256 / (256 - self.dropped)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States of any shape, unchanged outside training."""
        if not (self.training and self.dropped):
            return states
        if states.device.type != "cpu":
            return F.dropout(states, self.dropped / 256)
        return cast(torch.Tensor, _Dropped.apply(states, self._kept(states), self.scale))

    def after_relu(self, states: torch.Tensor) -> torch.Tensor:
        """Dropout of the states' positive parts, in the states' own memory: they are gone afterwards."""
        if self.training and self.dropped and states.device.type == "cpu":
            return cast(torch.Tensor, _Rectified.apply(states, self._kept(states), self.scale))
        return cast(torch.Tensor, self(F.relu(states, inplace=True)))

    def _kept(self, states: torch.Tensor) -> torch.Tensor:
        """One for each element that stays and zero for others, of the states' shape and dtype."""
        words = torch.empty(-(-states.numel() // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=self.generator)
        drawn = words.view(torch.uint8)[: states.numel()].view(states.shape)
        # written as numbers at once: compared to truth values first, a mask took nearly twice as long
        return torch.ge(drawn, self.dropped, out=torch.empty_like(states, requires_grad=False))


class _Dropped(torch.autograd.Function):
    """The states that are kept, scaled; after the product, since bfloat16 would round a scale within the mask."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return (states * kept).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return (gradients[0] * kept).mul_(ctx.scale), None, None


class _Rectified(torch.autograd.Function):
    """The same of the positive parts, in their own memory; what it gives is all that its gradient needs."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, kept: torch.Tensor, scale: float) -> torch.Tensor:
        result = states.relu_().mul_(kept).mul_(scale)
        ctx.mark_dirty(result)
        ctx.save_for_backward(result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (result,) = ctx.saved_tensors  # above zero where the state was and is kept
        return torch.ops.aten.threshold_backward(gradients[0], result, 0).mul_(ctx.scale), None, None
