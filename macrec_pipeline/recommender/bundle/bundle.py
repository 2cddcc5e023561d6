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

from macrec_pipeline.errors import RequestError, StorageError
from macrec_pipeline.recommender.bundle.format import (
    QUANTIZER,
    quantizer_parts,
    read_description,
    read_fusion,
    read_model,
    read_sasrec,
    write_bundle,
)
from macrec_pipeline.recommender.model.history_encoding import MODALITIES, ItemCodes
from macrec_pipeline.recommender.retrieval.eligible_items import EligibleItems, Rules
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, Ranked
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
    """

    item_ids: list[str]
    scores: list[float]
    fallback: str


class RecommenderBundle:
    """A loaded bundle; create one with `load`.

    Attributes:
        item_ids: N ids in the order of the item index.
        catalogue: "item_id", "title" and "image_path" of each item in that order, "categories" if it has any, and
            "listed", false, if it has left the catalogue.
        listed: bool [N], the items that may be recommended; None if all may. The others have left the catalogue: they
            are understood in histories and never recommended.
        description: the content of `bundle.json`.
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
    ) -> None:
        self._retriever = retriever
        self.quantizer_folder = quantizer_folder
        self.catalogue = catalogue
        self.description = description
        self.item_ids: list[str] = [item["item_id"] for item in catalogue]
        self._index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        listed = np.array([item.get("listed", True) for item in catalogue], dtype=bool)
        self.listed: np.ndarray | None = None if listed.all() else listed
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
        return {modality: codes.cpu().numpy().copy() for modality, codes in self._retriever.items.codes.items()}

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
        return cls(retriever, catalogue, tensors["popularity"].numpy(), description, quantizer_folder=quantizer_folder)

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        *,
        routes: Sequence[str] = ("fused",),
        k: int = 10,
        exclude_seen: bool = False,
        beam_width: int | None = None,
        eligible: EligibleItems | None = None,
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
            progress: receives the number of decoded histories; None to report nothing.

        Returns:
            For each route one `Ranked` per history.

        Raises:
            RequestError: a route is unknown, or `k` or `beam_width` is out of range.
        """
        self._check_request(routes, k, beam_width)
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

        Raises:
            RequestError: `k`, `route` or `beam_width` is out of range, a category is unknown, or `rules_of_rows` or
                `exclude_seen` has another length than `histories`.
        """
        self._check_request((route,), k, beam_width)
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
        ranked = dict(zip(groups[None], self._most_popular(k, len(groups[None]), eligible[None]), strict=True))
        for key in (False, True):
            results = self.recommend(
                [known_items[row] for row in groups[key]],
                routes=(route,),
                k=k,
                exclude_seen=key,
                beam_width=beam_width,
                eligible=eligible[key],
            )
            ranked |= zip(groups[key], results[route], strict=True)
        return [
            Recommendation(
                [self.item_ids[index] for index in ranked[row].item_indices],
                ranked[row].scores.tolist(),
                "none" if len(history) else "popularity",
            )
            for row, history in enumerate(known_items)
        ]

    def _eligible(self, rules: Rules | None, rules_of_rows: Sequence[Rules | None]) -> EligibleItems | None:
        if rules is None and not any(rules_of_rows) and self.listed is None:
            return None
        return EligibleItems(
            self._index_of, rules, rules_of_rows, items_by_category=self.items_by_category, listed=self.listed
        )

    def _most_popular(self, k: int, num_rows: int, eligible: EligibleItems | None) -> list[Ranked]:
        """Rank the eligible items of each row by popularity; the score is the share of all interactions."""
        results = []
        for row in range(num_rows):
            best = self._by_popularity
            if eligible is not None:
                best = best[eligible.mask(np.array([row]))[0].numpy()[best]]
            results.append(Ranked(best[:k], self._popularity_share[best[:k]]))
        return results

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
