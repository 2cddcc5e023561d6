"""The bundle: everything that serves recommendations, as one folder that a consumer loads without the pipeline.

    bundle.json            what the parts are, their digests, the settings, the catalogue's size
    model.safetensors      the recommender's weights
    semantic_ids.safetensors   codes of each modality and the training popularity of every item
    catalogue.json         item ids, titles, picture paths and categories, in the order of the item index
    sasrec.safetensors     SASRec's weights, only where it is a retrieval route
    quantizer/             what gave the items their semantic IDs, unless the data set brought them; no answer reads it

A bundle whose parts do not belong together refuses to load. Nothing in it is pickled.
Shapes: N items, L levels.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from macrec_pipeline.errors import RequestError, StorageError
from macrec_pipeline.recommender.bundle.parts import (
    QUANTIZER,
    quantizer_parts,
    read_model,
    read_sasrec,
    verified_description,
)
from macrec_pipeline.recommender.bundle.writing import write_bundle
from macrec_pipeline.recommender.model.vocabulary import MODALITIES
from macrec_pipeline.recommender.retrieval.eligible_items import EligibleItems, Rules
from macrec_pipeline.recommender.retrieval.fusion_fitting import described_fusion
from macrec_pipeline.recommender.retrieval.ranking import Ranked
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.runtime.progress import Progress, quiet_progress


@dataclass(frozen=True)
class Recommendation:
    """The recommendations for one request, best first.

    Attributes:
        item_ids: the shop's keys, at most k.
        scores: one an item; comparable within one answer only.
        fallback: "none", or "popularity" when no item of the history is known.
    """

    item_ids: list[str]
    scores: list[float]
    fallback: str


class RecommenderBundle:
    """A loaded bundle. Make one with `load`.

    Attributes:
        item_ids: the shop's keys in the order of the item index.
        catalogue: {"item_id", "title", "image_path"} an item, in that order, and "categories" where it has some.
        description: what `bundle.json` says.
        quantizer_folder: what `FittedQuantizer.load` takes to give new items an ID; None where the IDs came with the
            data set, or the bundle is of an older version.
    """

    def __init__(
        self,
        decoder: MultiRouteRetriever,
        catalogue: list[dict[str, Any]],
        popularity: np.ndarray,
        description: dict[str, Any],
        *,
        quantizer_folder: Path | None = None,
    ) -> None:
        self._decoder = decoder
        self.quantizer_folder = quantizer_folder
        self.catalogue = catalogue
        self.description = description
        self.item_ids: list[str] = [item["item_id"] for item in catalogue]
        self._index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        self._by_popularity = np.lexsort((np.arange(len(popularity)), -popularity))
        self._share = popularity / max(1, popularity.sum())

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @property
    def routes(self) -> list[str]:
        """The retrieval routes: those that the model was trained for, and "collaborative" if the bundle has SASRec."""
        return self._decoder.routes

    @cached_property
    def items_of(self) -> dict[str, np.ndarray]:
        """Category -> int64 [any], the indices of its items, ascending; empty where the catalogue names none."""
        found: dict[str, list[int]] = {}
        for index, item in enumerate(self.catalogue):
            for category in item.get("categories", ()):
                found.setdefault(category, []).append(index)
        return {category: np.array(items, dtype=np.int64) for category, items in found.items()}

    @property
    def codes(self) -> dict[str, np.ndarray]:
        """Semantic IDs, int64 [N, L] each, of the modalities that the catalogue has."""
        return {modality: codes.cpu().numpy().copy() for modality, codes in self._decoder.items.codes.items()}

    @property
    def semantic_ids(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Item id -> its text codes and its image codes, in the order of the item index.

        A modality that the catalogue lacks has no codes.
        """
        known, none = self.codes, [()] * self.num_items
        codes = [known[modality].tolist() if modality in known else none for modality in MODALITIES]
        return {
            item_id: (tuple(text), tuple(image)) for item_id, text, image in zip(self.item_ids, *codes, strict=True)
        }

    write = staticmethod(write_bundle)

    @classmethod
    def load(cls, folder: str | Path, *, device: torch.device | None = None) -> RecommenderBundle:
        """Load and verify a bundle.

        Raises:
            StorageError: a part is missing, damaged or from another bundle; names it.
        """
        folder, device = Path(folder), device or torch.device("cpu")
        description = verified_description(folder)
        tensors = load_file(folder / "semantic_ids.safetensors")
        catalogue = json.loads((folder / "catalogue.json").read_text(encoding="utf-8"))
        if not len(catalogue) == description["num_items"] == len(tensors["popularity"]):
            raise StorageError(
                f"{folder}: catalogue.json has {len(catalogue)} items and semantic_ids.safetensors "
                f"{len(tensors['popularity'])}, but bundle.json says {description['num_items']}."
            )
        model = read_model(folder, description)
        codes = {name: tensors[f"{name}_codes"].to(device) for name in MODALITIES if f"{name}_codes" in tensors}
        sasrec = read_sasrec(folder, description, device=device)
        decoder = MultiRouteRetriever(model.to(device).eval(), ItemCodes(codes), collaborative=sasrec)
        where = str(folder / "bundle.json")
        decoder.fusion = described_fusion(description, routes=decoder.routes, where=where)
        quantizer = folder / QUANTIZER if quantizer_parts(description["parts"]) else None
        return cls(decoder, catalogue, tensors["popularity"].numpy(), description, quantizer_folder=quantizer)

    def recommend(
        self,
        histories: Sequence[np.ndarray],
        *,
        routes: Sequence[str] = ("fused",),
        k: int = 10,
        exclude_seen: bool = False,
        beam_width: int | None = None,
        legal: EligibleItems | None = None,
        progress: Progress = quiet_progress,
    ) -> dict[str, list[Ranked]]:
        """Rank the catalogue, or what is legal of it, for histories of item indices, int64 [T] each, T >= 1.

        Returns:
            For each route one `Ranked` a history. Raises `RequestError` for what cannot be answered.
        """
        self._check(routes, k, beam_width)
        decoding = self.description["decoding"]
        return self._decoder.rank(
            histories,
            routes=routes,
            top_k=k,
            beam_width=beam_width or decoding["beam_width"],
            batch_size=decoding["batch_size"],
            exclude_seen=exclude_seen,
            legal=legal,
            progress=progress,
        )

    def exact_scores(self, histories: Sequence[np.ndarray], *, route: str) -> torch.Tensor:
        """Score every item for a few histories by one route, without a beam: float [B, N]."""
        return self._decoder.exact_scores(histories, route=route)

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
        """Recommend to histories of item ids, oldest first; ids that the catalogue lacks are skipped.

        A history of which nothing is known gets the most popular items, and the answer says so. Where rules leave fewer
        than k items, the answer has those; where they leave none, it is empty.

        Args:
            exclude_seen: whether no item of the history comes back, one for all histories or one each.
            rules: of all histories.
            rules_of_rows: one a history, which hold beside those of all; None where there are none.

        Raises:
            RequestError: k, route or beam_width is out of range, a category is unknown, or there are not as many rules
                or `exclude_seen` as histories.
        """
        self._check((route,), k, beam_width)
        of_rows = [None] * len(histories) if rules_of_rows is None else rules_of_rows
        unseen_only = exclude_seen if isinstance(exclude_seen, Sequence) else [bool(exclude_seen)] * len(histories)
        for what, listed in (("rules", of_rows), ("exclude_seen", unseen_only)):
            if len(listed) != len(histories):
                raise RequestError(f"There are {what} of {len(listed)} rows, but {len(histories)} histories.")
        known = [
            np.array([self._index_of[item] for item in history if item in self._index_of], dtype=np.int64)
            for history in histories
        ]
        groups: dict[bool | None, list[int]] = {None: [], False: [], True: []}
        for row, history in enumerate(known):
            groups[bool(unseen_only[row]) if len(history) else None].append(row)
        # a call whose rules are wrong is refused before any of it is worked out
        legal = {which: self._legal(rules, [of_rows[row] for row in rows]) for which, rows in groups.items()}
        ranked = dict(zip(groups[None], self._popular(k, len(groups[None]), legal[None]), strict=True))
        for unseen in (False, True):
            found = self.recommend(
                [known[row] for row in groups[unseen]],
                routes=(route,),
                k=k,
                exclude_seen=unseen,
                beam_width=beam_width,
                legal=legal[unseen],
            )
            ranked |= zip(groups[unseen], found[route], strict=True)
        return [
            Recommendation(
                [self.item_ids[index] for index in ranked[row].item_indices],
                ranked[row].scores.tolist(),
                "none" if len(history) else "popularity",
            )
            for row, history in enumerate(known)
        ]

    def _legal(self, rules: Rules | None, of_rows: Sequence[Rules | None]) -> EligibleItems | None:
        if rules is None and not any(of_rows):
            return None
        return EligibleItems(self._index_of, rules, of_rows, items_of=self.items_of)

    def _popular(self, k: int, num_rows: int, legal: EligibleItems | None) -> list[Ranked]:
        """The most popular of the legal items for each of some rows."""
        rows = []
        for row in range(num_rows):
            best = self._by_popularity
            if legal is not None:
                best = best[legal.mask(np.array([row]))[0].numpy()[best]]
            rows.append(Ranked(best[:k], self._share[best[:k]]))
        return rows

    def _check(self, routes: Sequence[str], k: int, beam_width: int | None) -> None:
        available = ("fused", *self._decoder.routes)
        for route in routes:
            if route not in available:
                raise RequestError(f"route is {route!r}; this model has {', '.join(available)}.")
        if not 1 <= k <= self.num_items:
            raise RequestError(f"k is {k}; it must be from 1 to the catalogue's {self.num_items} items.")
        if beam_width is not None and not 1 <= beam_width <= self.num_items:
            raise RequestError(f"beam_width is {beam_width}; it must be from 1 to {self.num_items}.")
