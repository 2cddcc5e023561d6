"""Beam search over the existing semantic IDs (MACRec section 3.4).

One encoder pass a history, shared by all its beams; no Python loop over rows, beams or codes, only over the L levels.
Shapes: B rows, S encoder tokens, W beams, N items, L levels, K codes, D d_model, A heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender
    from macrec_pipeline.recommender.prefix_index import PrefixIndex


@dataclass(frozen=True)
class Beams:
    """The items that a route found, best first.

    Attributes:
        items: int64 [B, W], -1 where a row has fewer than W items that are allowed.
        scores: float [B, W], mean log-probability a code in nats; minus infinity where there is no item.
    """

    items: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def beam_search(
    model: GenerativeRecommender,
    memory: torch.Tensor,
    memory_bias: torch.Tensor,
    index: PrefixIndex,
    *,
    modality: str,
    beam_width: int,
    forbidden: torch.Tensor | None = None,
) -> Beams:
    """Find the most probable IDs that exist.

    A step's distribution is over the codes that may follow, so an item's score is its log-probability under the model
    restricted to the catalogue, divided by L. A prefix all of whose items are forbidden is not legal either, so W items
    come back whenever W are allowed. Equal scores break towards the smaller prefix.

    Args:
        memory: float [B, S, D] from `model.encode`.
        memory_bias: float broadcastable to [B, A, 1, S], what `model.decode` adds for every beam.
        modality: of the IDs to write, "text" or "image".
        beam_width: W.
        forbidden: bool [B, N], items that a row must not get.
    """
    rows, num_levels = len(memory), index.num_levels
    nodes = torch.zeros(rows, 1, dtype=torch.int64, device=memory.device)
    codes = torch.empty(rows, 1, 0, dtype=torch.int64, device=memory.device)
    scores = torch.zeros(rows, 1, device=memory.device)
    for level in range(num_levels):
        inputs = model.decoder_inputs(codes, modality=modality)  # [B, W, level + 1]
        states = model.decode(inputs, memory, memory_bias)[:, :, -1:]  # [B, W, 1, D]
        logits = model.code_logits(states, modality=modality, first_level=level)[:, :, 0]  # [B, W, K]
        legal, child = index.children(nodes, depth=level)
        if forbidden is not None:
            gone = index.exhausted(forbidden, depth=level + 1)
            legal &= ~gone.gather(1, child.flatten(1)).view_as(legal)
        legal &= scores.isfinite()[..., None]
        step = torch.log_softmax(logits.masked_fill(~legal, float("-inf")), dim=-1)
        total = (scores[..., None] + step).masked_fill(~legal, float("-inf")).flatten(1)  # [B, W * K]
        width = min(beam_width, total.shape[1])
        # a stable sort, unlike topk, has one answer when scores are equal
        ordered = torch.sort(total, dim=1, descending=True, stable=True)
        scores, chosen = ordered.values[:, :width], ordered.indices[:, :width]
        beam = torch.div(chosen, index.codebook_size, rounding_mode="floor")
        nodes = child.flatten(1).gather(1, chosen)
        kept = codes.gather(1, beam[..., None].expand(-1, -1, level))
        codes = torch.cat([kept, (chosen % index.codebook_size)[..., None]], dim=2)
    found = scores.isfinite()
    return Beams(torch.where(found, index.items(nodes.clamp(max=index.num_items - 1)), -1), scores / num_levels)
