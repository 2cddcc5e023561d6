"""The collaborative vectors that a quantizer was fitted with, by item id: they anchor its input while it lasts.

A SASRec that is trained again has other axes, so its vectors mean nothing to an older quantizer. The vectors are kept
in the quantizer's folder, and an item that has none gets the mean of those of the items most like it in content.

    anchors.safetensors    vectors: float32 [A, C]
    anchors.json           the item ids, in that order

Shapes: N items, A anchors, D embedding, C collaborative vector.
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
from macrec_pipeline.semantic_ids.neighbours import NUM_NEIGHBOURS, nearest_by_cosine, unit_rows

VECTORS_FILE, ITEMS_FILE = "anchors.safetensors", "anchors.json"


@dataclass(frozen=True)
class Anchors:
    """The items that a quantizer was fitted to, and their collaborative vectors float32 [A, C]."""

    item_ids: Sequence[str]
    vectors: np.ndarray

    def save(self, folder: Path) -> None:
        """Write both files into the quantizer's folder."""
        save_file({"vectors": np.ascontiguousarray(self.vectors, dtype=np.float32)}, folder / VECTORS_FILE)
        text = json.dumps(list(self.item_ids), ensure_ascii=False, indent=0)
        (folder / ITEMS_FILE).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Anchors:
        """Read what `save` wrote. Raises `StorageError` that names the folder."""
        try:
            item_ids = json.loads((folder / ITEMS_FILE).read_text(encoding="utf-8"))
            vectors = load_file(folder / VECTORS_FILE)["vectors"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise StorageError(
                f"{folder} does not say which collaborative vectors its quantizer was fitted with: {error}. Without "
                "them no new item can be quantized: quantize anew with identity.mode=new."
            ) from error
        if len(item_ids) != len(vectors):
            raise StorageError(
                f"{folder}: {ITEMS_FILE} names {len(item_ids)} items, {VECTORS_FILE} holds {len(vectors)} vectors. "
                "Quantize anew with identity.mode=new."
            )
        return cls(item_ids, vectors)

    def of(self, item_ids: Sequence[str], vectors: Mapping[str, np.ndarray]) -> np.ndarray:
        """An anchor for every item of a catalogue.

        Neighbours are the items with an anchor of their own whose embeddings have the largest cosines, summed over the
        modalities. Where no item of the catalogue has one, the mean of all anchors stands in.

        Args:
            item_ids: N keys of the shop.
            vectors: {modality: float32 [N, D]}, in that order.

        Returns:
            float32 [N, C]; the items that the quantizer was fitted to have the bytes that it saw.
        """
        row_of = {item_id: row for row, item_id in enumerate(self.item_ids)}
        rows = np.array([row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
        own, bare = np.flatnonzero(rows >= 0), np.flatnonzero(rows < 0)
        anchors = np.tile(self.vectors.mean(axis=0, dtype=np.float64).astype(np.float32), (len(rows), 1))
        anchors[own] = self.vectors[rows[own]]
        if len(own) and len(bare):
            content = np.concatenate([unit_rows(matrix) for matrix in vectors.values()], axis=1)
            neighbours = own[nearest_by_cosine(content[bare], content[own], count=NUM_NEIGHBOURS)]
            for row, near in zip(bare, neighbours, strict=True):
                anchors[row] = anchors[near].mean(axis=0, dtype=np.float64)
        return anchors
