"""Fusing the routes: two by the published rule (MACRec section 3.4), or any number by a calibrated one.

Published: an item that both routes found scores the average of its two scores plus one, any other its own score; since
scores are mean log-probabilities, never above zero, agreement within reach outranks everything that one route found
alone.

Calibrated: with s_r the log-probability that route r gives to an item (to its whole ID), it scores
log(sum_r w_r exp(s_r)) as a mixture or sum_r w_r s_r as a product; the weights are not negative and sum to one. Every
route scores every candidate, also those that only another one found. `calibration` picks the weights, the rule, and
whether seen items may come back, on the validation targets.

Shapes: B rows, N items, W beams a route, C candidates, the items of all routes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.retrieval.beam_search import Beams

AGREEMENT_BONUS = 1.0
COLLABORATIVE = "collaborative"


@dataclass(frozen=True)
class CalibratedFusion:
    """A calibrated rule and how it was found.

    Attributes:
        rule: "mixture" or "product" of the routes' distributions.
        weights: route -> w, each in [0, 1], together 1.
        validation_ndcg: NDCG@10 of the rule on the validation targets that it was chosen on.
        num_users: validation targets that it was chosen on.
        recommend_seen: whether items of the history may come back; False where nobody was seen to take one twice.
    """

    rule: Literal["mixture", "product"]
    weights: dict[str, float]
    validation_ndcg: float
    num_users: int
    recommend_seen: bool = True

    @staticmethod
    def from_description(values: Mapping[str, Any], *, where: str) -> CalibratedFusion:
        """What `dataclasses.asdict` gave; raises `StorageError`, naming `where`, for anything else."""
        if "text_weight" in values:
            raise StorageError(
                f"{where} is {dict(values)}: it was fitted by an older version, which knew one weight for two routes. "
                "Materialize `recommender` again."
            )
        try:
            fusion = CalibratedFusion(**values)
            shares = list(fusion.weights.values())
            valid = fusion.rule in ("mixture", "product") and all(0 <= share <= 1 for share in shares)
            valid = valid and math.isclose(sum(shares), 1, abs_tol=1e-6) and isinstance(fusion.recommend_seen, bool)
        except (TypeError, AttributeError):
            valid = False
        if not valid:
            raise StorageError(
                f"{where} is {dict(values)}; it needs rule (mixture or product), weights (route -> a share in [0, 1], "
                "together 1), validation_ndcg and num_users. Materialize `recommender` again."
            )
        return fusion


@dataclass(frozen=True)
class Candidates:
    """The items that at least one route found, with every route's opinion of each.

    Attributes:
        items: int64 [B, C], -1 where there is none or the item is in an earlier column.
        scores: route -> float [B, C], log-probability in nats of the item (of its whole ID); arbitrary where there is
            no item.
        num_generative: columns of items that a generative route found; those of the collaborative route come after.
    """

    items: torch.Tensor
    scores: dict[str, torch.Tensor]
    num_generative: int


def fuse(first: Beams, second: Beams) -> Beams:
    """Merge two routes' items; [B, W] each -> [B, 2 W], best first, equal scores by the lower item index."""
    same = (first.items[:, :, None] == second.items[:, None, :]) & (first.items >= 0)[:, :, None]  # [B, W, W]
    partner = torch.where(same, second.scores[:, None, :], 0.0).sum(dim=2)  # an item is at most once in a route
    agreed = same.any(dim=2)
    scores = torch.where(agreed, (first.scores + partner) / 2 + AGREEMENT_BONUS, first.scores)
    remaining = torch.where(same.any(dim=1), float("-inf"), second.scores)  # counted with the first route
    return ranked(torch.cat([first.items, second.items], dim=1), torch.cat([scores, remaining], dim=1))


def distinct_candidates(found: Sequence[torch.Tensor]) -> torch.Tensor:
    """The items of several routes, int64 [B, W] each -> int64 [B, sum of W]; -1 where the same came before."""
    items = torch.cat(list(found), dim=1)
    ordered, place = items.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return items.masked_fill(torch.zeros_like(repeated).scatter_(1, place, repeated), -1)


def filled_up(beams: Beams, more: Beams) -> Beams:
    """The items of `beams`, then those of `more` that it lacks: [B, W] and [B, V] -> [B, W + V], with -1 last."""
    items = distinct_candidates([beams.items, more.items])
    order = (items < 0).to(torch.uint8).argsort(dim=1, stable=True)
    return Beams(items.gather(1, order), torch.cat([beams.scores, more.scores], dim=1).gather(1, order))


def fuse_candidates(candidates: Candidates, fusion: CalibratedFusion) -> Beams:
    """Rank the candidates by a calibrated rule: [B, C], best first, ties by item index.

    The scores are log-probabilities of whole IDs (a product's are not normalised), not means over the L levels. Where
    the collaborative route has no weight, what it alone found is left out: the result is that of the other routes.
    """
    counted = candidates.items.shape[1] if fusion.weights.get(COLLABORATIVE) else candidates.num_generative
    # in the candidates' order of routes: sums in another order, as of a file's keys, would differ in the last bits
    weights = [(fusion.weights.get(route, 0.0), scores[:, :counted]) for route, scores in candidates.scores.items()]
    weighed = [(share, scores) for share, scores in weights if share > 0]
    if fusion.rule == "product":
        scores = functools.reduce(torch.add, [share * scores for share, scores in weighed])
    else:
        scores = functools.reduce(torch.logaddexp, [scores + math.log(share) for share, scores in weighed])
    items = candidates.items[:, :counted]
    return ranked(items, scores.masked_fill(items < 0, float("-inf")))


def best_items(log_probabilities: torch.Tensor, *, width: int) -> Beams:
    """The most probable items: float [B, N] -> [B, min(N, width)], best first, ties by item index.

    The scores stay log-probabilities of items; minus infinity is an item that a row must not get.
    """
    best = log_probabilities.topk(min(width, log_probabilities.shape[1]), dim=1)
    return ranked(best.indices, best.values)


def ranked(items: torch.Tensor, scores: torch.Tensor) -> Beams:
    """Sort by score, then by item index; items that score minus infinity become -1."""
    order = items.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    items, scores = items.gather(1, order), scores.gather(1, order)
    return Beams(torch.where(scores.isfinite(), items, -1), scores)
