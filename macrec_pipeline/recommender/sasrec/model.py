"""SASRec: causal self-attention over the items of a history, a collaborative model.

The model takes item indices and returns hidden states or the scores of all items. `training` trains it.

The model follows Kang & McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), with three differences. The
loss is cross-entropy over the whole catalogue, which makes SASRec better than one sampled negative does, and better
than BERT4Rec (Klenitskiy & Vasilev, "Turning Dross Into Gold Loss", RecSys 2023). A block normalizes its input before
attention, for queries, keys and values alike, and adds the result to the input. Attention weights have no dropout,
since that would be most of the random draws.

Shapes (docs/notation.md): A heads, B batch rows, D hidden width (`d_model`), N items, T history items.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from macrec_pipeline.runtime.fast_layers import ByteDropout, Linear, linear

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# Maximum number of scores held at once; bounds memory whatever the size of the catalogue.
CELLS_AT_ONCE = 16_000_000
_INITIAL_DEVIATION = 0.02


@dataclass(frozen=True)
class SasrecSpec:
    """The sizes of the network: the settings of the same names in the section `sasrec`."""

    d_model: int
    num_layers: int
    num_heads: int
    dropout: float
    max_length: int

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> SasrecSpec:
        """Pick the fields out of the section `sasrec`, as plain values. Raise `KeyError` if one is missing."""
        return cls(**{field.name: settings[field.name] for field in fields(cls)})


class Sasrec(nn.Module):
    """The encoder. Its item embeddings are also the output layer.

    There is no padding item: short rows are filled up at their end, where no earlier position attends.

    Args:
        num_items: N.
        spec: the sizes and the dropout rate.
        generator: draws the initial weights; None draws them from torch's global generator, for a model whose weights
            will be loaded.
    """

    def __init__(self, num_items: int, spec: SasrecSpec, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.spec, self.num_items = spec, num_items
        with torch.random.fork_rng(devices=[]):  # the layers draw weights that are replaced below
            self.items = nn.Embedding(num_items, spec.d_model)
            self.positions = nn.Embedding(spec.max_length, spec.d_model)
            self.blocks = nn.ModuleList(_Block(spec) for _ in range(spec.num_layers))
            self.norm = nn.LayerNorm(spec.d_model)
        self.dropout = ByteDropout(spec.dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=_INITIAL_DEVIATION, generator=generator)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the hidden state after each item; it depends only on the items up to its own.

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
        """Return the logits of every item as the next one: float32 [..., D] -> [..., N]."""
        return linear(states, self.items.weight)

    def loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy over the whole catalogue, in nats per target.

        If the scores of all targets do not fit into memory, they are computed in parts, and again for the gradient.

        Args:
            states: float32 [targets, D], at least one target.
            targets: int64 [targets], each in [0, N).
        """
        targets_at_once = max(1, CELLS_AT_ONCE // self.num_items)
        if len(targets) <= targets_at_once:
            return F.cross_entropy(self.scores(states), targets)
        total = states.new_zeros(())
        for begin in range(0, len(targets), targets_at_once):
            part = slice(begin, begin + targets_at_once)
            total = total + checkpoint(self._summed_loss, states[part], targets[part], use_reentrant=False)
        return total / len(targets)

    def _summed_loss(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.scores(states), targets, reduction="sum")

    def item_embeddings(self) -> np.ndarray:
        """Return a copy of the item embeddings: float32 [N, D], on the CPU."""
        return self.items.weight.detach().cpu().numpy().copy()

    def draw_dropout_from(self, generator: torch.Generator) -> None:
        """Let every dropout layer draw its masks from this CPU generator."""
        for module in self.modules():
            if isinstance(module, ByteDropout):
                module.generator = generator


class _Block(nn.Module):
    """Causal self-attention, then two pointwise layers of width D, each on its normalized input (section III.B)."""

    def __init__(self, spec: SasrecSpec) -> None:
        super().__init__()
        width = spec.d_model
        self.num_heads = spec.num_heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = Linear(width, 3 * width)
        self.merge = Linear(width, width)
        self.feed = nn.Sequential(Linear(width, width), nn.ReLU(), Linear(width, width))
        self.dropout = ByteDropout(spec.dropout)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """float32 [B, T, D] -> the same shape."""
        states = states + self.dropout(self._attend(self.attention_norm(states)))
        return states + cast(torch.Tensor, self.dropout(self.feed(self.feed_norm(states))))

    def _attend(self, states: torch.Tensor) -> torch.Tensor:
        num_rows, length, width = states.shape
        projected = self.projections(states).view(num_rows, length, 3, self.num_heads, width // self.num_heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4)  # [B, A, T, D / A] each
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return cast(torch.Tensor, self.merge(mixed.transpose(1, 2).reshape(num_rows, length, width)))


@torch.no_grad()
def next_item_scores(model: Sasrec, histories: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Yield the logits of the item after each history, in batches of histories of similar length.

    The model reads the newest `max_length` items of a history. Histories without an item are left out.

    Args:
        model: in evaluation mode.
        histories: int64 [T] item indices each, oldest first.

    Yields:
        int64 [B], the numbers of the histories, and float32 [B, N] on the model's device.
    """
    device = model.items.weight.device
    items, starts = flatten(histories)
    lengths = np.minimum(np.diff(starts), model.spec.max_length)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    cells_per_row = max(model.num_items, 3 * model.spec.d_model * int(lengths.max(initial=0)))
    rows_at_once = max(1, CELLS_AT_ONCE // cells_per_row)
    for begin in range(0, len(order), rows_at_once):
        chosen = order[begin : begin + rows_at_once]
        inputs = cut_windows(items, starts[chosen + 1] - lengths[chosen], lengths[chosen])[0].to(device)  # [B, T]
        last = torch.from_numpy(lengths[chosen] - 1).to(device)
        states = model(inputs)[torch.arange(len(chosen), device=device), last]  # [B, D]
        yield chosen, model.scores(states)


def flatten(histories: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Lay histories end to end.

    Returns:
        int64 [sum of T], all items; and int64 [B + 1], where each history starts and the last one ends.
    """
    lengths = [len(history) for history in histories]
    items = np.concatenate([np.zeros(0, dtype=np.int64), *histories]).astype(np.int64)
    return items, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def cut_windows(items: np.ndarray, firsts: np.ndarray, lengths: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut `items[first:first + length]` out for each row.

    Args:
        items: int64, histories laid end to end.
        firsts: int64 [B].
        lengths: int64 [B].

    Returns:
        int64 [B, T], filled up with item 0 at the end; and bool [B, T], True where there is an item.
    """
    positions = np.arange(int(lengths.max()))
    exists = positions < lengths[:, None]  # [B, T]
    window = np.where(exists, items[np.minimum(firsts[:, None] + positions, len(items) - 1)], 0)
    return torch.from_numpy(window), torch.from_numpy(exists)
