"""Dropout whose masks are cheap on a CPU and come from a generator of the model's own."""

from __future__ import annotations

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

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States of any shape, unchanged outside training."""
        if not (self.training and self.dropped):
            return states
        if states.device.type != "cpu":
            return F.dropout(states, self.dropped / 256)
        words = torch.empty(-(-states.numel() // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=self.generator)
        kept = words.view(torch.uint8)[: states.numel()].view(states.shape) >= self.dropped
        return states * kept.to(states.dtype).mul_(256 / (256 - self.dropped))
