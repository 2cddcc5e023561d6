"""SASRec: causal self-attention over the items of a history, the baseline that a sequential recommender must beat.

Kang & McAuley, "Self-Attentive Sequential Recommendation" (ICDM 2018), but for three things. The loss is cross-entropy
over the whole catalogue: with it SASRec is better than with one sampled negative, and than BERT4Rec (Klenitskiy &
Vasilev, "Turning Dross Into Gold Loss", RecSys 2023). A block adds to its input what it makes of the normalized input,
queries, keys and values alike. And attention weights are not dropped out, which would be most of the random draws.
What enters: item indices. What leaves: states, and lists of items; `sasrec_fitting` trains it.
B rows, T positions, N items, D `d_model`, A heads, U users, C candidates.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.evaluation.baselines import SeenItems, empty_lists, fill_lists
from macrec_pipeline.evaluation.sequences import FlatHistories, IntArray

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macrec_pipeline.config import SasrecConfig

# Scores held at once: 64 MiB of float32.
_CELLS_AT_ONCE = 16_000_000
_INITIAL_DEVIATION = 0.02


class Sasrec(nn.Module):
    """The encoder; its item embeddings are also the output layer.

    There is no padding item: a row is filled up at its end, where no earlier position looks.

    Args:
        num_items: N.
        config: the sizes and the dropout rate.
        generator: draws the initial weights.
    """

    def __init__(self, num_items: int, config: SasrecConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.max_length = config.max_length
        with torch.random.fork_rng(devices=[]):  # what the layers draw by themselves is drawn anew below
            self.items = nn.Embedding(num_items, config.d_model)
            self.positions = nn.Embedding(config.max_length, config.d_model)
            self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_layers))
            self.norm = nn.LayerNorm(config.d_model)
        self.dropout = SeededDropout(config.dropout)
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
        return F.linear(states, self.items.weight)

    def item_embeddings(self) -> np.ndarray:
        """A copy of what was learned of each item: float32 [N, D], on the CPU."""
        return self.items.weight.detach().cpu().numpy().copy()

    def draw_dropout_from(self, generator: torch.Generator) -> None:
        """Let every dropout draw its masks from this generator, which is on the CPU."""
        for module in self.modules():
            if isinstance(module, SeededDropout):
                module.generator = generator


class _Block(nn.Module):
    """Causal self-attention, then two pointwise layers of width D, each on its normalized input (section III.B)."""

    def __init__(self, config: SasrecConfig) -> None:
        super().__init__()
        width = config.d_model
        self.num_heads = config.num_heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.dropout = SeededDropout(config.dropout)

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


class SeededDropout(nn.Module):
    """Dropout whose mask comes from a generator that it is given, one random byte an element.

    The rate is rounded to a multiple of 1/256, and the survivors are scaled by the rounded rate.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.dropped = round(rate * 256)
        self.generator: torch.Generator | None = None

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States of any shape, unchanged outside training."""
        if not (self.training and self.dropped):
            return states
        # eight decisions a draw: one draw an element costs as much as the matrix products around it
        words = torch.empty(-(-states.numel() // 8), dtype=torch.int64)
        words.random_(-(2**63), None, generator=self.generator)
        kept = words.view(torch.uint8)[: states.numel()].view(states.shape).to(states.device) >= self.dropped
        return states * (kept * (256 / (256 - self.dropped)))


def recommend_sasrec(model: Sasrec, histories: FlatHistories, *, top_k: int) -> dict[bool, IntArray]:
    """The items of the highest logit after `history[:-1]`, of which the model sees the newest `max_length`.

    Equal logits go to the lower item index. A user without an input gets an empty list.

    Returns:
        exclude_seen -> int64 [U, top_k], best first, padded with `NO_ITEM` where the catalogue is too small.
    """
    num_items = model.items.num_embeddings
    seen = SeenItems(histories, num_items=num_items)
    lists = empty_lists(histories, top_k=top_k)
    for users, scores in next_item_scores(model, histories, num_hidden=1):
        num_candidates = min(num_items, top_k + seen.most(users))
        best, found = (part.cpu().numpy() for part in scores.topk(num_candidates, dim=1))  # [B, C] each
        order = np.lexsort((found, -best), axis=1)
        fill_lists(lists, np.take_along_axis(found, order, axis=1), users, seen=seen)
    return lists


@torch.no_grad()
def next_item_scores(
    model: Sasrec, histories: FlatHistories, *, num_hidden: int
) -> Iterator[tuple[IntArray, torch.Tensor]]:
    """Logits of the item after `history[:-num_hidden]`, for users of similar length at once.

    Yields:
        int64 [B] users, and float32 [B, N] on the model's device; users without an input are left out.
    """
    device = model.items.weight.device
    lengths = np.minimum(histories.lengths - num_hidden, model.max_length)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    rows = max(1, _CELLS_AT_ONCE // model.items.num_embeddings)
    for start in range(0, len(order), rows):
        users = order[start : start + rows]
        firsts = histories.starts[users + 1] - num_hidden - lengths[users]
        inputs = windows_of(histories.items, firsts, lengths[users])[0].to(device)  # [B, T]
        last = torch.from_numpy(lengths[users] - 1).to(device)
        states = model(inputs)[torch.arange(len(users), device=device), last]  # [B, D]
        yield users, model.scores(states)


def windows_of(items: IntArray, firsts: IntArray, lengths: IntArray) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut `items[first:first + length]` out for each row.

    Returns:
        int64 [B, T], filled up with item 0 at the end, and bool [B, T], true where there is an item.
    """
    places = np.arange(int(lengths.max()))
    exists = places < lengths[:, None]  # [B, T]
    cut = np.where(exists, items[np.minimum(firsts[:, None] + places, len(items) - 1)], 0)
    return torch.from_numpy(cut), torch.from_numpy(exists)
