"""Replacements for torch's linear layer and dropout that are faster on a CPU.

torch hands float32 matrix products to MKL, which does not use AVX-512 on AMD processors; oneDNN, with which torch is
built as well, does and is more than twice as fast there. And a dropout mask costs as much as the products around it
unless one random draw decides several elements. Both are measured in docs/performance.md.

Shapes (docs/notation.md): B rows, D input width, O output width.
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
# oneDNN chooses the layout of a packed weight for a number of rows; the packed weight serves any number.
_PACKED_FOR_ROWS = 32


class Linear(nn.Linear):
    """torch's linear layer, computed by `linear`."""

    _packed: torch.Tensor | None = None  # the weight in the layout that oneDNN reads fastest; see `pack_weights`

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """float [..., D] -> [..., O]."""
        if self._packed is not None and _by_onednn(states, self.weight) and not torch.is_grad_enabled():
            # oneDNN sums a single row in another order if the weight is packed
            weight = self.weight if states.numel() == states.shape[-1] else self._packed
            return _onednn_linear(states, weight, self.bias)
        return linear(states, self.weight, self.bias)


def use_fast_linear(module: Module) -> Module:
    """Make every `nn.Linear` inside a module compute by `linear`, in place.

    Subclasses of `nn.Linear` are left alone, since they may override its computation.

    Returns:
        The same module.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear:
            layer.__class__ = Linear
    return module


def pack_weights(module: Module) -> Module:
    """Keep a copy of the weights of every `Linear` inside a module in the layout that oneDNN reads fastest, in place.

    Otherwise each product of a few rows first copies the weight, which takes longer than the product if the weight is
    not in the processor's cache. The numbers are the same. Only for a module on the CPU whose weights never change from
    now on. Where oneDNN is not used, nothing happens.

    Returns:
        The same module.
    """
    for layer in module.modules():
        weight = layer.weight if type(layer) is Linear else None
        if weight is not None and weight.device.type == "cpu" and weight.dtype == torch.float32 and _onednn_is_faster():
            layer._packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _PACKED_FOR_ROWS)
    return module


def linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`F.linear`, up to the order of its sums: float [..., D], [O, D] and [O] -> [..., O]."""
    if not _by_onednn(states, weight):
        return F.linear(states, weight, bias)
    if torch.is_grad_enabled():
        return cast(torch.Tensor, _OneDnnLinear.apply(states, weight, bias))
    return _onednn_linear(states, weight, bias)


def _by_onednn(states: torch.Tensor, weight: torch.Tensor) -> bool:
    is_cpu_float32 = states.device.type == "cpu" and states.dtype == weight.dtype == torch.float32 and states.dim() > 1
    return is_cpu_float32 and states.numel() > 0 and not torch.is_autocast_enabled("cpu") and _onednn_is_faster()


class ByteDropout(nn.Module):
    """Dropout that draws one random byte per element, eight elements per draw.

    The rate is rounded to a multiple of 1/256. The surviving elements are scaled by the rounded rate, so the
    expectation is exact.

    Args:
        rate: share of the elements that are set to zero in training, in [0, 1).
        generator: CPU generator, used for states on the CPU; may be set later. States on another device draw from that
            device's own generator.
    """

    def __init__(self, rate: float, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.dropped = round(rate * 256)
        self.generator = generator

    @property
    def scale(self) -> float:
        """Factor of the surviving elements."""
        return 256 / (256 - self.dropped)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Drop elements of states of any shape; outside training, return them unchanged."""
        if not (self.training and self.dropped):
            return states
        if states.device.type != "cpu":
            return F.dropout(states, self.dropped / 256)
        return cast(torch.Tensor, _Dropout.apply(states, self._mask(states), self.scale))

    def after_relu(self, states: torch.Tensor) -> torch.Tensor:
        """Apply ReLU and then dropout in the memory of the states, which are overwritten."""
        if self.training and self.dropped and states.device.type == "cpu":
            return cast(torch.Tensor, _ReluDropout.apply(states, self._mask(states), self.scale))
        return cast(torch.Tensor, self(F.relu(states, inplace=True)))

    def _mask(self, states: torch.Tensor) -> torch.Tensor:
        """Draw a mask in the shape and dtype of the states: one for elements that stay, zero for the others."""
        draws = torch.empty(-(-states.numel() // 8), dtype=torch.int64)
        draws.random_(-(2**63), None, generator=self.generator)
        random_bytes = draws.view(torch.uint8)[: states.numel()].view(states.shape)
        # compared straight into floats, because a detour through bool nearly doubles the time
        return torch.ge(random_bytes, self.dropped, out=torch.empty_like(states, requires_grad=False))


class _OneDnnLinear(torch.autograd.Function):
    """A linear layer by oneDNN forward and backward; torch itself offers that operator for inference only."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(states, weight)
        rows = _onednn_linear(states.flatten(0, -2), weight, bias)
        # an ordinary view could not be written to in place under autograd
        return cast(torch.Tensor, torch.ops.aten._unsafe_view(rows, (*states.shape[:-1], len(weight))))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight = ctx.saved_tensors
        gradient = gradients[0]
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad
        rows = gradient.flatten(0, -2)  # [B, O]
        return (
            _onednn_linear(gradient, weight.T) if needs_states else None,
            _onednn_linear(rows.T, states.flatten(0, -2).T) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
        )


def _onednn_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Call the operator that torch's compiler emits for a linear layer."""
    return cast(torch.Tensor, torch.ops.mkldnn._linear_pointwise(states, weight, bias, "none", [], ""))


@cache
def _onednn_is_faster() -> bool:
    """Return whether this is an AMD processor with AVX-512 and torch is built with both libraries.

    Decided by the processor's name rather than by timing, so that the same machine always computes the same bytes.
    """
    cpuinfo = Path("/proc/cpuinfo")
    return bool(
        torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
        and torch.backends.cpu.get_cpu_capability() == "AVX512"
        and cpuinfo.is_file()
        and "AuthenticAMD" in cpuinfo.read_text(encoding="utf-8")
    )


class _Dropout(torch.autograd.Function):
    """Mask, then scale: a scale inside the mask would be rounded in bfloat16."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return (states * mask).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask).mul_(ctx.scale), None, None


class _ReluDropout(torch.autograd.Function):
    """ReLU, mask and scale in place; the gradient needs nothing but the result."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        result = states.relu_().mul_(mask).mul_(scale)
        ctx.mark_dirty(result)
        ctx.save_for_backward(result)
        ctx.scale = scale
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (result,) = ctx.saved_tensors  # positive where the state was positive and was not dropped
        return torch.ops.aten.threshold_backward(gradients[0], result, 0).mul_(ctx.scale), None, None
