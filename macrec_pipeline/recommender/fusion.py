"""Fusing the two routes (MACRec section 3.4).

An item that both routes found scores the average of its two scores plus one, any other its own score; since scores are
mean log-probabilities, never above zero, agreement within reach outranks everything that one route found alone.

Shapes: B rows, W beams a route.
"""

from __future__ import annotations

import torch

from macrec_pipeline.recommender.beam_search import Beams

AGREEMENT_BONUS = 1.0


def fuse(first: Beams, second: Beams) -> Beams:
    """Merge two routes' items; [B, W] each -> [B, 2 W], best first, equal scores by the lower item index."""
    same = (first.items[:, :, None] == second.items[:, None, :]) & (first.items >= 0)[:, :, None]  # [B, W, W]
    partner = torch.where(same, second.scores[:, None, :], 0.0).sum(dim=2)  # an item is at most once in a route
    agreed = same.any(dim=2)
    scores = torch.where(agreed, (first.scores + partner) / 2 + AGREEMENT_BONUS, first.scores)
    remaining = torch.where(same.any(dim=1), float("-inf"), second.scores)  # counted with the first route
    return ranked(torch.cat([first.items, second.items], dim=1), torch.cat([scores, remaining], dim=1))


def ranked(items: torch.Tensor, scores: torch.Tensor) -> Beams:
    """Sort by score, then by item index; items that score minus infinity become -1."""
    order = items.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    items, scores = items.gather(1, order), scores.gather(1, order)
    return Beams(torch.where(scores.isfinite(), items, -1), scores)
