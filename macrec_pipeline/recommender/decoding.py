"""From histories to ranked items: encode, search each route, fuse.

The generative routes, text and image, are searched with a beam; the collaborative one, SASRec, scores every item.

Shapes: B rows, N items, W beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.beam_search import Beams, beam_search
from macrec_pipeline.recommender.collaborative import log_probabilities
from macrec_pipeline.recommender.exact_scoring import score_catalogue
from macrec_pipeline.recommender.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    Candidates,
    best_items,
    fuse,
    fuse_candidates,
    gather_candidates,
)
from macrec_pipeline.recommender.objective import ItemCodes, encode_histories
from macrec_pipeline.recommender.prefix_index import PrefixIndex
from macrec_pipeline.recommender.ranking import Ranked, as_ranked, seen_items
from macrec_pipeline.recommender.tasks import Batch, receptive_field
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender
    from macrec_pipeline.recommender.sasrec import Sasrec


class Decoder:
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
        self.indices = {route: PrefixIndex(items.codes[route], codebook_size=size) for route in self.generative}

    def rank(
        self,
        histories: Sequence[np.ndarray],
        *,
        routes: Sequence[str],
        top_k: int,
        beam_width: int,
        batch_size: int,
        exclude_seen: bool = False,
        progress: Progress = quiet_progress,
    ) -> dict[str, list[Ranked]]:
        """Rank the catalogue for every history.

        Args:
            histories: int64 [T] item indices each, T >= 1, oldest first.
            routes: "fused" or any of `self.routes`; a route is searched once for all that need it.
            top_k: items returned; a narrower beam is widened to it.
            beam_width: W, beams a route.
            batch_size: histories decoded at once.
            exclude_seen: never return an item of the history, however long ago.

        Returns:
            For each asked route one `Ranked` a history, in the order given.
        """
        results: dict[str, list[Ranked]] = {
            route: [Ranked(np.empty(0), np.empty(0))] * len(histories) for route in routes
        }
        order = np.argsort([len(history) for history in histories], kind="stable")  # like lengths share a batch
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            batch = [histories[index] for index in chosen]
            beams = self._beams(batch, routes, max(beam_width, top_k), self._seen(batch) if exclude_seen else None)
            for route in routes:
                for index, found in zip(chosen, as_ranked(beams[route], top_k), strict=True):
                    results[route][index] = found
            progress("decoding", min(begin + batch_size, len(order)), len(order))
        return results

    def exact_scores(self, histories: Sequence[np.ndarray], *, route: str) -> torch.Tensor:
        """Score the whole catalogue for a few histories by one route, without a beam: float [B, N] on the device.

        Mean nats a code by a generative route, nats by the collaborative one.
        """
        if route == COLLABORATIVE and self.collaborative is not None:
            return log_probabilities(self.collaborative, histories)
        memory, bias = self._encode(histories, route)
        return score_catalogue(self.model, memory, bias, self.indices[route], modality=route)

    def candidates(self, histories: Sequence[np.ndarray], *, width: int) -> Candidates:
        """What all routes find with `width` beams, seen items allowed, and what each says of it: for fitting fusion."""
        beams = {route: self.search(histories, route, width) for route in self.generative}
        exact = None if self.collaborative is None else log_probabilities(self.collaborative, histories)
        return self._gather(beams, exact, width)

    def _beams(
        self, batch: Sequence[np.ndarray], routes: Sequence[str], width: int, forbidden: torch.Tensor | None
    ) -> dict[str, Beams]:
        """The beams of the routes that are asked for."""
        fused = "fused" in routes
        beams = {
            route: self.search(batch, route, width, forbidden) for route in self.generative if fused or route in routes
        }
        exact = None
        # a route that validation gave no weight changes nothing, so it is not asked
        weighed = fused and self.fusion is not None and self.fusion.weights.get(COLLABORATIVE, 0) > 0
        if self.collaborative is not None and (weighed or COLLABORATIVE in routes):
            exact = log_probabilities(self.collaborative, batch, forbidden=forbidden)
        if fused:
            beams["fused"] = self._fuse(beams, exact, width)
        if exact is not None and COLLABORATIVE in routes:
            beams[COLLABORATIVE] = best_items(exact, width=width)
        return beams

    def _fuse(self, beams: dict[str, Beams], exact: torch.Tensor | None, width: int) -> Beams:
        """All generative routes' beams, and the collaborative scores [B, N] if they count, as one ranking."""
        if self.fusion is not None:
            return fuse_candidates(self._gather(beams, exact, width), self.fusion)
        return next(iter(beams.values())) if len(beams) == 1 else fuse(*beams.values())

    def _gather(self, beams: dict[str, Beams], exact: torch.Tensor | None, width: int) -> Candidates:
        num_levels = self.model.vocabulary.num_levels
        return gather_candidates(beams, num_levels=num_levels, collaborative=exact, width=width)

    def _encode(self, histories: Sequence[np.ndarray], route: str) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            batch = self._batch(histories)
            return encode_histories(self.model, self.items, batch, task=f"{route}_to_{route}", source=route)

    def search(
        self, histories: Sequence[np.ndarray], route: str, width: int, forbidden: torch.Tensor | None = None
    ) -> Beams:
        """The items that one route finds for a batch of histories with `width` beams; `forbidden` bool [B, N]."""
        memory, bias = self._encode(histories, route)
        return beam_search(
            self.model, memory, bias, self.indices[route], modality=route, beam_width=width, forbidden=forbidden
        )

    def _batch(self, histories: Sequence[np.ndarray]) -> Batch:
        """The items that matter of each history, padded; the target is unknown, and a placeholder."""
        recent = [history[-receptive_field(self.model.config) :] for history in histories]
        device = self.model.t5.device
        length = torch.tensor([len(history) for history in recent])
        read = torch.zeros(len(recent), int(length.max()), dtype=torch.int64)
        inside = torch.arange(read.shape[1]) < length[:, None]
        read[inside] = torch.from_numpy(np.concatenate(recent).astype(np.int64))
        targets = torch.zeros(len(recent), 1, dtype=torch.int64)
        return Batch(read, length, targets, targets.bool(), 0, True).to(device)

    def _seen(self, histories: Sequence[np.ndarray]) -> torch.Tensor:
        return seen_items(histories, num_items=self.items.num_items).to(self.model.t5.device)
