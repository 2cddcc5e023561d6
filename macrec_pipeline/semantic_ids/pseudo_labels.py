"""Pseudo-labels: the k-means cluster of each item in one modality (MACRec section 3.1).

They tell the contrastive terms of the quantizer which items count as similar.

The two functions that use Euclidean distances in faiss, `k_means` and `nearest_centroids`, are here. faiss computes
many distances at once as |q|^2 + |x|^2 - 2qx in float32. If all vectors share a large offset, as the hidden states of
language models do, the terms cancel and the nearest vector changes. Both functions therefore subtract a mean first,
which changes no distance.
Shapes (docs/notation.md): D embedding width, N items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.runtime.seeds import derived_seed

if TYPE_CHECKING:
    from macrec_pipeline.config import PseudoLabelConfig

# The paper's 512 clusters contain about a dozen items each. A small catalogue gets fewer clusters, so that most items
# still share theirs with others.
MIN_ITEMS_PER_CLUSTER = 4


def fit_pseudo_labels(vectors: np.ndarray, config: PseudoLabelConfig, *, seed: int) -> np.ndarray:
    """Cluster the rows of float32 [N, D] by k-means.

    There are at most `config.num_clusters` clusters, and at most one per `MIN_ITEMS_PER_CLUSTER` items.

    Returns:
        The cluster of each item: int64 [N], each in [0, number of clusters).
    """
    num_clusters = max(1, min(config.num_clusters, len(vectors) // MIN_ITEMS_PER_CLUSTER))
    centroids = k_means(vectors, num_clusters=num_clusters, num_iterations=config.num_iterations, seed=seed)
    return nearest_centroids(vectors, centroids)


def k_means(vectors: np.ndarray, *, num_clusters: int, num_iterations: int, seed: int) -> np.ndarray:
    """Cluster float32 [N, D] with faiss, on all rows rather than a sample.

    Returns:
        The centroids, float32 [num_clusters, D].

    Raises:
        SemanticIdError: a value is not finite; faiss itself would crash.
    """
    import faiss  # takes half a second to import, and only fitting needs it

    bad_rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad_rows):
        raise SemanticIdError(
            f"k-means found values that are not finite in {len(bad_rows)} of {len(vectors)} rows; the first is row "
            f"{bad_rows[0]}. Look for extreme values in the embeddings."
        )
    clustering = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=derived_seed(seed, "k-means") % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    centre = _mean(vectors)
    clustering.train(_shifted(vectors, centre))
    return np.asarray(clustering.centroids + centre)


def nearest_centroids(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Return the nearest centroid of each row by Euclidean distance: int64 [N]."""
    import faiss

    centre = _mean(centroids)
    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(_shifted(centroids, centre))
    _, labels = index.search(_shifted(vectors, centre), 1)
    return np.asarray(labels[:, 0], dtype=np.int64)


def _mean(vectors: np.ndarray) -> np.ndarray:
    """Return the mean row of [N, D], summed in float64: float32 [D]."""
    return np.asarray(vectors.mean(axis=0, dtype=np.float64), dtype=np.float32)


def _shifted(vectors: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Subtract `centre` [D] from each row, as faiss needs it: contiguous float32 [N, D]."""
    return np.ascontiguousarray(vectors - centre, dtype=np.float32)
