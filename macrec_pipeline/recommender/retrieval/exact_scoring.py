"""The log-probability of any item, without a beam, and how far a beam search finds what this finds.

Teacher-forced and sharing prefixes: at each level every prefix that has a choice of codes is decoded once a history. Of
the whole catalogue it is the oracle of small ones; of a few items, what fusion asks one route about another's.

Shapes: B rows, N items, C items asked about, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from macrec_pipeline.recommender.retrieval.tree_walk import PrefixTreeWalk

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import CrossAttentionCache, GenerativeRecommender
    from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree
    from macrec_pipeline.recommender.retrieval.ranking import Ranked


NO_NODE = torch.iinfo(torch.int64).max
# Items scored at once, over all rows, when the whole catalogue is: bounds memory.
ITEMS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Agreement:
    """How far a beam search finds what exact scoring finds.

    Attributes:
        same_set: share of histories whose best items are the same set.
        overlap: mean share of the exact best items that the beam has among its own.
    """

    same_set: float
    overlap: float


@torch.no_grad()
def score_items(
    model: GenerativeRecommender,
    memory: CrossAttentionCache,
    index: PrefixTree,
    items: torch.Tensor,
    *,
    modality: str,
    forbidden: torch.Tensor | None = None,
) -> torch.Tensor:
    """Score items as `beam_search` scores those that it finds.

    Args:
        memory: of the B histories; its bias is the same for all items.
        items: int64 [B, C], -1 where a row asks about fewer.
        modality: of the IDs, "text" or "image".
        forbidden: bool [B, N], items that a row must not get; they score minus infinity.

    Returns:
        float [B, C], mean log-probability a code in nats, among the items that are allowed; minus infinity for -1.
    """
    asked = items.clamp(min=0)
    row = torch.arange(len(items), device=items.device)[:, None]
    totals = torch.zeros(items.shape, device=items.device)
    walk = PrefixTreeWalk(model, memory, index, modality=modality, forbidden=forbidden)
    prefixes, parents = torch.zeros(len(items), 1, dtype=torch.int64, device=items.device), None
    for depth in range(index.num_levels):
        if depth > 0:
            longer = _distinct(index.nodes_of(asked, depth=depth), items >= 0)
            above = index.parents(longer.clamp(min=0), depth=depth)
            parents = torch.searchsorted(_last_if_none(prefixes), above).clamp(max=prefixes.shape[1] - 1)
            prefixes = longer
        children = walk.step(prefixes, parents)
        num_nodes = index.num_nodes(depth=depth + 1)
        known = children.row * num_nodes + children.node  # ascending
        wanted = row * num_nodes + index.nodes_of(asked, depth=depth + 1)
        place = torch.searchsorted(known, wanted).clamp(max=max(0, len(known) - 1))
        if not len(known):
            return totals.fill_(float("-inf"))
        found = known[place] == wanted  # what is gone is no child
        totals += torch.where(found, children.log_probability[place], float("-inf"))
    return totals.masked_fill_(items < 0, float("-inf")) / index.num_levels


def score_catalogue(
    model: GenerativeRecommender,
    memory: CrossAttentionCache,
    index: PrefixTree,
    *,
    modality: str,
    forbidden: torch.Tensor | None = None,
    items_at_once: int = ITEMS_AT_ONCE,
) -> torch.Tensor:
    """`score_items` of all items: float [B, N]; of `items_at_once` over all rows, which changes no number."""
    everything = torch.arange(index.num_items, device=memory.device)
    scores = []
    size = max(1, items_at_once // index.num_items)
    for begin in range(0, memory.num_rows, size):
        part = memory.rows(slice(begin, begin + size))
        gone = None if forbidden is None else forbidden[begin : begin + size]
        asked = everything.expand(part.num_rows, -1)
        scores.append(score_items(model, part, index, asked, modality=modality, forbidden=gone))
    return torch.cat(scores)


def agreement(found: Sequence[Ranked], exact: Sequence[Ranked], *, cutoff: int = 10) -> Agreement:
    """Compare the first `cutoff` items of each history's two lists, whatever their order.

    Args:
        found, exact: one a history, at least one history, none of the exact lists empty.
    """
    shares = []
    same = 0
    for mine, oracle in zip(found, exact, strict=True):
        have, wanted = (set(ranked.item_indices[:cutoff].tolist()) for ranked in (mine, oracle))
        same += have == wanted
        shares.append(len(have & wanted) / len(wanted))
    return Agreement(same / len(shares), sum(shares) / len(shares))


def _distinct(nodes: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Each row's distinct nodes that are counted, ascending: int64 [B, C] -> int64 [B, at most C], then -1."""
    ordered = nodes.masked_fill(~counted, NO_NODE).sort(dim=1).values
    repeated = torch.zeros_like(counted)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    kept = ordered.masked_fill(repeated, NO_NODE).sort(dim=1).values
    width = max(1, int((kept != NO_NODE).sum(dim=1).max()))
    return kept[:, :width].masked_fill(kept[:, :width] == NO_NODE, -1)


def _last_if_none(nodes: torch.Tensor) -> torch.Tensor:
    """What `_distinct` gave, ascending to the end."""
    return nodes.masked_fill(nodes < 0, NO_NODE)
