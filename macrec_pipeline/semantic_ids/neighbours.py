"""Imputes the embedding of a modality that an item lacks, from the items that are most similar in the other modality.

Before this step, all items without an image, say, share the mean image embedding. They would therefore share one
semantic ID, and every such collision would have to be resolved. With this step each of them gets its own estimate.

Shapes (docs/notation.md): D embedding width, N items, Q query vectors.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

# The mean of ten neighbours is more stable than the nearest one alone, and ten are still items of the same kind.
NUM_NEIGHBOURS = 10
_OTHER_MODALITY = {"text": "image", "image": "text"}


def impute_from_neighbours(
    vectors: Mapping[str, np.ndarray], missing: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Replace the vectors of a missing modality by the mean over the item's neighbours in the other modality.

    The neighbours of an item are the `NUM_NEIGHBOURS` items with the largest cosine, found by exact search, among
    those that have both modalities. If an item lacks both, or no item has both, the vectors stay as they are.

    Args:
        vectors: modality -> float32 [N, D], the items in the same order. A single modality is returned unchanged.
        missing: modality -> bool [N], True where the item lacks the modality.

    Returns:
        The same matrices, or a copy of a matrix in which rows were replaced.
    """
    if len(vectors) == 1:
        return dict(vectors)
    complete = np.flatnonzero(~missing["text"] & ~missing["image"])
    filled = dict(vectors)
    for modality, other in _OTHER_MODALITY.items():
        rows = np.flatnonzero(missing[modality] & ~missing[other])
        if len(rows) and len(complete):
            nearest = nearest_by_cosine(vectors[other][rows], vectors[other][complete], count=NUM_NEIGHBOURS)
            filled[modality] = vectors[modality].copy()
            for row, neighbours in zip(rows, complete[nearest], strict=True):
                filled[modality][row] = vectors[modality][neighbours].mean(axis=0, dtype=np.float64)
    return filled


def nearest_by_cosine(queries: np.ndarray, candidates: np.ndarray, *, count: int) -> np.ndarray:
    """Find the candidates with the largest cosine to each query.

    Args:
        queries: float [Q, D].
        candidates: float [N, D].
        count: number of candidates to find per query; all of them if there are fewer.

    Returns:
        Rows of `candidates`, int64 [Q, min(count, N)], the nearest first.
    """
    import faiss

    index = faiss.IndexFlatIP(candidates.shape[1])
    index.add(unit_rows(candidates))
    return np.asarray(index.search(unit_rows(queries), min(count, len(candidates)))[1])


def unit_rows(vectors: np.ndarray) -> np.ndarray:
    """Scale each row of float [N, D] to length 1, as float32; a row of zeros stays zero."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(norms, 1e-12), dtype=np.float32)
