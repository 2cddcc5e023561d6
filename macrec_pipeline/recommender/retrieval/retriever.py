"""From histories to ranked items: encode, search each route, fuse.

The generative routes, text and image, are searched with a beam; the collaborative one, SASRec, scores every item.

Shapes: B rows, N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.retrieval.beam_search import Beams
from macrec_pipeline.recommender.retrieval.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    filled_up,
    fuse,
    fuse_candidates,
)
from macrec_pipeline.recommender.retrieval.prefix_tree import PrefixTree
from macrec_pipeline.recommender.retrieval.ranking import Ranked, as_ranked
from macrec_pipeline.recommender.retrieval.reading import BatchRetrieval
from macrec_pipeline.recommender.training.batching import batches_by_length, receptive_field
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
    from macrec_pipeline.recommender.retrieval.eligible_items import EligibleItems
    from macrec_pipeline.recommender.sasrec.model import Sasrec


class MultiRouteRetriever:
    """A trained model with the prefix index of each of its routes, and SASRec beside it as a route of its own.

    Args:
        model: in evaluation mode.
        items: the catalogue's codes, on the model's device.
        fusion: the rule that fuses the routes; None is the published one, which leaves the collaborative route out.
        collaborative: a trained SASRec on the same device, in evaluation mode; None for no such route.

    Attributes:
        generative: the routes that the model was trained for, of "text" and "image".
        routes: those, and "collaborative" where there is a SASRec.
    """

    def __init__(
        self,
        model: GenerativeRecommender,
        items: ItemCodes,
        *,
        fusion: CalibratedFusion | None = None,
        collaborative: Sasrec | None = None,
    ) -> None:
        self.model, self.items, self.fusion, self.collaborative = model, items, fusion, collaborative
        size = model.vocabulary.codebook_size
        self.generative = [route for route in items.codes if f"{route}_to_{route}" in model.config.tasks]
        self.routes = self.generative + ([COLLABORATIVE] if collaborative is not None else [])
        self.indices = {route: PrefixTree(items.codes[route], codebook_size=size) for route in self.generative}

    def rank(
        self,
        histories: Sequence[np.ndarray],
        *,
        routes: Sequence[str],
        top_k: int,
        beam_width: int,
        batch_size: int,
        exclude_seen: bool = False,
        legal: EligibleItems | None = None,
        progress: Progress = quiet_progress,
    ) -> dict[str, list[Ranked]]:
        """Rank the catalogue for every history.

        Args:
            histories: int64 [T] item indices each, T >= 1, oldest first.
            routes: "fused" or any of `self.routes`; a route is searched once for all that need it.
            top_k: items returned; a narrower beam is widened to it.
            beam_width: W, beams a route, or more where rules leave few items.
            batch_size: histories decoded at once.
            exclude_seen: never return an item of the history, however long ago; where it is False, a calibrated rule
                may still have learned to.
            legal: what business rules leave of the catalogue, one row a history or one for all; None for everything.
                They change no item's score, and min(k, legal items) come back.

        Returns:
            For each asked route one `Ranked` a history, in the order given.
        """
        results: dict[str, list[Ranked]] = {
            route: [Ranked(np.empty(0), np.empty(0))] * len(histories) for route in routes
        }
        width, done = max(beam_width, top_k), 0
        width = width if legal is None else legal.widened(width)
        for chosen in self.batches(histories, batch_size=batch_size):
            mask = None if legal is None else legal.mask(chosen).to(self.model.t5.device)
            reading = BatchRetrieval(self, [histories[index] for index in chosen], legal=mask)
            for route in routes:
                if route == "fused":
                    beams = self._fused(reading, top_k=top_k, width=width, exclude_seen=exclude_seen)
                else:
                    beams = reading.beams(route, width=width, exclude_seen=exclude_seen)
                for index, found in zip(chosen, as_ranked(beams, top_k), strict=True):
                    results[route][index] = found
            done += len(chosen)
            progress("decoding", done, len(histories))
        return results

    def batches(self, histories: Sequence[np.ndarray], *, batch_size: int) -> Iterator[np.ndarray]:
        """Places of histories of like length, int64 [B] with B <= `batch_size`: each place once, shortest first."""
        lengths = np.minimum([len(history) for history in histories], receptive_field(self.model.config))
        return batches_by_length(lengths, batch_size=batch_size, device=self.model.t5.device)

    def read(self, histories: Sequence[np.ndarray]) -> BatchRetrieval:
        """One batch of histories, int64 [T] item indices each, T >= 1, oldest first, for all routes to look at."""
        return BatchRetrieval(self, histories)

    def exact_scores(self, histories: Sequence[np.ndarray], *, route: str) -> torch.Tensor:
        """Score the whole catalogue for a few histories by one route, without a beam: float [B, N] on the device.

        Mean nats a code by a generative route, nats by the collaborative one.
        """
        return self.read(histories).catalogue(route)

    def _fused(self, reading: BatchRetrieval, *, top_k: int, width: int, exclude_seen: bool) -> Beams:
        """All routes as one ranking: by the calibrated rule if there is one, else the published one."""
        if self.fusion is not None:
            left_out = exclude_seen or not self.fusion.recommend_seen
            beams = self._calibrated(reading, self.fusion, width=width, exclude_seen=left_out)
            if reading.has_rules() and left_out != exclude_seen and _shortest(beams) < top_k:
                # what was learned is no rule of the shop's: it must not make a list of legal items shorter
                seen_too = self._calibrated(reading, self.fusion, width=width, exclude_seen=False)
                return filled_up(beams, seen_too)
            return beams
        routes = [reading.beams(route, width=width, exclude_seen=exclude_seen) for route in self.generative]
        return routes[0] if len(routes) == 1 else fuse(*routes)

    def _calibrated(
        self, reading: BatchRetrieval, fusion: CalibratedFusion, *, width: int, exclude_seen: bool
    ) -> Beams:
        # a route that validation gave no weight changes nothing, so it is not asked
        weighed = [route for route in self.routes if fusion.weights.get(route, 0) > 0]
        return fuse_candidates(reading.candidates(weighed, width=width, exclude_seen=exclude_seen), fusion)


def _shortest(beams: Beams) -> int:
    """The fewest items that a row has."""
    return int((beams.items >= 0).sum(dim=1).min())
