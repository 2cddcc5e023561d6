"""The log-probability of every item, without a beam: the oracle of small catalogues.

Teacher-forced and sharing prefixes: at each level every prefix that has a choice of codes is decoded once a history,
as a target of the one encoder pass. An only child is certain, and most prefixes of the last levels have one: nothing is
decoded for those. What a beam search returns can be held against it.

Shapes: B rows, S encoder tokens, A heads, N items, L levels, K codes, M prefixes of a level, C prefixes of a chunk,
D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender
    from macrec_pipeline.recommender.prefix_index import PrefixIndex
    from macrec_pipeline.recommender.ranking import Ranked

# Prefixes decoded at once, over all rows: bounds memory, changes no number.
PREFIXES_AT_ONCE = 4096


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
def score_catalogue(
    model: GenerativeRecommender,
    memory: torch.Tensor,
    memory_bias: torch.Tensor,
    index: PrefixIndex,
    *,
    modality: str,
    forbidden: torch.Tensor | None = None,
    prefixes_at_once: int = PREFIXES_AT_ONCE,
) -> torch.Tensor:
    """Score all items as `beam_search` scores those that it finds.

    Args:
        memory: float [B, S, D] from `model.encode`.
        memory_bias: float broadcastable to [B, A, 1, S].
        modality: of the IDs, "text" or "image".
        forbidden: bool [B, N], items that a row must not get; they score minus infinity.
        prefixes_at_once: decoded together, over all rows.

    Returns:
        float [B, N], mean log-probability a code in nats, among the items that are allowed.
    """
    rows = len(memory)
    chunk = max(1, prefixes_at_once // rows)
    totals = torch.zeros(rows, 1, device=memory.device)
    for level in range(index.num_levels):
        prefixes, longer = index.prefixes(depth=level), index.prefixes(depth=level + 1)
        parent = _parents(longer)  # [M of the level below]
        gone = None if forbidden is None else index.exhausted(forbidden, depth=level + 1)
        steps = torch.zeros(rows, len(longer), device=memory.device)
        for nodes in torch.split(torch.nonzero(torch.bincount(parent) > 1).flatten(), chunk):
            inputs = model.decoder_inputs(prefixes[nodes], modality=modality).repeat(rows, 1, 1)
            states = model.decode(inputs, memory, memory_bias)[:, :, -1:]  # [B, C, 1, D]
            logits = model.code_logits(states, modality=modality, first_level=level)[:, :, 0]  # [B, C, K]
            below = torch.nonzero(torch.isin(parent, nodes)).flatten()
            slot, code = torch.searchsorted(nodes, parent[below]), longer[below, -1]
            legal = torch.zeros_like(logits, dtype=torch.bool)
            legal[:, slot, code] = True if gone is None else ~gone[:, below]
            distribution = torch.log_softmax(logits.masked_fill(~legal, float("-inf")), dim=-1)
            steps[:, below] = distribution[:, slot, code]
        if gone is not None:  # a prefix with nothing left has no distribution, an only child may be forbidden
            steps = steps.masked_fill(gone, float("-inf"))
        totals = totals[:, parent] + steps
    scores = torch.empty_like(totals)
    scores[:, index.items(torch.arange(index.num_items, device=memory.device))] = totals / index.num_levels
    return scores


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


def _parents(prefixes: torch.Tensor) -> torch.Tensor:
    """Distinct prefixes int64 [M, l + 1] in lexicographic order -> each one's node at depth l, int64 [M]."""
    differs = (prefixes[1:, :-1] != prefixes[:-1, :-1]).any(dim=1)
    return torch.cat([differs.new_zeros(1, dtype=torch.int64), differs.cumsum(dim=0)])
