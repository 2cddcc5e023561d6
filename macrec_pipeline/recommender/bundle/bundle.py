"""A loaded bundle: serves recommendations for item indices and item ids, without the rest of the pipeline.

`RecommenderBundle.load` reads and verifies a folder in the format of `bundle.format`. `recommend_ids` is the interface
for services: item ids in, item ids out, with business rules and a fallback to popular items. `recommend` works on item
indices and returns several routes at once.

Shapes (docs/notation.md): L levels, N items, T items of a history.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from macrec_pipeline.errors import RequestError, StorageError, UnknownItemError
from macrec_pipeline.recommender.bundle.format import (
    EMBEDDINGS_PART,
    QUANTIZER,
    quantizer_parts,
    read_description,
    read_fusion,
    read_model,
    read_sasrec,
    write_bundle,
)
from macrec_pipeline.recommender.model.history_encoding import MODALITIES, ItemCodes
from macrec_pipeline.recommender.retrieval.beam_search import Beams
from macrec_pipeline.recommender.retrieval.diversity import (
    OPTIONS,
    Diversity,
    DiversityOptions,
    groups_by_category,
    groups_by_prefix,
    select_diverse,
)
from macrec_pipeline.recommender.retrieval.eligible_items import EligibleItems, Rules
from macrec_pipeline.recommender.retrieval.explanations import Explanation, explanations
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, Ranked, as_ranked
from macrec_pipeline.recommender.retrieval.similar_items import (
    METHODS,
    Method,
    cosine_similarities,
    most_similar,
    prefix_similarities,
    quantized_latents,
    read_codebooks,
    similar_ids,
    unsupported_message,
)
from macrec_pipeline.runtime.fast_layers import pack_weights

if TYPE_CHECKING:
    from macrec_pipeline.runtime.progress import Progress


@dataclass(frozen=True)
class Recommendation:
    """The recommended items for one history, best first.

    Attributes:
        item_ids: at most k.
        scores: one per item; comparable only within one recommendation.
        fallback: "none", or "popularity" if the catalogue has no item of the history.
        explanations: one per item; None unless they were requested.
    """

    item_ids: list[str]
    scores: list[float]
    fallback: str
    explanations: list[Explanation] | None = None


@dataclass(frozen=True)
class SimilarItems:
    """The items that are most similar to one item, most similar first.

    Attributes:
        item_ids: at most k.
        scores: the similarity of each item, at most 1: the cosine of the latents or embeddings, or the share of leading
            codes in common; the mean over the modalities.
        method: how they were compared.
    """

    item_ids: list[str]
    scores: list[float]
    method: Method


class RecommenderBundle:
    """A loaded bundle; create one with `load`.

    Attributes:
        item_ids: N ids in the order of the item index.
        catalogue: "item_id", "title" and "image_path" of each item in that order, "categories" if it has any, and
            "listed", false, if it has left the catalogue.
        listed: bool [N], the items that may be recommended; None if all may. The others have left the catalogue: they
            are understood in histories and never recommended.
        description: the content of `bundle.json`.
        diversity: the bundle's own settings of how diverse lists are.
        embeddings_file: the items' embeddings; None if the bundle has none.
        quantizer_folder: input of `FittedQuantizer.load`, to assign IDs to new items. None if the data set brought the
            semantic IDs, or an older version wrote the bundle.
    """

    def __init__(
        self,
        retriever: MultiRouteRetriever,
        catalogue: list[dict[str, Any]],
        popularity: np.ndarray,
        description: dict[str, Any],
        *,
        quantizer_folder: Path | None = None,
        embeddings_file: Path | None = None,
    ) -> None:
        self._retriever = retriever
        self.embeddings_file = embeddings_file
        self.quantizer_folder = quantizer_folder
        self.catalogue = catalogue
        self.description = description
        decoding = description["decoding"]
        self.diversity = DiversityOptions(**{name: decoding[name] for name in OPTIONS if name in decoding})
        self.item_ids: list[str] = [item["item_id"] for item in catalogue]
        self._index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        listed = np.array([item.get("listed", True) for item in catalogue], dtype=bool)
        self.listed: np.ndarray | None = None if listed.all() else listed
        self._codes = {name: codes.cpu().numpy() for name, codes in retriever.items.codes.items()}
        # the groups of the items by category (None), or by the first codes in a modality; filled on first use
        self._groups_of: dict[tuple[str, int] | None, torch.Tensor] = {}
        self._vectors_of: dict[tuple[Method, str], np.ndarray] = {}
        self._popularity = popularity
        self._by_popularity = np.lexsort((np.arange(len(popularity)), -popularity))
        self._popularity_share = popularity / max(1, popularity.sum())

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def routes(self) -> list[str]:
        """The retrieval routes: those that the model was trained for, and "collaborative" if there is a SASRec."""
        return self._retriever.routes

    @cached_property
    def items_by_category(self) -> dict[str, np.ndarray]:
        """The int64 indices of each category's items, ascending; empty if the catalogue has no categories."""
        items: dict[str, list[int]] = {}
        for index, item in enumerate(self.catalogue):
            for category in item.get("categories", ()):
                items.setdefault(category, []).append(index)
        return {category: np.array(indices, dtype=np.int64) for category, indices in items.items()}

    @property
    def codes(self) -> dict[str, np.ndarray]:
        """The semantic IDs, int64 [N, L] per modality that the catalogue has."""
        return {modality: codes.copy() for modality, codes in self._codes.items()}

    @property
    def semantic_ids(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The text codes and the image codes of each item id, in the order of the item index.

        The codes of a modality that the catalogue lacks are empty.
        """
        codes_of, empty = self.codes, [()] * self.num_items
        codes = [codes_of[modality].tolist() if modality in codes_of else empty for modality in MODALITIES]
        return {
            item_id: (tuple(text), tuple(image)) for item_id, text, image in zip(self.item_ids, *codes, strict=True)
        }

    write = staticmethod(write_bundle)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | None = None) -> RecommenderBundle:
        """Load and verify a bundle; `device` defaults to the CPU.

        Raises:
            StorageError: a part is missing, damaged or from another bundle. The message names the file.
        """
        folder, device = Path(folder), device or torch.device("cpu")
        description = read_description(folder)
        tensors = load_file(folder / "semantic_ids.safetensors")
        catalogue = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        if not len(catalogue) == description["num_items"] == len(tensors["popularity"]):
            raise StorageError(
                f"{folder} has {len(catalogue)} items in catalogue.json, {len(tensors['popularity'])} in "
                f"semantic_ids.safetensors and {description['num_items']} in bundle.json; the numbers must be equal. "
                "Materialize `recommender` again, or load another version."
            )
        model = read_model(folder, description)
        codes = {name: tensors[f"{name}_codes"].to(device) for name in MODALITIES if f"{name}_codes" in tensors}
        sasrec = read_sasrec(folder, description, device=device)
        retriever = MultiRouteRetriever(pack_weights(model.to(device).eval()), ItemCodes(codes), sasrec=sasrec)
        retriever.fusion = read_fusion(folder, description, routes=retriever.routes)
        quantizer_folder = folder / QUANTIZER if quantizer_parts(description["parts"]) else None
        return cls(
            retriever,
            catalogue,
            tensors["popularity"].numpy(),
            description,
            quantizer_folder=quantizer_folder,
            embeddings_file=folder / EMBEDDINGS_PART if EMBEDDINGS_PART in description["parts"] else None,
        )

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        *,
        routes: Sequence[str] = ("fused",),
        k: int = 10,
        exclude_seen: bool = False,
        beam_width: int | None = None,
        eligible: EligibleItems | None = None,
        explain: bool = False,
        diversity: DiversityOptions | None = None,
        progress: Progress | None = None,
    ) -> dict[str, list[Ranked]]:
        """Rank items for histories of item indices.

        Args:
            histories: int64 [T] each, T >= 1, oldest first.
            routes: any of "fused" and `routes`.
            k: number of items per history.
            exclude_seen: leave out every item of the history.
            beam_width: None for the bundle's own setting.
            eligible: the items that business rules permit; None for all items of the catalogue.
            explain: add to each list what every route says about its items. The lists do not change.
            diversity: how diverse the lists are; None for the bundle's own settings.
            progress: receives the number of decoded histories; None to report nothing.

        Returns:
            For each route one `Ranked` per history.

        Raises:
            RequestError: a route is unknown, or `k`, `beam_width` or the length of a prefix is out of range.
        """
        self._check_request(routes, k, beam_width)
        options = self.diversity if diversity is None else diversity
        diversity_of = {route: self._diversity(options, route) for route in routes} if options.is_active else None
        decoding = self.description["decoding"]
        eligible = self._eligible(None, ()) if eligible is None else eligible
        return self._retriever.rank(
            histories,
            routes=routes,
            top_k=k,
            beam_width=beam_width or decoding["beam_width"],
            batch_size=decoding["batch_size"],
            exclude_seen=exclude_seen,
            eligible=eligible,
            explain=explain,
            diversity=diversity_of,
            progress=progress,
        )

    def exact_scores(self, histories: Sequence[np.ndarray], *, route: str) -> torch.Tensor:
        """Score every item by one route, without a beam, for one batch of histories: float [B, N]."""
        return self._retriever.exact_scores(histories, route=route)

    def recommend_ids(
        self,
        histories: Sequence[Sequence[str]],
        *,
        k: int = 10,
        route: str = "fused",
        exclude_seen: bool | Sequence[bool] = False,
        beam_width: int | None = None,
        rules: Rules | None = None,
        rules_of_rows: Sequence[Rules | None] | None = None,
        explain: bool = False,
        diversity: DiversityOptions | None = None,
    ) -> list[Recommendation]:
        """Recommend items for histories of item ids, oldest first. Ids that the catalogue lacks are skipped.

        A history without any known item gets the most popular items, and its recommendation says so. If the rules leave
        fewer than k items, all of them are returned; if they leave none, the recommendation is empty.

        Args:
            histories: item ids, oldest first.
            k: number of items per history.
            route: "fused" or one of `routes`.
            exclude_seen: whether to leave out the items of the history; one value for all histories, or one for each.
            beam_width: None for the bundle's own setting.
            rules: rules for all histories.
            rules_of_rows: further rules for each history; None for a history without rules of its own.
            explain: say for each item why it was recommended. Items and scores do not change.
            diversity: how diverse the lists are; None for the bundle's own settings.

        Raises:
            RequestError: `k`, `route` or `beam_width` is out of range, a category is unknown, or `rules_of_rows` or
                `exclude_seen` has another length than `histories`.
        """
        self._check_request((route,), k, beam_width)
        options = self.diversity if diversity is None else diversity
        row_rules = [None] * len(histories) if rules_of_rows is None else rules_of_rows
        row_exclude_seen = exclude_seen if isinstance(exclude_seen, Sequence) else [bool(exclude_seen)] * len(histories)
        for name, values in (("rules_of_rows", row_rules), ("exclude_seen", row_exclude_seen)):
            if len(values) != len(histories):
                raise RequestError(
                    f"`{name}` has {len(values)} entries for {len(histories)} histories; there must be one per history."
                )
        known_items = [
            np.array([self._index_of[item] for item in history if item in self._index_of], dtype=np.int64)
            for history in histories
        ]
        # rows without any known item are grouped under None, the others by whether they exclude seen items
        groups: dict[bool | None, list[int]] = {None: [], False: [], True: []}
        for row, history in enumerate(known_items):
            groups[bool(row_exclude_seen[row]) if len(history) else None].append(row)
        # all rules are checked before anything is decoded
        eligible = {key: self._eligible(rules, [row_rules[row] for row in rows]) for key, rows in groups.items()}
        diversity_of_popular = self._diversity(options, "fused") if options.is_active else None
        popular = self._most_popular(k, len(groups[None]), eligible[None], diversity_of_popular)
        ranked = dict(zip(groups[None], popular, strict=True))
        for key in (False, True):
            results = self.recommend(
                [known_items[row] for row in groups[key]],
                routes=(route,),
                k=k,
                exclude_seen=key,
                beam_width=beam_width,
                eligible=eligible[key],
                explain=explain,
                diversity=options,
            )
            ranked |= zip(groups[key], results[route], strict=True)
        return [
            Recommendation(
                [self.item_ids[index] for index in ranked[row].item_indices],
                ranked[row].scores.tolist(),
                "none" if len(history) else "popularity",
                self._explained(ranked[row], history) if explain else None,
            )
            for row, history in enumerate(known_items)
        ]

    @property
    def similarity_methods(self) -> list[Method]:
        """The methods of `similar_items` that this bundle supports, the preferred one first."""
        folder = self.quantizer_folder
        has_codebooks = folder is not None and all((folder / f"{name}.safetensors").is_file() for name in self._codes)
        supported = {"latent": has_codebooks, "embedding": self.embeddings_file is not None, "prefix": True}
        return [method for method in METHODS if supported[method]]

    def similar_items(
        self,
        item_id: str,
        *,
        k: int = 10,
        method: str | None = None,
        modality: str | None = None,
        rules: Rules | None = None,
    ) -> SimilarItems:
        """Find the items that are most similar to an item. The item itself and unlisted items are never among them.

        Args:
            item_id: of an item in the catalogue; it may have left the shop.
            k: number of items; fewer come back only if fewer are permitted.
            method: one of `METHODS`; None for the first one that the bundle supports.
            modality: "text" or "image" to compare these alone; None for all that the catalogue has.
            rules: conditions that every item must meet.

        Raises:
            UnknownItemError: the catalogue has no such item. The message suggests similar ids.
            RequestError: `k` is below 1, the method or modality is unknown or missing, or a category is unknown.
            StorageError: the codebooks of the bundle do not fit its semantic IDs.
        """
        item = self._index_of.get(item_id)
        if item is None:
            raise UnknownItemError(f"The catalogue has no item {item_id!r:.80}.{similar_ids(item_id, self.item_ids)}")
        if k < 1:
            raise RequestError(f"`k` is {k}, but must be at least 1.")
        supported = self.similarity_methods
        chosen = next((name for name in METHODS if name == (method or supported[0])), None)
        if chosen is None:
            raise RequestError(f"`method` must be one of {', '.join(METHODS)}, but is {method!r:.80}.")
        if chosen not in supported:
            raise RequestError(unsupported_message(chosen, supported))
        if modality is not None and modality not in self._codes:
            raise RequestError(f"`modality` must be one of {', '.join(self._codes)}, but is {modality!r:.80}.")
        modalities = list(self._codes) if modality is None else [modality]
        eligible = self._eligible(rules, ())
        mask = np.ones(self.num_items, dtype=bool) if eligible is None else eligible.mask(np.array([0]))[0].numpy()
        best, scores = most_similar(
            [self._similarities(item, chosen, name) for name in modalities],
            item,
            k=k,
            eligible=mask,
            popularity=self._popularity,
        )
        return SimilarItems([self.item_ids[index] for index in best], scores.tolist(), chosen)

    def _similarities(self, item: int, method: Method, modality: str) -> np.ndarray:
        """Compare an item with all N items: float64 [N]."""
        if method == "prefix":
            return prefix_similarities(self._codes[modality], item)
        return cosine_similarities(self._vectors(method, modality), item)

    def _vectors(self, method: Method, modality: str) -> np.ndarray:
        """Return the vectors that a method compares, [N, width]; read on first use, so that serving need not."""
        key = method, modality
        if key not in self._vectors_of:
            if method == "embedding":
                assert self.embeddings_file is not None
                self._vectors_of[key] = load_file(self.embeddings_file)[modality].numpy()
            else:
                assert self.quantizer_folder is not None
                codes = self._codes[modality]
                codebooks = read_codebooks(
                    self.quantizer_folder,
                    modality,
                    num_levels=codes.shape[1],
                    codebook_size=self.description["codebook_size"],
                )
                self._vectors_of[key] = quantized_latents(codes, codebooks)
        return self._vectors_of[key]

    def _explained(self, ranked: Ranked, history: np.ndarray) -> list[Explanation]:
        items, evidence = ranked.item_indices, ranked.evidence
        return explanations(items, evidence, history=history, codes=self._codes, item_ids=self.item_ids)

    def _eligible(self, rules: Rules | None, rules_of_rows: Sequence[Rules | None]) -> EligibleItems | None:
        if rules is None and not any(rules_of_rows) and self.listed is None:
            return None
        return EligibleItems(
            self._index_of, rules, rules_of_rows, items_by_category=self.items_by_category, listed=self.listed
        )

    def _diversity(self, options: DiversityOptions, route: str) -> Diversity:
        """Return how diverse the lists of a route are; prefixes are those of the route's own semantic IDs, if any."""
        limit = options.max_per_category or options.max_per_prefix
        if not limit:
            return Diversity(options.diversity)
        modality = route if route in self._codes else next(iter(self._codes))
        num_levels = self._codes[modality].shape[1]
        if options.max_per_prefix and options.prefix_length > num_levels:
            raise RequestError(
                f"`prefix_length` is {options.prefix_length}, but semantic IDs have only {num_levels} codes."
            )
        key = None if options.max_per_category else (modality, options.prefix_length)
        if key not in self._groups_of:
            groups = (
                groups_by_category(self.items_by_category, num_items=self.num_items)
                if key is None
                else groups_by_prefix(self._codes[modality], length=options.prefix_length)
            )
            self._groups_of[key] = torch.from_numpy(groups).to(self._retriever.model.t5.device)
        return Diversity(options.diversity, limit, self._groups_of[key])

    def _most_popular(
        self, k: int, num_rows: int, eligible: EligibleItems | None, diversity: Diversity | None
    ) -> list[Ranked]:
        """Rank the eligible items of each row by popularity; the score is the share of all interactions."""
        if diversity is not None and num_rows:
            return self._most_popular_diverse(k, num_rows, eligible, diversity)
        results = []
        for row in range(num_rows):
            best = self._by_popularity
            if eligible is not None:
                best = best[eligible.mask(np.array([row]))[0].numpy()[best]]
            results.append(Ranked(best[:k], self._popularity_share[best[:k]]))
        return results

    def _most_popular_diverse(
        self, k: int, num_rows: int, eligible: EligibleItems | None, diversity: Diversity
    ) -> list[Ranked]:
        device = self._retriever.model.t5.device
        order = torch.from_numpy(self._by_popularity).to(device)
        share = torch.from_numpy(self._popularity_share).to(device)
        size = min(self.num_items, diversity.num_candidates(k))

        def search(_: torch.Tensor, mask: torch.Tensor) -> Beams:
            of_row = mask[:, order]  # [B, N], by popularity
            first = of_row.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :size]
            items = order[first].masked_fill(~of_row.gather(1, first), -1)
            return Beams(items, share[items.clamp(min=0)].masked_fill(items < 0, float("-inf")))

        mask = torch.ones(num_rows, self.num_items, dtype=torch.bool)
        if eligible is not None:
            mask &= eligible.mask(np.arange(num_rows))
        codes = self._retriever.items.codes
        return as_ranked(select_diverse([search], eligible=mask.to(device), codes=codes, diversity=diversity, k=k), k)

    def _check_request(self, routes: Sequence[str], k: int, beam_width: int | None) -> None:
        available = ("fused", *self._retriever.routes)
        for route in routes:
            if route not in available:
                raise RequestError(f"Unknown route {route!r}. This model has the routes {', '.join(available)}.")
        if not 1 <= k <= self.num_items:
            raise RequestError(f"`k` is {k}, but must be between 1 and {self.num_items}, the size of the catalogue.")
        if beam_width is not None and not 1 <= beam_width <= self.num_items:
            raise RequestError(
                f"`beam_width` is {beam_width}, but must be between 1 and {self.num_items}, the size of the catalogue."
            )
