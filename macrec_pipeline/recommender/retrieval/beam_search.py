"""Beam search over the existing semantic IDs (MACRec section 3.4).

One encoder pass a history, shared by all its beams; no Python loop over rows, beams or codes, only over the L levels.
Shapes: B rows, W beams, N items, L levels, E children.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from macrec_pipeline.recommender.retrieval.tree_walk import Children, PrefixTreeWalk

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import CrossAttentionCache, GenerativeRecommender
    from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree


@dataclass(frozen=True)
class Beams:
    """The items that a route found, best first.

    Attributes:
        items: int64 [B, W], -1 where a row has fewer than W items that it may get.
        scores: float [B, W], mean log-probability a code in nats; minus infinity where there is no item.
    """

    items: torch.Tensor
    scores: torch.Tensor


@torch.no_grad()
def beam_search(
    model: GenerativeRecommender,
    memory: CrossAttentionCache,
    index: PrefixTree,
    *,
    modality: str,
    beam_width: int,
    forbidden: torch.Tensor | None = None,
    legal: torch.Tensor | None = None,
) -> Beams:
    """Find the most probable IDs that exist.

    A step's distribution is over the codes that may follow, so an item's score is its log-probability under the model
    restricted to the catalogue, divided by L. No prefix is gone into that has no item which the row may get, so W items
    come back whenever there are W. Equal scores break towards the smaller prefix.

    Args:
        memory: of the B histories; its bias is the same for all beams.
        modality: of the IDs to write, "text" or "image".
        beam_width: W.
        forbidden: bool [B, N], items that do not exist for a row: they have no share of its distribution.
        legal: bool [B, N], or [1, N] for all rows, items that the rules let a row get; they change no item's score.
    """
    walk = PrefixTreeWalk(model, memory, index, modality=modality, forbidden=forbidden, legal=legal)
    nodes = torch.zeros(memory.num_rows, 1, dtype=torch.int64, device=memory.device)
    scores, parents = torch.zeros(nodes.shape, device=memory.device), None
    for _ in range(index.num_levels):
        nodes, scores, parents = _best(walk.step(nodes, parents), scores, beam_width=beam_width)
    items = index.items(nodes.clamp(min=0)).masked_fill(nodes < 0, -1)
    return Beams(items, scores / index.num_levels)


def _best(
    children: Children, scores: torch.Tensor, *, beam_width: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The most probable children of each row: nodes int64 [B, <= W], -1 for none, their scores, and whose they are."""
    totals = scores[children.row, children.prefix] + children.log_probability  # [E]
    count = torch.bincount(children.row, minlength=len(scores))  # [B]
    place = torch.arange(len(totals), device=totals.device) - (count.cumsum(0) - count)[children.row]
    shape = len(scores), max(1, int(count.max()))
    table = torch.full(shape, float("-inf"), device=totals.device)
    nodes, prefixes = (torch.full(shape, -1, device=totals.device) for _ in range(2))
    table[children.row, place] = totals
    nodes[children.row, place] = children.node
    prefixes[children.row, place] = children.prefix
    # a stable sort, unlike topk, has one answer when scores are equal
    ordered = torch.sort(table, dim=1, descending=True, stable=True)
    best = ordered.indices[:, :beam_width]
    return nodes.gather(1, best), ordered.values[:, :beam_width], prefixes.gather(1, best)
