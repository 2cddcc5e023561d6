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

from macrec_pipeline.recommender.expansion import PREFIXES_AT_ONCE, expand

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender, Memory
    from macrec_pipeline.recommender.prefix_index import PrefixIndex
    from macrec_pipeline.recommender.ranking import Ranked


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
    memory: Memory,
    index: PrefixIndex,
    items: torch.Tensor,
    *,
    modality: str,
    forbidden: torch.Tensor | None = None,
    prefixes_at_once: int = PREFIXES_AT_ONCE,
) -> torch.Tensor:
    """Score items as `beam_search` scores those that it finds.

    Args:
        memory: of the B histories; its bias is the same for all items.
        items: int64 [B, C], -1 where a row asks about fewer.
        modality: of the IDs, "text" or "image".
        forbidden: bool [B, N], items that a row must not get; they score minus infinity.
        prefixes_at_once: decoded together, over all rows.

    Returns:
        float [B, C], mean log-probability a code in nats, among the items that are allowed; minus infinity for -1.
    """
    asked = items.clamp(min=0)
    row = torch.arange(len(items), device=items.device)[:, None]
    totals = torch.zeros(items.shape, device=items.device)
    for depth in range(index.num_levels):
        prefixes = _distinct(index.nodes_of(asked, depth=depth), items >= 0)
        gone = None if forbidden is None else index.exhausted(forbidden, depth=depth + 1)
        children = expand(
            model, memory, index, prefixes, depth=depth, modality=modality, gone=gone, prefixes_at_once=prefixes_at_once
        )
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
    memory: Memory,
    index: PrefixIndex,
    *,
    modality: str,
    forbidden: torch.Tensor | None = None,
    prefixes_at_once: int = PREFIXES_AT_ONCE,
) -> torch.Tensor:
    """`score_items` of all items: float [B, N]."""
    everything = torch.arange(index.num_items, device=memory.device).expand(memory.num_rows, -1)
    return score_items(
        model, memory, index, everything, modality=modality, forbidden=forbidden, prefixes_at_once=prefixes_at_once
    )


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
    nothing = torch.iinfo(nodes.dtype).max
    ordered = nodes.masked_fill(~counted, nothing).sort(dim=1).values
    first = torch.ones_like(counted)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first &= ordered != nothing
    count = first.sum(dim=1)
    kept = ordered.masked_fill(~first, nothing).sort(dim=1).values[:, : max(1, int(count.max()))]
    return kept.masked_fill(kept == nothing, -1)
