"""T5's layers as the recommender walks them: attention, feed-forward and norm, of transformers' own modules.

Each takes a block of the stack, whose weights and dropout it uses, and states, and gives the states after it.
Shapes: B rows, S encoder tokens, J targets a row, T tokens of a target, D d_model, A heads, Q queries.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F


def attention_bias(stack: Any, length: int, mask: torch.Tensor | None) -> torch.Tensor:
    """T5's relative position bias, minus infinity where the mask forbids: float [1 or B, A, S, S]."""
    bias = stack.block[0].layer[0].SelfAttention.compute_bias(length, length)
    return cast(torch.Tensor, bias if mask is None else bias + as_bias(mask))


def as_bias(mask: torch.Tensor) -> torch.Tensor:
    """True -> 0, False -> minus infinity."""
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, float("-inf"))


def norm(layer: Any, states: torch.Tensor) -> torch.Tensor:
    """T5's norm, by root mean square; on a GPU as one kernel instead of six."""
    if states.device.type == "cpu":
        return cast(torch.Tensor, layer(states))
    return F.rms_norm(states, layer.weight.shape, layer.weight, layer.variance_epsilon)


def self_attention(block: Any, states: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Each of float [B, S, D] looks at its row's others, with a bias broadcastable to [B, A, S, S]."""
    layer = block.layer[0]
    attention = layer.SelfAttention
    normed = norm(layer.layer_norm, states)
    query, key, value = (heads(attention, project(normed)) for project in (attention.q, attention.k, attention.v))
    return cast(torch.Tensor, states + layer.dropout(attention.o(_attend(query, key, value, bias))))


def cross_attention(
    block: Any, states: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Every target's tokens [B*J, T, D] look at their row's memory, as one long query a row."""
    layer = block.layer[1]
    attention = layer.EncDecAttention
    normed = norm(layer.layer_norm, states).view(len(keys), -1, states.shape[-1])  # [B, J*T, D]
    mixed = attention.o(_attend(heads(attention, attention.q(normed)), keys, values, bias)).view_as(states)
    return cast(torch.Tensor, states + layer.dropout(mixed))


def feed_forward(block: Any, states: torch.Tensor) -> torch.Tensor:
    """As in transformers, which however takes what lies between in the weights' precision: half of autocast's gain."""
    layer = block.layer[-1]
    dense = layer.DenseReluDense
    hidden = dense.dropout.after_relu(dense.wi(norm(layer.layer_norm, states)))
    return cast(torch.Tensor, states + layer.dropout(dense.wo(hidden)))


def heads(attention: Any, projected: torch.Tensor) -> torch.Tensor:
    """[B, S, A * d_kv] -> [B, A, S, d_kv]."""
    return projected.view(*projected.shape[:-1], attention.n_heads, -1).transpose(1, 2)


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Attention as T5 does it, unscaled: [B, A, Q, d_kv] over [B, A, S, d_kv] -> [B, Q, A * d_kv].

    The bias, broadcastable to [B, A, G, S], has one row for every Q / G queries that follow each other.
    Plain on purpose: the fused kernels refuse a bias that is trained and, on the CPU, fall back to something slower.
    """
    scores = query @ key.transpose(2, 3)
    if bias is not None:
        runs = scores.view(*scores.shape[:2], bias.shape[-2], -1, scores.shape[-1])  # [B, A, G, Q / G, S]
        scores = (runs + bias.unsqueeze(-2)).flatten(2, 3)
    return (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)
