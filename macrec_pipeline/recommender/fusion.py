"""Fusing the two routes (MACRec section 3.4), by the published rule or by a calibrated one.

Published: an item that both routes found scores the average of its two scores plus one, any other its own score; since
scores are mean log-probabilities, never above zero, agreement within reach outranks everything that one route found
alone.

Calibrated: with t and i the log-probabilities that the routes give to an item's whole ID, it scores
log(w exp(t) + (1 - w) exp(i)) as a mixture or w t + (1 - w) i as a product. What a route did not return scores as the
worst that it returned. `calibration` picks w and the rule on the validation targets.

Shapes: B rows, W beams a route.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.beam_search import Beams

AGREEMENT_BONUS = 1.0


@dataclass(frozen=True)
class CalibratedFusion:
    """A calibrated rule and how it was found.

    Attributes:
        rule: "mixture" or "product" of the routes' distributions.
        text_weight: w, in [0, 1]; the image route has the rest.
        validation_ndcg: NDCG@10 of the rule on the validation targets that it was chosen on.
        num_users: validation targets that it was chosen on.
    """

    rule: Literal["mixture", "product"]
    text_weight: float
    validation_ndcg: float
    num_users: int

    @staticmethod
    def from_description(values: Mapping[str, Any], *, where: str) -> CalibratedFusion:
        """What `dataclasses.asdict` gave; raises `StorageError`, naming `where`, for anything else."""
        try:
            fusion = CalibratedFusion(**values)
            valid = fusion.rule in ("mixture", "product") and 0 <= fusion.text_weight <= 1
        except TypeError:
            valid = False
        if not valid:
            raise StorageError(
                f"{where} is {dict(values)}; it needs rule (mixture or product), text_weight in [0, 1], "
                "validation_ndcg and num_users. Materialize `recommender` again."
            )
        return fusion


def fuse(first: Beams, second: Beams) -> Beams:
    """Merge two routes' items; [B, W] each -> [B, 2 W], best first, equal scores by the lower item index."""
    same = (first.items[:, :, None] == second.items[:, None, :]) & (first.items >= 0)[:, :, None]  # [B, W, W]
    partner = torch.where(same, second.scores[:, None, :], 0.0).sum(dim=2)  # an item is at most once in a route
    agreed = same.any(dim=2)
    scores = torch.where(agreed, (first.scores + partner) / 2 + AGREEMENT_BONUS, first.scores)
    remaining = torch.where(same.any(dim=1), float("-inf"), second.scores)  # counted with the first route
    return ranked(torch.cat([first.items, second.items], dim=1), torch.cat([scores, remaining], dim=1))


def fuse_calibrated(text: Beams, image: Beams, fusion: CalibratedFusion, *, num_levels: int) -> Beams:
    """Merge two routes' items by a calibrated rule; [B, W] each -> [B, 2 W], best first, ties by item index.

    The scores are log-probabilities of whole IDs (a product's are not normalised), not means over the L levels.
    """
    same = (text.items[:, :, None] == image.items[:, None, :]) & (text.items >= 0)[:, :, None]  # [B, W, W]
    text_total, image_total = text.scores * num_levels, image.scores * num_levels
    of_text = torch.where(same, image_total[:, None, :], 0.0).sum(dim=2)  # an item is at most once in a route
    of_text = torch.where(same.any(dim=2), of_text, _floor(image, image_total))
    first = _combine(text_total, of_text, fusion).masked_fill(text.items < 0, float("-inf"))
    # what the text route found too was counted with it
    counted = same.any(dim=1) | (image.items < 0)
    second = _combine(_floor(text, text_total), image_total, fusion).masked_fill(counted, float("-inf"))
    return ranked(torch.cat([text.items, image.items], dim=1), torch.cat([first, second], dim=1))


def _floor(beams: Beams, totals: torch.Tensor) -> torch.Tensor:
    """The worst score that a route returned in each row, [B, 1]; both routes return something or neither does."""
    return totals.masked_fill(beams.items < 0, float("inf")).amin(dim=1, keepdim=True)


def _combine(text: torch.Tensor, image: torch.Tensor, fusion: CalibratedFusion) -> torch.Tensor:
    weight = fusion.text_weight
    if fusion.rule == "product":
        return weight * text + (1 - weight) * image
    of_text, of_image = (math.log(share) if share else float("-inf") for share in (weight, 1 - weight))
    return torch.logaddexp(text + of_text, image + of_image)


def ranked(items: torch.Tensor, scores: torch.Tensor) -> Beams:
    """Sort by score, then by item index; items that score minus infinity become -1."""
    order = items.argsort(dim=1, stable=True)
    order = order.gather(1, scores.gather(1, order).argsort(dim=1, descending=True, stable=True))
    items, scores = items.gather(1, order), scores.gather(1, order)
    return Beams(torch.where(scores.isfinite(), items, -1), scores)
