"""From histories to ranked items: encode, search each route, fuse.

Shapes: B rows, N items, W beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.beam_search import Beams, beam_search
from macrec_pipeline.recommender.exact_scoring import score_catalogue
from macrec_pipeline.recommender.fusion import CalibratedFusion, fuse, fuse_calibrated
from macrec_pipeline.recommender.objective import ItemCodes, encode_histories
from macrec_pipeline.recommender.prefix_index import PrefixIndex
from macrec_pipeline.recommender.tasks import Batch, receptive_field
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender


@dataclass(frozen=True)
class Ranked:
    """The recommendations for one history, best first.

    Attributes:
        item_indices: int64 [at most k].
        scores: float64, of the same length; comparable within one history only.
    """

    item_indices: np.ndarray
    scores: np.ndarray


class Decoder:
    """A trained model with the prefix index of each of its routes.

    Args:
        model: in evaluation mode.
        items: the catalogue's codes, on the model's device.
        fusion: the rule that fuses the routes; None is the published one.
    """

    def __init__(
        self, model: GenerativeRecommender, items: ItemCodes, *, fusion: CalibratedFusion | None = None
    ) -> None:
        self.model, self.items, self.fusion = model, items, fusion
        size = model.vocabulary.codebook_size
        self.routes = [route for route in items.codes if f"{route}_to_{route}" in model.config.tasks]
        self.indices = {route: PrefixIndex(items.codes[route], codebook_size=size) for route in self.routes}

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
            routes: any of "fused", "text", "image"; the beams of a route are searched once for all that need them.
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
        searched = self.routes if "fused" in routes else [route for route in self.routes if route in routes]
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            batch = [histories[index] for index in chosen]
            forbidden = self._seen(batch) if exclude_seen else None
            width = max(beam_width, top_k)
            beams = {route: self.search(batch, route, width, forbidden) for route in searched}
            if "fused" in routes:
                beams["fused"] = self._fuse(beams)
            for route in routes:
                for index, found in zip(chosen, _as_ranked(beams[route], top_k), strict=True):
                    results[route][index] = found
            progress("decoding", min(begin + batch_size, len(order)), len(order))
        return results

    def exact_scores(self, histories: Sequence[np.ndarray], *, route: str) -> torch.Tensor:
        """Score the whole catalogue for a few histories by one route, without a beam: float [B, N] on the device."""
        memory, bias = self._encode(histories, route)
        return score_catalogue(self.model, memory, bias, self.indices[route], modality=route)

    def _fuse(self, beams: dict[str, Beams]) -> Beams:
        if len(beams) == 1:
            return next(iter(beams.values()))
        if self.fusion is None:
            return fuse(*beams.values())
        num_levels = self.model.vocabulary.num_levels
        return fuse_calibrated(beams["text"], beams["image"], self.fusion, num_levels=num_levels)

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

    def _seen(self, histories: list[np.ndarray]) -> torch.Tensor:
        rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
        seen = torch.zeros(len(histories), self.items.num_items, dtype=torch.bool)
        seen[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories).astype(np.int64))] = True
        return seen.to(self.model.t5.device)


def _as_ranked(beams: Beams, top_k: int) -> list[Ranked]:
    items = beams.items[:, :top_k].cpu().numpy()
    scores = beams.scores[:, :top_k].double().cpu().numpy()
    kept = items >= 0
    return [Ranked(row[mask], score[mask]) for row, score, mask in zip(items, scores, kept, strict=True)]
