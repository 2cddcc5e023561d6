"""Retrieval: histories of item indices become ranked items (MACRec section 3.4).

`MultiRouteRetriever.rank` is the entry point. It splits the histories into batches of similar length, and each batch
becomes a `RetrievalBatch`, which encodes the histories once per retrieval route and finds items by each of them:

- "text" and "image", the generative routes, by beam search over the semantic IDs of that modality;
- "collaborative", if there is a SASRec, by scoring the whole catalogue;
- "fused", which combines these into one ranking.

Shapes (docs/notation.md): B batch rows, C candidate items per row, N items, T items of a history, W beams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from macrec_pipeline.recommender.model.history_encoding import HistoryBatch, ItemCodes, batches_by_length
from macrec_pipeline.recommender.retrieval.beam_search import (
    Beams,
    PrefixTree,
    beam_searches,
    score_catalogue,
    score_items,
)
from macrec_pipeline.recommender.retrieval.diversity import Diversity, Search, select_diverse
from macrec_pipeline.recommender.retrieval.explanations import RouteEvidence
from macrec_pipeline.recommender.retrieval.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    Candidates,
    append_missing,
    best_items,
    distinct_candidates,
    fuse_calibrated,
    fuse_published,
    places_in,
)
from macrec_pipeline.recommender.sasrec.model import CELLS_AT_ONCE, next_item_scores
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.config import Task
    from macrec_pipeline.recommender.model.generative_recommender import CrossAttentionCache, GenerativeRecommender
    from macrec_pipeline.recommender.retrieval.eligible_items import EligibleItems
    from macrec_pipeline.recommender.sasrec.model import Sasrec

T = TypeVar("T")
# The most histories whose routes are decoded together. Each pass reads all weights of the model, which costs more than
# the arithmetic of a few rows. Of more rows, the states of all routes no longer fit into the cache of a core.
MAX_ROWS_TOGETHER = 32


@dataclass(frozen=True)
class Ranked:
    """The ranked items for one history, best first.

    Attributes:
        item_indices: int64 [at most k].
        scores: float64, of the same length; comparable only within one history.
        evidence: what each route says about the items; None unless an explanation was requested.
    """

    item_indices: np.ndarray
    scores: np.ndarray
    evidence: RouteEvidence | None = None


class MultiRouteRetriever:
    """A trained recommender with one prefix tree per generative route, and optionally SASRec as a further route.

    Args:
        model: in evaluation mode.
        items: the semantic IDs of the catalogue, on the model's device.
        fusion: the calibrated rule that fuses the routes; None for the published rule, which ignores the collaborative
            route.
        sasrec: a trained SASRec on the same device, in evaluation mode; None for no collaborative route.

    Attributes:
        generative_routes: the routes that the model was trained for: "text", "image" or both.
        routes: the generative routes, and "collaborative" if there is a SASRec.
        trees: the prefix tree of each generative route.
    """

    def __init__(
        self,
        model: GenerativeRecommender,
        items: ItemCodes,
        *,
        fusion: CalibratedFusion | None = None,
        sasrec: Sasrec | None = None,
    ) -> None:
        self.model, self.items, self.fusion, self.sasrec = model, items, fusion, sasrec
        size = model.vocabulary.codebook_size
        self.generative_routes = [route for route in items.codes if f"{route}_to_{route}" in model.spec.tasks]
        self.routes = self.generative_routes + ([COLLABORATIVE] if sasrec is not None else [])
        self.trees = {route: PrefixTree(items.codes[route], codebook_size=size) for route in self.generative_routes}

    def rank(
        self,
        histories: Sequence[np.ndarray],
        *,
        routes: Sequence[str],
        top_k: int,
        beam_width: int,
        batch_size: int,
        exclude_seen: bool = False,
        eligible: EligibleItems | None = None,
        explain: bool = False,
        diversity: Mapping[str, Diversity] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, list[Ranked]]:
        """Rank items for every history.

        Args:
            histories: int64 [T] item indices each, T >= 1, oldest first.
            routes: any of "fused" and `routes`.
            top_k: k, the number of items per history.
            beam_width: W, beams per route; a larger `top_k` raises it, and so do rules that leave few items.
            batch_size: number of histories decoded at once.
            exclude_seen: leave out every item of the history, however old. If False, a calibrated rule may still leave
                them out.
            eligible: the items that business rules permit, with rules for each history or shared by all; None for all
                items. The rules change no item's score, and min(k, number of eligible items) items come back.
            explain: add the `evidence` of each list. The lists do not change.
            diversity: route -> how diverse its lists are; None for the k items with the highest scores.
            progress: receives the number of decoded histories; None to report nothing.

        Returns:
            For each of `routes` one `Ranked` per history, in the order given.
        """
        results: dict[str, list[Ranked]] = {
            route: [Ranked(np.empty(0), np.empty(0))] * len(histories) for route in routes
        }
        num_candidates = max([top_k, *(each.num_candidates(top_k) for each in (diversity or {}).values())])
        width, num_done = max(beam_width, min(num_candidates, self.items.num_items)), 0
        width = width if eligible is None else eligible.widened(width)
        for chosen in self.batches(histories, batch_size=batch_size):
            mask = None if eligible is None else eligible.mask(chosen).to(self.model.t5.device)
            needed = self.generative_routes if "fused" in routes else routes
            batch = RetrievalBatch(self, [histories[index] for index in chosen], needed=needed, eligible=mask)
            for route in routes:
                if diversity is not None:
                    beams = self._diverse(
                        batch, route, diversity[route], top_k=top_k, width=width, exclude_seen=exclude_seen
                    )
                elif route == "fused":
                    beams = self._fused(batch, top_k=top_k, width=width, exclude_seen=exclude_seen)
                else:
                    beams = batch.beams(route, width=width, exclude_seen=exclude_seen)
                ranked_rows = as_ranked(beams, top_k)
                if explain:
                    ranked_rows = self._with_evidence(batch, route, ranked_rows, beams.items[:, :top_k])
                for index, ranked in zip(chosen, ranked_rows, strict=True):
                    results[route][index] = ranked
            num_done += len(chosen)
            if progress is not None:
                progress("decoding", num_done, len(histories))
        return results

    def batches(self, histories: Sequence[np.ndarray], *, batch_size: int) -> Iterator[np.ndarray]:
        """Yield positions of histories of similar length, int64 [B], B <= `batch_size`; each once, shortest first."""
        lengths = np.minimum([len(history) for history in histories], self.model.spec.receptive_field)
        return batches_by_length(lengths, batch_size=batch_size, device=self.model.t5.device)

    def exact_scores(self, histories: Sequence[np.ndarray], *, route: str) -> torch.Tensor:
        """Score the whole catalogue for one batch of histories, without a beam.

        Returns:
            float [B, N] on the model's device: mean log-probability per code for a generative route, log-probability
            for the collaborative route, in nats.
        """
        return RetrievalBatch(self, histories).catalogue_scores(route)

    def _diverse(
        self, batch: RetrievalBatch, route: str, diversity: Diversity, *, top_k: int, width: int, exclude_seen: bool
    ) -> Beams:
        """Select diverse lists from what a route finds: [B, k]."""
        leave_out_seen = exclude_seen or (
            route == "fused" and self.fusion is not None and not self.fusion.recommend_seen
        )
        unsearched = [batch]  # the first search is that of the batch itself, whose beams the explanations look at

        def find(part: RetrievalBatch, *, leave_out: bool) -> Beams:
            if route != "fused":
                return part.beams(route, width=width, exclude_seen=leave_out)
            if self.fusion is None:
                return self._published(part, width=width, exclude_seen=leave_out)
            return self._calibrated(part, self.fusion, width=width, exclude_seen=leave_out)

        def search_with(leave_out: bool) -> Search:
            def search(rows: torch.Tensor, eligible: torch.Tensor) -> Beams:
                found = find(
                    unsearched.pop() if unsearched else batch.part(rows, eligible=eligible), leave_out=leave_out
                )
                size = diversity.num_candidates(top_k) if diversity.strength > 0 else found.items.shape[1]
                return Beams(found.items[:, :size], found.scores[:, :size])

            return search

        searches = [search_with(leave_out_seen)]
        if leave_out_seen != exclude_seen and (batch.has_rules() or diversity.max_per_group is not None):
            searches.append(search_with(False))  # seen items follow if there are too few others
        return select_diverse(
            searches, eligible=batch.eligible_of_rows(), codes=self.items.codes, diversity=diversity, k=top_k
        )

    def _with_evidence(
        self, batch: RetrievalBatch, route: str, ranked: Sequence[Ranked], items: torch.Tensor
    ) -> list[Ranked]:
        """Add what each route says about the items of a batch, int64 [B, k] with -1 for none, to its lists."""
        weights = {name: 1.0 if route in ("fused", name) else 0.0 for name in self.routes}
        if route == "fused" and self.fusion is not None:
            weights = {name: self.fusion.weights.get(name, 0.0) for name in self.routes}
        elif route == "fused":
            weights[COLLABORATIVE] = 0.0  # the published rule ignores this route
        evidence = batch.evidence(items)
        found = {name: mask.cpu().numpy() for name, mask in evidence.found.items()}
        scores = {name: values.double().cpu().numpy() for name, values in evidence.scores.items()}
        num_codes = {name: self.trees[name].num_levels if name in self.trees else 1 for name in self.routes}
        return [
            replace(
                row,
                evidence=RouteEvidence(
                    weights={name: weights[name] for name in self.routes},
                    scores={name: values[number, : len(row.item_indices)] for name, values in scores.items()},
                    found={name: mask[number, : len(row.item_indices)] for name, mask in found.items()},
                    num_codes=num_codes,
                ),
            )
            for number, row in enumerate(ranked)
        ]

    def _fused(self, batch: RetrievalBatch, *, top_k: int, width: int, exclude_seen: bool) -> Beams:
        """Fuse all routes by the calibrated rule if there is one, and by the published rule otherwise."""
        if self.fusion is None:
            return self._published(batch, width=width, exclude_seen=exclude_seen)
        leave_out_seen = exclude_seen or not self.fusion.recommend_seen
        beams = self._calibrated(batch, self.fusion, width=width, exclude_seen=leave_out_seen)
        if batch.has_rules() and leave_out_seen != exclude_seen and _fewest_items(beams) < top_k:
            # the caller did not ask to leave out seen items, so doing so must not make a list of eligible items shorter
            with_seen = self._calibrated(batch, self.fusion, width=width, exclude_seen=False)
            return append_missing(beams, with_seen)
        return beams

    def _published(self, batch: RetrievalBatch, *, width: int, exclude_seen: bool) -> Beams:
        routes = [batch.beams(route, width=width, exclude_seen=exclude_seen) for route in self.generative_routes]
        return routes[0] if len(routes) == 1 else fuse_published(*routes)

    def _calibrated(self, batch: RetrievalBatch, fusion: CalibratedFusion, *, width: int, exclude_seen: bool) -> Beams:
        # routes without weight do not change the result, so they do not score the candidates
        weighted = [route for route in self.routes if fusion.weights.get(route, 0) > 0]
        return fuse_calibrated(batch.candidates(weighted, width=width, exclude_seen=exclude_seen), fusion)


@dataclass(frozen=True)
class BatchEvidence:
    """What the routes say about some items of a batch.

    Attributes:
        found: route -> bool [B, C], whether the beams of the route contain the item.
        scores: route -> float [B, C], mean log-probability per code of a generative route and log-probability of the
            collaborative one, in nats; arbitrary where there is no item.
    """

    found: dict[str, torch.Tensor]
    scores: dict[str, torch.Tensor]


class RetrievalBatch:
    """What each route of a retriever finds for one batch of histories; results are computed on first use and cached.

    Args:
        retriever: holds the models and the prefix trees.
        histories: int64 [T] item indices each, T >= 1, oldest first.
        needed: the routes whose beams will be read. A small batch decodes the generative ones of them together.
        eligible: bool [B, N], or [1, N] for all rows, on the model's device: the items that beams and candidates may
            contain; None for all items.
    """

    def __init__(
        self,
        retriever: MultiRouteRetriever,
        histories: Sequence[np.ndarray],
        *,
        needed: Sequence[str] = (),
        eligible: torch.Tensor | None = None,
    ) -> None:
        self._retriever, self._histories, self._eligible = retriever, histories, eligible
        self._cache: dict[tuple[object, ...], object] = {}
        together = [route for route in retriever.generative_routes if route in needed]
        self._together = together if len(histories) <= MAX_ROWS_TOGETHER else []

    def beams(self, route: str, *, width: int, exclude_seen: bool) -> Beams:
        """Find the best items of one route, [B, W]: exactly for the collaborative one, otherwise by beam search."""

        def find() -> Beams:
            if route == COLLABORATIVE:
                scores = self._collaborative_scores(exclude_seen=exclude_seen)
                if self._eligible is not None:
                    scores = scores.masked_fill(~self._eligible, float("-inf"))
                return best_items(scores, width=width)
            routes = self._together if route in self._together else [route]
            found = beam_searches(
                self._retriever.model,
                self._joint_cross_cache(routes),
                {name: self._retriever.trees[name] for name in routes},
                beam_width=width,
                excluded=self._excluded(exclude_seen),
                eligible=self._eligible,
            )
            for name, beams in zip(routes, found, strict=True):
                self._cache["beams", name, width, exclude_seen] = beams
            return found[routes.index(route)]

        return self._cached(("beams", route, width, exclude_seen), find)

    def candidates(self, routes: Sequence[str], *, width: int, exclude_seen: bool) -> Candidates:
        """Collect the items that the routes find, and score each of them by each route.

        Args:
            routes: the routes that score the candidates. The generative routes always contribute items; the
                collaborative route does only if it is one of `routes`.
            width: W, number of items that each route finds.
            exclude_seen: leave out the items of a row's history.
        """
        generative = self._retriever.generative_routes
        finders = [*generative, *([COLLABORATIVE] if COLLABORATIVE in routes else [])]
        items_of_routes = [self.beams(route, width=width, exclude_seen=exclude_seen).items for route in finders]
        items = distinct_candidates(items_of_routes)
        scores = {route: self._candidate_scores(route, items, exclude_seen=exclude_seen) for route in routes}
        num_generative = sum(found.shape[1] for found in items_of_routes[: len(generative)])
        return Candidates(items, scores, num_generative)

    def evidence(self, items: torch.Tensor) -> BatchEvidence:
        """Say which routes have found the items so far, and score each item by each route.

        Call it after the lists are made: finding looks at the beams that were searched for them.

        Args:
            items: int64 [B, C], -1 for no item.
        """
        excluding = any(key[0] == "beams" and key[3] for key in self._cache)
        found, scores = {}, {}
        for route in self._retriever.routes:
            found[route] = torch.zeros_like(items, dtype=torch.bool)
            for key, beams in self._cache.items():
                if key[:2] == ("beams", route):
                    found[route] |= places_in(cast("Beams", beams).items, items) >= 0
            log_probability = self._candidate_scores(route, items, exclude_seen=excluding)
            if excluding:  # items of the history may follow the others, and then have no probability among them
                among_all = self._candidate_scores(route, items, exclude_seen=False)
                log_probability = torch.where(log_probability.isfinite(), log_probability, among_all)
            is_generative = route in self._retriever.trees
            scores[route] = (
                log_probability / self._retriever.trees[route].num_levels if is_generative else log_probability
            )
        return BatchEvidence(found, scores)

    def part(self, rows: torch.Tensor, *, eligible: torch.Tensor) -> RetrievalBatch:
        """Return a batch of some rows, int64 [B'], with other eligible items, bool [B', N]."""
        return RetrievalBatch(self._retriever, [self._histories[row] for row in rows.tolist()], eligible=eligible)

    def eligible_of_rows(self) -> torch.Tensor:
        """Return the items that each row may receive, bool [B, N], as far as the rules decide it."""
        shape = len(self._histories), self._retriever.items.num_items
        if self._eligible is None:
            return torch.ones(shape, dtype=torch.bool, device=self._retriever.model.t5.device)
        return self._eligible.expand(shape)

    def has_rules(self) -> bool:
        """Tell whether business rules apply to this batch."""
        return self._eligible is not None

    def catalogue_scores(self, route: str) -> torch.Tensor:
        """Score every item by one route, without a beam and including seen items.

        Returns:
            float [B, N], as `MultiRouteRetriever.exact_scores`.
        """
        if route == COLLABORATIVE:
            return self._collaborative_scores(exclude_seen=False)
        return score_catalogue(
            self._retriever.model, self._cross_cache(route), self._retriever.trees[route], modality=route
        )

    def _candidate_scores(self, route: str, items: torch.Tensor, *, exclude_seen: bool) -> torch.Tensor:
        """Return the log-probability of whole IDs: int64 [B, C] -> float [B, C], arbitrary where there is no item."""
        if route == COLLABORATIVE:
            return self._collaborative_scores(exclude_seen=exclude_seen).gather(1, items.clamp(min=0))
        tree = self._retriever.trees[route]
        mean_scores = score_items(
            self._retriever.model,
            self._cross_cache(route),
            tree,
            items,
            modality=route,
            excluded=self._excluded(exclude_seen),
        )
        return mean_scores * tree.num_levels

    def _collaborative_scores(self, *, exclude_seen: bool) -> torch.Tensor:
        """Score every item by SASRec: float [B, N] in nats, minus infinity for excluded items."""
        sasrec = self._retriever.sasrec
        assert sasrec is not None, "only a retriever with a SASRec has the collaborative route"
        return self._cached(
            (COLLABORATIVE, exclude_seen),
            lambda: log_probabilities(sasrec, self._histories, excluded=self._excluded(exclude_seen)),
        )

    def _cross_cache(self, route: str) -> CrossAttentionCache:
        """Return the histories as encoded for one route."""
        routes = self._together if route in self._together else [route]
        begin, num_rows = routes.index(route) * len(self._histories), len(self._histories)
        return self._joint_cross_cache(routes).rows(slice(begin, begin + num_rows))

    @torch.no_grad()
    def _joint_cross_cache(self, routes: Sequence[str]) -> CrossAttentionCache:
        """Return the histories as encoded for each of some routes, one route after the other."""
        model, items = self._retriever.model, self._retriever.items
        tasks = [cast("Task", f"{route}_to_{route}") for route in routes]
        return self._cached(
            ("cross_cache", *routes),
            lambda: model.encode_histories(items, self._history_batch(num_copies=len(routes)), tasks=tasks),
        )

    def _excluded(self, exclude_seen: bool) -> torch.Tensor | None:
        if not exclude_seen:
            return None
        num_items, device = self._retriever.items.num_items, self._retriever.model.t5.device
        return self._cached(("seen",), lambda: _seen_items(self._histories, num_items=num_items).to(device))

    def _history_batch(self, *, num_copies: int) -> HistoryBatch:
        """Pad the recent items of each history, as far back as the model looks; the target is a placeholder.

        The rows are the B histories, `num_copies` times.
        """
        model = self._retriever.model
        recent = [history[-model.spec.receptive_field :] for history in self._histories] * num_copies
        lengths = torch.tensor([len(history) for history in recent])
        padded_histories = torch.zeros(len(recent), int(lengths.max()), dtype=torch.int64)
        is_item = torch.arange(padded_histories.shape[1]) < lengths[:, None]
        padded_histories[is_item] = torch.from_numpy(np.concatenate(recent).astype(np.int64))
        targets = torch.zeros(len(recent), 1, dtype=torch.int64)
        return HistoryBatch(
            history=padded_histories,
            lengths=lengths,
            targets=targets,
            target_mask=targets.bool(),
            target_offset=0,
            only_last=True,
            padded=not bool(is_item.all()),
        ).to(model.t5.device)

    def _cached(self, key: tuple[object, ...], compute: Callable[[], T]) -> T:
        if key not in self._cache:
            self._cache[key] = compute()
        return self._cache[key]  # type: ignore[return-value]


def log_probabilities(
    sasrec: Sasrec, histories: Sequence[np.ndarray], *, excluded: torch.Tensor | None = None
) -> torch.Tensor:
    """Score the whole catalogue by SASRec.

    As in beam search, the distribution covers only the items that are not excluded.

    Args:
        sasrec: in evaluation mode.
        histories: int64 [T] item indices each, oldest first. An empty history scores minus infinity everywhere.
        excluded: bool [B, N] on the model's device, items removed from a row's distribution; they score minus infinity.

    Returns:
        float32 [B, N] in nats, on the model's device.
    """
    device = sasrec.items.weight.device
    result = torch.full((len(histories), sasrec.num_items), float("-inf"), device=device)
    for rows, scores in next_item_scores(sasrec, histories):
        chosen = torch.from_numpy(rows).to(device)
        if excluded is not None:
            scores = scores.masked_fill_(excluded[chosen], float("-inf"))
        result[chosen] = torch.log_softmax(scores, dim=1)
    # softmax over a row in which everything is excluded gives NaN
    return result if excluded is None else result.masked_fill_(excluded, float("-inf"))


def rank_catalogue(
    sasrec: Sasrec,
    histories: Sequence[np.ndarray],
    *,
    top_k: int,
    exclude_seen: bool = False,
    listed: np.ndarray | None = None,
    progress: Progress = quiet_progress,
) -> list[Ranked]:
    """Rank items for every history by SASRec alone, outside a retriever.

    Args:
        sasrec: in evaluation mode.
        histories: int64 [T] item indices each, oldest first.
        top_k: number of items per history; fewer come back where fewer exist.
        exclude_seen: leave out every item of the history, however old.
        listed: bool [N], the items that may be recommended; None for all.
        progress: receives the number of ranked histories.

    Returns:
        One `Ranked` per history, in the order given; equal scores are ordered by item index.
    """
    results: list[Ranked] = []
    batch_size = max(1, CELLS_AT_ONCE // sasrec.num_items)
    for begin in range(0, len(histories), batch_size):
        batch = histories[begin : begin + batch_size]
        excluded = _seen_items(batch, num_items=sasrec.num_items) if exclude_seen else None
        excluded = excluded if excluded is None else excluded.to(sasrec.items.weight.device)
        scores = log_probabilities(sasrec, batch, excluded=excluded)
        if listed is not None:
            scores = scores.masked_fill(~torch.from_numpy(listed).to(scores.device), float("-inf"))
        results += as_ranked(best_items(scores, width=top_k), top_k)
        progress("collaborative decoding", len(results), len(histories))
    return results


def as_ranked(beams: Beams, top_k: int) -> list[Ranked]:
    """Return the first `top_k` items of each row, without padding."""
    items = beams.items[:, :top_k].cpu().numpy()
    scores = beams.scores[:, :top_k].double().cpu().numpy()
    exists = items >= 0
    return [
        Ranked(row_items[mask], row_scores[mask])
        for row_items, row_scores, mask in zip(items, scores, exists, strict=True)
    ]


def _seen_items(histories: Sequence[np.ndarray], *, num_items: int) -> torch.Tensor:
    """Mark the items of each history: bool [B, N], on the CPU."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    seen = torch.zeros(len(histories), num_items, dtype=torch.bool)
    seen[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories).astype(np.int64))] = True
    return seen


def _fewest_items(beams: Beams) -> int:
    """Return the number of items of the row that has the fewest."""
    return int((beams.items >= 0).sum(dim=1).min())
