"""A batch of histories as every route reads it: encoded once a route, searched and scored as often as is asked.

Shapes: B rows, N items, W beams, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from macrec_pipeline.recommender.retrieval.beam_search import Beams, beam_search
from macrec_pipeline.recommender.retrieval.exact_scoring import score_catalogue, score_items
from macrec_pipeline.recommender.retrieval.fusion import COLLABORATIVE, Candidates, best_items, distinct_candidates
from macrec_pipeline.recommender.retrieval.ranking import seen_items
from macrec_pipeline.recommender.retrieval.sasrec_route import log_probabilities
from macrec_pipeline.recommender.training.batching import HistoryBatch, receptive_field
from macrec_pipeline.recommender.training.losses import encode_histories

if TYPE_CHECKING:
    from macrec_pipeline.config import Task
    from macrec_pipeline.recommender.model.generative_recommender import CrossAttentionCache
    from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever

T = TypeVar("T")


class BatchRetrieval:
    """What the routes of a decoder make of some histories; everything is worked out when first asked for, and kept.

    Args:
        decoder: the models and the prefix indices.
        histories: int64 [T] item indices each, T >= 1, oldest first.
        legal: bool [B, N], or [1, N] for all, on the model's device: items that beams and candidates may have; None
            for all items.
    """

    def __init__(
        self, decoder: MultiRouteRetriever, histories: Sequence[np.ndarray], *, legal: torch.Tensor | None = None
    ) -> None:
        self._decoder, self._histories, self._legal = decoder, histories, legal
        self._known: dict[tuple[object, ...], object] = {}

    def beams(self, route: str, *, width: int, exclude_seen: bool) -> Beams:
        """The best items of one route, [B, W]; exact for the collaborative one, by beam search for another."""

        def find() -> Beams:
            if route == COLLABORATIVE:
                scores = self.collaborative(exclude_seen=exclude_seen)
                return best_items(
                    scores if self._legal is None else scores.masked_fill(~self._legal, float("-inf")), width=width
                )
            return beam_search(
                self._decoder.model,
                self._memory(route),
                self._decoder.indices[route],
                modality=route,
                beam_width=width,
                forbidden=self._forbidden(exclude_seen),
                legal=self._legal,
            )

        return self._once(("beams", route, width, exclude_seen), find)

    def candidates(self, routes: Sequence[str], *, width: int, exclude_seen: bool) -> Candidates:
        """The items that the generative routes and those of `routes` found, and what each of `routes` says of them.

        Args:
            routes: of the decoder's, those whose opinion counts.
            width: W of each route.
            exclude_seen: items of a row's history are no candidates of it.
        """
        finders = [*self._decoder.generative, *([COLLABORATIVE] if COLLABORATIVE in routes else [])]
        found = [self.beams(route, width=width, exclude_seen=exclude_seen).items for route in finders]
        items = distinct_candidates(found)
        scores = {route: self._opinion(route, items, exclude_seen=exclude_seen) for route in routes}
        num_generative = sum(each.shape[1] for each in found[: len(self._decoder.generative)])
        return Candidates(items, scores, num_generative)

    def has_rules(self) -> bool:
        """Whether some items are illegal whatever the history."""
        return self._legal is not None

    def catalogue(self, route: str) -> torch.Tensor:
        """Every item's score by one route, seen or not, without a beam: float [B, N].

        Mean nats a code by a generative route, nats by the collaborative one.
        """
        if route == COLLABORATIVE:
            return self.collaborative(exclude_seen=False)
        return score_catalogue(self._decoder.model, self._memory(route), self._decoder.indices[route], modality=route)

    def collaborative(self, *, exclude_seen: bool) -> torch.Tensor:
        """Log-probability of every item by SASRec, float [B, N]; minus infinity for what is excluded."""
        sasrec = self._decoder.collaborative
        assert sasrec is not None, "only a decoder with a SASRec has this route"
        return self._once(
            (COLLABORATIVE, exclude_seen),
            lambda: log_probabilities(sasrec, self._histories, forbidden=self._forbidden(exclude_seen)),
        )

    def _opinion(self, route: str, items: torch.Tensor, *, exclude_seen: bool) -> torch.Tensor:
        """Log-probability of whole IDs, int64 [B, C] -> float [B, C]; arbitrary where there is no item."""
        if route == COLLABORATIVE:
            return self.collaborative(exclude_seen=exclude_seen).gather(1, items.clamp(min=0))
        index = self._decoder.indices[route]
        means = score_items(
            self._decoder.model,
            self._memory(route),
            index,
            items,
            modality=route,
            forbidden=self._forbidden(exclude_seen),
        )
        return means * index.num_levels

    @torch.no_grad()
    def _memory(self, route: str) -> CrossAttentionCache:
        model, items = self._decoder.model, self._decoder.items
        return self._once(
            ("memory", route),
            lambda: encode_histories(model, items, self._batch(), tasks=[cast("Task", f"{route}_to_{route}")]),
        )

    def _forbidden(self, exclude_seen: bool) -> torch.Tensor | None:
        if not exclude_seen:
            return None
        num_items, device = self._decoder.items.num_items, self._decoder.model.t5.device
        return self._once(("seen",), lambda: seen_items(self._histories, num_items=num_items).to(device))

    def _batch(self) -> HistoryBatch:
        """The items that matter of each history, padded; the target is unknown, and a placeholder."""
        model = self._decoder.model
        recent = [history[-receptive_field(model.config) :] for history in self._histories]
        length = torch.tensor([len(history) for history in recent])
        read = torch.zeros(len(recent), int(length.max()), dtype=torch.int64)
        inside = torch.arange(read.shape[1]) < length[:, None]
        read[inside] = torch.from_numpy(np.concatenate(recent).astype(np.int64))
        targets = torch.zeros(len(recent), 1, dtype=torch.int64)
        padded = bool((length < read.shape[1]).any())
        return HistoryBatch(read, length, targets, targets.bool(), 0, True, padded).to(model.t5.device)

    def _once(self, key: tuple[object, ...], make: Callable[[], T]) -> T:
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]  # type: ignore[return-value]
