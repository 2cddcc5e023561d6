"""Fusing retrieval routes into one ranking: by the published rule (MACRec section 3.4), or by a calibrated rule.

The published rule takes two routes. An item that both found scores the average of its two scores plus one; any other
item keeps its own score. Scores are mean log-probabilities, which are never above zero, so an item on which the routes
agree usually outranks everything that only one of them found.

A calibrated rule takes any number of routes. Let s_r be the log-probability that route r gives to an item's whole ID,
and w_r the weight of the route; weights are non-negative and sum to one. The item scores log(sum_r w_r exp(s_r)) under
a "mixture" and sum_r w_r s_r under a "product". Every route scores every candidate, including candidates that only
another route found. `fusion_fitting` chooses the rule and the weights on the validation targets.

Shapes (docs/notation.md): B batch rows, C candidate items per row, N items, W and W' beams per route.
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
    """A calibrated rule, and how it was fitted.

    Attributes:
        rule: "mixture" or "product" of the routes' distributions.
        weights: weight of each route in [0, 1]; they sum to 1.
        validation_ndcg: NDCG@10 of the rule on the validation targets that it was fitted on.
        num_users: number of those targets, one per user.
        recommend_seen: whether items of the history may be recommended; False if no validation target had occurred
            before in its history.
    """

    rule: Literal["mixture", "product"]
    weights: dict[str, float]
    validation_ndcg: float
    num_users: int
    recommend_seen: bool = True

    @staticmethod
    def from_description(values: Mapping[str, Any], *, where: str) -> CalibratedFusion:
        """Build a rule from the fields that `dataclasses.asdict` gives.

        Raises:
            StorageError: the values do not describe a rule. The message names their location, `where`.
        """
        if "text_weight" in values:
            raise StorageError(
                f"{where} is {dict(values)}: an older version fitted it, with a single weight for two routes. "
                "Materialize `recommender` again."
            )
        try:
            fusion = CalibratedFusion(**values)
            weights = list(fusion.weights.values())
            valid = fusion.rule in ("mixture", "product") and all(0 <= weight <= 1 for weight in weights)
            valid = valid and math.isclose(sum(weights), 1, abs_tol=1e-6) and isinstance(fusion.recommend_seen, bool)
        except (TypeError, AttributeError):
            valid = False
        if not valid:
            raise StorageError(
                f"{where} is {dict(values)}, which is not a valid fusion rule. Expected `rule` (mixture or product), "
                "`weights` (a number in [0, 1] per route, with sum 1), `validation_ndcg` and `num_users`. "
                "Materialize `recommender` again."
            )
        return fusion


@dataclass(frozen=True)
class Candidates:
    """The items that at least one route found, scored by every route.

    Attributes:
        items: int64 [B, C], -1 where there is no item or the item is already in an earlier column.
        scores: per route float [B, C], the log-probability of the item's whole ID in nats; arbitrary where there is no
            item.
        num_generative: number of leading columns that generative routes found. The columns after them come from the
            collaborative route.
    """

    items: torch.Tensor
    scores: dict[str, torch.Tensor]
    num_generative: int


def fuse_published(first: Beams, second: Beams) -> Beams:
    """Fuse two routes by the published rule.

    Args:
        first, second: [B, W] each.

    Returns:
        [B, 2 W], best first; equal scores are ordered by item index.
    """
    place = places_in(second.items, first.items)  # [B, W]
    agreed = place >= 0
    partner_score = second.scores.gather(1, place.clamp(min=0))
    scores = torch.where(agreed, (first.scores + partner_score) / 2 + AGREEMENT_BONUS, first.scores)
    # agreed items count with the first route
    remaining = torch.where(places_in(first.items, second.items) >= 0, float("-inf"), second.scores)
    return _sorted_by_score(torch.cat([first.items, second.items], dim=1), torch.cat([scores, remaining], dim=1))


def fuse_calibrated(candidates: Candidates, fusion: CalibratedFusion) -> Beams:
    """Fuse any number of routes by a calibrated rule.

    If the collaborative route has no weight, items that only it found are left out, so the result equals that of the
    other routes alone.

    Returns:
        [B, C], best first; equal scores are ordered by item index. The scores are log-probabilities of whole IDs, not
        means over the L levels; those of a product are not normalised.
    """
    num_columns = candidates.items.shape[1] if fusion.weights.get(COLLABORATIVE) else candidates.num_generative
    # the candidates' order of routes is fixed, and the order of a sum decides its last bits
    routes = [(fusion.weights.get(route, 0.0), scores[:, :num_columns]) for route, scores in candidates.scores.items()]
    weighted = [(weight, scores) for weight, scores in routes if weight > 0]
    if fusion.rule == "product":
        scores = functools.reduce(torch.add, [weight * scores for weight, scores in weighted])
    else:
        scores = functools.reduce(torch.logaddexp, [scores + math.log(weight) for weight, scores in weighted])
    items = candidates.items[:, :num_columns]
    return _sorted_by_score(items, scores.masked_fill(items < 0, float("-inf")))


def distinct_candidates(items_of_routes: Sequence[torch.Tensor]) -> torch.Tensor:
    """Join the items of several routes, int64 [B, W] each, to [B, sum of W], with -1 for every repetition."""
    items = torch.cat(list(items_of_routes), dim=1)
    ordered, position = items.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ordered, dtype=torch.bool)
    repeated[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return items.masked_fill(torch.zeros_like(repeated).scatter_(1, position, repeated), -1)


def append_missing(beams: Beams, more: Beams) -> Beams:
    """Append the items of `more` that `beams` lacks: [B, W] and [B, W'] -> [B, W + W'], padding last."""
    items = distinct_candidates([beams.items, more.items])
    order = (items < 0).to(torch.uint8).argsort(dim=1, stable=True)
    return Beams(items.gather(1, order), torch.cat([beams.scores, more.scores], dim=1).gather(1, order))


def best_items(log_probabilities: torch.Tensor, *, width: int) -> Beams:
    """Select the most probable items of a distribution over the catalogue.

    Args:
        log_probabilities: float [B, N]; minus infinity for an item that the row must not receive.
        width: number of items to select.

    Returns:
        [B, min(N, width)], best first; equal scores are ordered by item index. The scores are the log-probabilities.
    """
    best = log_probabilities.topk(min(width, log_probabilities.shape[1]), dim=1)
    return _sorted_by_score(best.indices, best.values)


def places_in(items: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Find the column of each wanted item: int64 [B, W] and [B, W'] -> int64 [B, W'], -1 where a row lacks the item.

    Rows list an item at most once; -1 in `wanted` is padding and has no place. Memory is linear in W and W'.
    """
    ordered, column = items.sort(dim=1)
    place = torch.searchsorted(ordered, wanted.contiguous()).clamp(max=items.shape[1] - 1)
    found = (ordered.gather(1, place) == wanted) & (wanted >= 0)
    return torch.where(found, column.gather(1, place), -1)


def _sorted_by_score(items: torch.Tensor, scores: torch.Tensor) -> Beams:
    """Sort by score, then by item index; items with a score of minus infinity become -1."""
    order = items.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    items, scores = items.gather(1, order), scores.gather(1, order)
    return Beams(torch.where(scores.isfinite(), items, -1), scores)
