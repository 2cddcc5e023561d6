"""The training loop's common part: optimizer and schedule, one guarded step, a moving average of the weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.runtime import distributed

MAX_GRADIENT_NORM = 1.0

_log = logging.getLogger(__name__)


def adam_w(parameters: Iterable[nn.Parameter], config: Any) -> torch.optim.AdamW:
    """AdamW with a section's `learning_rate` and `weight_decay`, in one pass over memory: a quarter of the time."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


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
    parts: Iterable[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    where: str,
    look: bool = True,
    keep_gradients: bool = False,
) -> None:
    """Backpropagate, clip the gradient and step; a loss or gradient that is not finite stops training.

    Args:
        parts: scalars whose sum, over all ranks, is the loss; each is propagated before the next is asked for, unless
            it was already.
        optimizer: of the parameters.
        parameters: whose gradients are clipped, together.
        where: begins the message of an error.
        look: False leaves the check to a later step, since it makes a GPU wait: weights that have met such a gradient
            never become finite again. The last step before they are used has to look.
        keep_gradients: set them to zero where they are, instead of dropping them.

    Raises:
        TrainingError: names where it happened and the value.
    """
    optimizer.zero_grad(set_to_none=not keep_gradients)
    losses = []
    for part in parts:
        if part.requires_grad:
            part.backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())  # read below only if need be: it would make a GPU wait
    own = list(parameters)
    distributed.sum_gradients(own)
    norm = nn.utils.clip_grad_norm_(own, MAX_GRADIENT_NORM)
    if look and not torch.isfinite(norm):
        raise TrainingError(
            f"{where}: the loss is {distributed.total(float(sum(losses))):.4g} "
            f"and its gradient's norm {norm.item():.4g}. "
            "Lower the learning rate, or look for extreme values in the embeddings."
        )
    optimizer.step()


def products_in(precision: str, device: torch.device) -> torch.autocast:
    """Inside, matrix products are made in "float32" or "bfloat16"; parameters and what is summed up stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def warn_of_slow_products(precision: str, device: torch.device) -> None:
    """Say so, once a training, if its products in bfloat16 have to be emulated, many times as slow as float32."""
    if precision != "bfloat16" or device.type != "cpu":
        return
    with_library = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if with_library and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _log.warning(
            "precision is bfloat16, which this processor can only emulate: training will take many times as long as "
            "with float32. Set precision to float32 here."
        )


class MovingAverage:
    """An exponential moving average of parameters.

    Args:
        parameters: the live ones, float tensors.
        decay: what the average keeps of itself at a step, less in the first steps: min(decay, (1 + t) / (10 + t)), so
            that the initial weights are soon forgotten.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are after one more optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    def load(self, values: Sequence[torch.Tensor], steps: int) -> None:
        """Go on from the average after `steps` steps."""
        self.steps = steps
        for own, value in zip(self.values, values, strict=True):
            own.copy_(value)


@contextmanager
@torch.no_grad()
def evaluated_weights(average: MovingAverage | None) -> Iterator[None]:
    """Inside, the live parameters hold their average; without an average nothing changes."""
    if average is None:
        yield
        return
    own = [parameter.detach().clone() for parameter in average.parameters]
    for parameter, value in zip(average.parameters, average.values, strict=True):
        parameter.copy_(value)
    try:
        yield
    finally:
        for parameter, value in zip(average.parameters, own, strict=True):
            parameter.copy_(value)
