"""Linear layers whose float32 products are as fast as the processor allows.

torch hands float32 products to MKL, which does not use AVX-512 on an AMD processor: on an EPYC of the Zen 5
generation it makes 105 GFLOP/s a core where oneDNN, with which torch is built too, makes 250 (docs/performance.md).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

Module = TypeVar("Module", bound=nn.Module)


class Linear(nn.Linear):
    """torch's own layer, by `linear`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """float [..., D] -> [..., E]."""
        return linear(states, self.weight, self.bias)


def with_fast_products(module: Module) -> Module:
    """Let each of torch's own linear layers within a module multiply by `linear`; gives the module."""
    for layer in module.modules():
        if type(layer) is nn.Linear:  # what others made of it is theirs
            layer.__class__ = Linear
    return module


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """torch's `F.linear`, up to the order of its sums: float [..., D], [E, D] and [E] -> [..., E]."""
    plain = states.device.type == "cpu" and states.dtype == weight.dtype == torch.float32 and states.dim() > 1
    if not (plain and states.numel()) or torch.is_autocast_enabled("cpu") or not _onednn_is_faster():
        return F.linear(states, weight, bias)
    if torch.is_grad_enabled():
        return cast(torch.Tensor, _Product.apply(states, weight, bias))
    return _onednn(states, weight, bias)


class _Product(torch.autograd.Function):
    """By oneDNN forward and backward: to torch it is a step of inference."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        rows = _onednn(states.flatten(0, -2), weight, bias)
        # not a view of it, which autograd would not let anyone write into
        return cast(torch.Tensor, torch.ops.aten._unsafe_view(rows, (*states.shape[:-1], len(weight))))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        gradient = gradients[0]
        of_states, of_weight, of_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)  # [M, E]
        return (
            _onednn(gradient, weight.T) if of_states else None,
            _onednn(rows.T, states.flatten(0, -2).T) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _onednn(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """What torch's own compiler calls for a linear layer."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], ""))


@cache
def _onednn_is_faster() -> bool:
    """Whether this is AMD's processor with AVX-512, and torch has both libraries.

    By its name, not by a stopwatch: the same machine has to find the same bytes.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.is_file()
        and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8")
    )
