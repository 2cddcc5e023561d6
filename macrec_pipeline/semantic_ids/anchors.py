"""The collaborative vectors that a quantizer was fitted with, stored with it by item ID.

If SASRec is trained again, its vectors get new axes and mean nothing to an older quantizer. The vectors of the fit are
therefore kept in the quantizer's folder. An item that has none gets the vector that today's SASRec has learned for it,
turned into the axes of the fit, or the mean over the items with the most similar content if it was too rarely seen.

    anchors.safetensors    vectors: float32 [Z, F]
    anchors.json           the item IDs, in the same order

Shapes (docs/notation.md): D embedding width, F width of a collaborative vector, N items, Z anchors.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.semantic_ids.alignment import align
from macrec_pipeline.semantic_ids.neighbours import NUM_NEIGHBOURS, nearest_by_cosine, unit_rows

VECTORS_FILE, ITEMS_FILE = "anchors.safetensors", "anchors.json"


@dataclass(frozen=True)
class LearnedVectors:
    """What today's SASRec has learned about the items of a catalogue, in axes of its own.

    Attributes:
        vectors: float32 [N, F].
        is_reliable: bool [N], True for items that were seen often enough for their vector to mean something.
    """

    vectors: np.ndarray
    is_reliable: np.ndarray


@dataclass(frozen=True)
class Anchors:
    """The items that a quantizer was fitted to, with their collaborative vectors, float32 [Z, F]."""

    item_ids: Sequence[str]
    vectors: np.ndarray

    def save(self, folder: Path) -> None:
        """Write both files into the quantizer's folder."""
        save_file({"vectors": np.ascontiguousarray(self.vectors, dtype=np.float32)}, folder / VECTORS_FILE)
        text = json.dumps(list(self.item_ids), ensure_ascii=False, indent=0)
        (folder / ITEMS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Anchors:
        """Read what `save` wrote.

        Raises:
            StorageError: a file is missing, is not readable, or does not match the other one.
        """
        try:
            item_ids = json.loads((folder / ITEMS_FILE).read_text(encoding="utf-8"))
            vectors = load_file(folder / VECTORS_FILE)["vectors"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise StorageError(
                f"The collaborative vectors that the quantizer in {folder} was fitted with cannot be read: {error}. "
                "Without them no new item can be quantized. Fit a new quantizer with identity.mode=new."
            ) from error
        if len(item_ids) != len(vectors):
            raise StorageError(
                f"{folder}: {ITEMS_FILE} names {len(item_ids)} items, but {VECTORS_FILE} has {len(vectors)} vectors. "
                "Fit a new quantizer with identity.mode=new."
            )
        return cls(item_ids, vectors)

    def for_items(
        self,
        item_ids: Sequence[str],
        embeddings: Mapping[str, np.ndarray],
        *,
        learned: LearnedVectors | None = None,
    ) -> np.ndarray:
        """Return a collaborative vector for each item of a catalogue.

        An item without an anchor gets its learned vector, after the motion that brings the learned vectors of the other
        items closest to their anchors. If there is no reliable one, or if at most F other items have both, so that they
        do not determine the motion, it gets the mean over its neighbours: the items with an anchor whose embeddings
        have the largest cosines, summed over the modalities. If no item of the catalogue has an anchor, every item
        gets the mean of all anchors.

        Args:
            item_ids: N item IDs.
            embeddings: modality -> float32 [N, D], in the same order.
            learned: what today's SASRec knows about the same items; None if there is none.

        Returns:
            float32 [N, F]. Items that the quantizer was fitted to have exactly the vectors of the fit.
        """
        row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        rows = np.array([row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        anchored, unanchored = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        vectors = np.tile(self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32), (len(rows), 1))  # [N, F]
        vectors[anchored] = self.vectors[rows[anchored]]
        if len(anchored) and len(unanchored):
            content = np.concatenate([unit_rows(matrix) for matrix in embeddings.values()], axis=1)
            nearest = nearest_by_cosine(content[unanchored], content[anchored], count=NUM_NEIGHBOURS)
            for row, neighbours in zip(unanchored, anchored[nearest], strict=True):
                vectors[row] = vectors[neighbours].mean(axis=0, dtype=np.float64)
        if learned is not None and learned.vectors.shape[1] == vectors.shape[1]:
            common, new = anchored[learned.is_reliable[anchored]], unanchored[learned.is_reliable[unanchored]]
            if len(common) > vectors.shape[1] and len(new):
                alignment = align(learned.vectors[common], self.vectors[rows[common]])
                vectors[new] = alignment.apply(learned.vectors[new])
        return vectors
