"""SASRec: causal self-attention over the items of a history, a collaborative model that knows items by who took them.

Kang & McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), but for three things. The loss is cross-entropy
over the whole catalogue: with it SASRec is better than with one sampled negative, and than BERT4Rec (Klenitskiy &
Vasilev, "Turning Dross Into Gold Loss", RecSys 2023). A block adds to its input what it makes of the normalized input,
queries, keys and values alike. And attention weights are not dropped out, which would be most of the random draws.
What enters: item indices. What leaves: states, and scores of all items; `sasrec_fitting` trains it.
B rows, T positions, N items, D `d_model`, A heads, M targets.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from macrec_pipeline.runtime.fast_dropout import ByteDropout
from macrec_pipeline.runtime.fast_layers import Linear, linear

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from macrec_pipeline.config import SasrecConfig

# Scores held at once, 64 MiB of float32: bounds memory whatever the size of the catalogue.
CELLS_AT_ONCE = 16_000_000
_INITIAL_DEVIATION = 0.02


class Sasrec(nn.Module):
    """The encoder; its item embeddings are also the output layer.

    There is no padding item: a row is filled up at its end, where no earlier position looks.

    Args:
        num_items: N.
        config: the sizes and the dropout rate.
        generator: draws the initial weights; None is torch's own, for weights that are loaded over them.
    """

    def __init__(self, num_items: int, config: SasrecConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config, self.num_items = config, num_items
        with torch.random.fork_rng(devices=[]):  # what the layers draw by themselves is drawn anew below
            self.items = nn.Embedding(num_items, config.d_model)
            self.positions = nn.Embedding(config.max_length, config.d_model)
            self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
            self.norm = nn.LayerNorm(config.d_model)
        self.dropout = ByteDropout(config.dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_INITIAL_DEVIATION, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """States after each item; a state depends on the items up to its own.

        Args:
            inputs: int64 [B, T], each in [0, N), T at most `max_length`.

        Returns:
            float32 [B, T, D].
        """
        scaled = self.items(inputs) * math.sqrt(self.items.embedding_dim)
        states = self.dropout(scaled + self.positions.weight[: inputs.shape[1]])  # [B, T, D]
        for block in self.blocks:
            states = block(states)
        return cast(torch.Tensor, self.norm(states))

    def scores(self, states: torch.Tensor) -> torch.Tensor:
        """Logits of every item as the next one: float32 [..., D] -> [..., N]."""
        return linear(states, self.items.weight)

    def loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy over the whole catalogue, in nats a target.

        Where M times N scores are too many for memory they are made in parts, and made again for the gradient.

        Args:
            states: float32 [M, D], M at least 1.
            targets: int64 [M], each in [0, N).
        """
        rows = max(1, CELLS_AT_ONCE // self.num_items)
        if len(targets) <= rows:
            return F.cross_entropy(self.scores(states), targets)
        total = states.new_zeros(())
        for begin in range(0, len(targets), rows):
            part = slice(begin, begin + rows)
            total = total + checkpoint(self._summed_loss, states[part], targets[part], use_reentrant=False)
        return total / len(targets)

    def _summed_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.scores(states), targets, reduction="sum")

    def item_embeddings(self) -> np.ndarray:
        """A copy of what was learned of each item: float32 [N, D], on the CPU."""
        return self.items.weight.detach().cpu().numpy().copy()

    def draw_dropout_from(self, generator: torch.Generator) -> None:
        """Let every dropout draw its masks from this generator, which is on the CPU."""
        for module in self.modules():
            if isinstance(module, ByteDropout):
                module.generator = generator


class _Block(nn.Module):
    """Causal self-attention, then two pointwise layers of width D, each on its normalized input (section III.B)."""

    def __init__(self, config: SasrecConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads = config.num_heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = Linear(width, 3 * width)
        self.merge = Linear(width, width)
        self.feed = nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, width))
        self.dropout = ByteDropout(config.dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, D] -> the same shape."""
        states = states + self.dropout(self._attend(self.attention_norm(states)))
        return states + cast(torch.Tensor, self.dropout(self.feed(self.feed_norm(states))))

    def _attend(self, states: torch.Tensor) -> torch.Tensor:
        rows, length, width = states.shape
        projected = self.projections(states).view(rows, length, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # [B, A, T, D / A] each
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return cast(torch.Tensor, self.merge(mixed.transpose(1, 2).reshape(rows, length, width)))


@torch.no_grad()
def next_item_scores(model: Sasrec, histories: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Logits of the item after each history, of which the newest `max_length` items are read; like lengths at once.

    Args:
        model: in evaluation mode.
        histories: int64 [T] item indices each, oldest first.

    Yields:
        int64 [B], which histories, and float32 [B, N] on the model's device; histories without an item are left out.
    """
    device = model.items.weight.device
    flat, starts = flatten(histories)
    lengths = np.minimum(np.diff(starts), model.config.max_length)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    widest = max(model.num_items, 3 * model.config.d_model * int(lengths.max(initial=0)))
    rows = max(1, CELLS_AT_ONCE // widest)
    for begin in range(0, len(order), rows):
        chosen = order[begin : begin + rows]
        inputs = windows_of(flat, starts[chosen + 1] - lengths[chosen], lengths[chosen])[0].to(device)  # [B, T]
        last = torch.from_numpy(lengths[chosen] - 1).to(device)
        states = model(inputs)[torch.arange(len(chosen), device=device), last]  # [B, D]
        yield chosen, model.scores(states)


def flatten(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """All items end to end, int64 [sum of T], and where each history starts and the last one ends, int64 [B + 1]."""
    lengths = [len(history) for history in histories]
    flat = np.concatenate([np.zeros(0, dtype=np.int64), *histories]).astype(np.int64)
    return flat, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def windows_of(items: np.ndarray, firsts: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut `items[first:first + length]` out for each row.

    Returns:
        int64 [B, T], filled up with item 0 at the end, and bool [B, T], true where there is an item.
    """
    places = np.arange(int(lengths.max()))
    exists = places < lengths[:, None]  # [B, T]
    cut = np.where(exists, items[np.minimum(firsts[:, None] + places, len(items) - 1)], 0)
    return torch.from_numpy(cut), torch.from_numpy(exists)
