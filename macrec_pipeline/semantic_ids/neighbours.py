"""Items that lack a modality get its vector from the items most like them in the modality that they have.

In: the embeddings of both modalities, with a mean wherever there was nothing to encode. Out: the same, with a guess of
its own for every such item that has the other modality. A mean would give all of them one vector, and so one semantic
ID that has to be resolved item by item.

Shapes: N items, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# The mean of ten is steadier than the nearest alone, and still of one kind of item.
NUM_NEIGHBOURS = 10
_OTHER = {"text": "image", "image": "text"}


def impute_from_neighbours(
    vectors: Mapping[str, np.ndarray], missing: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Replace the rows of items that lack a modality by the mean over their neighbours in the other one.

    Neighbours are the `NUM_NEIGHBOURS` items of the largest cosine, found exactly, among those that have both. An item
    that lacks both, or a catalogue in which nothing has both, keeps what it has.

    Args:
        vectors: {"text", "image": float32 [N, D]}, the same items in the same order; one alone is handed back.
        missing: {"text", "image": bool [N]}, True where a row stands for nothing.

    Returns:
        The matrices that were handed in, or a copy of each in which rows have changed.
    """
    if len(vectors) == 1:
        return dict(vectors)
    complete = np.flatnonzero(~missing["text"] & ~missing["image"])
    filled = dict(vectors)
    for name, other in _OTHER.items():
        rows = np.flatnonzero(missing[name] & ~missing[other])
        if len(rows) and len(complete):
            neighbours = complete[  # [rows, neighbours]
                nearest_by_cosine(vectors[other][rows], vectors[other][complete], count=NUM_NEIGHBOURS)
            ]
            filled[name] = vectors[name].copy()
            for row, own in zip(rows, neighbours, strict=True):
                filled[name][row] = vectors[name][own].mean(axis=0, dtype=np.float64)
    return filled


def nearest_by_cosine(queries: np.ndarray, candidates: np.ndarray, *, count: int) -> np.ndarray:
    """The rows of float [N, D] with the largest cosine to each of float [Q, D], best first: int64 [Q, count or N]."""
    import faiss

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(unit_rows(candidates))
    return np.asarray(index.search(unit_rows(queries), min(count, len(candidates)))[1])


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Float [N, D] with every row at length one, float32; a row of zeros stays."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
