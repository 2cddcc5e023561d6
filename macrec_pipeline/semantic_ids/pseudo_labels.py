"""Pseudo-labels: the k-means cluster of each item in one modality (MACRec section 3.1).

In: raw embeddings float32 [N, D]. Out: cluster numbers int64 [N]. They tell the quantizer which items count as alike.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.runtime.seeds import derived_seed

if TYPE_CHECKING:
    from macrec_pipeline.config import PseudoLabelConfig

# The paper's 512 clusters hold about a dozen items each; a small catalogue gets fewer, so that items have company.
MIN_ITEMS_PER_CLUSTER = 4


def fit_pseudo_labels(vectors: np.ndarray, config: PseudoLabelConfig, *, seed: int) -> np.ndarray:
    """Cluster the rows of float32 [N, D] by k-means; int64 [N], each in [0, number of clusters).

    At most `config.num_clusters` clusters, and no more than one for every four items.
    """
    num_clusters = max(1, min(config.num_clusters, len(vectors) // MIN_ITEMS_PER_CLUSTER))
    centroids = k_means(vectors, num_clusters=num_clusters, num_iterations=config.num_iterations, seed=seed)
    return nearest(vectors, centroids)


def k_means(vectors: np.ndarray, *, num_clusters: int, num_iterations: int, seed: int) -> np.ndarray:
    """Centroids float32 [num_clusters, D] of float32 [N, D], by faiss; every point counts, none is sampled away.

    Raises:
        SemanticIdError: a value is not finite, which faiss itself answers with a crash.
    """
    import faiss  # takes half a second to load, and only fitting needs it

    bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(bad):
        raise SemanticIdError(
            f"k-means got {len(bad)} of {len(vectors)} rows that are not finite, the first is row {bad[0]}. "
            "Look for extreme values in the embeddings."
        )
    clustering = faiss.Kmeans(
        vectors.shape[1],
        num_clusters,
        niter=num_iterations,
        seed=derived_seed(seed, "k-means") % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    clustering.train(np.ascontiguousarray(vectors, dtype=np.float32))
    return np.asarray(clustering.centroids)


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """The nearest centroid of each row by Euclidean distance, int64 [N]."""
    import faiss

    index = faiss.IndexFlatL2(centroids.shape[1])
    index.add(np.ascontiguousarray(centroids, dtype=np.float32))
    _, labels = index.search(np.ascontiguousarray(vectors, dtype=np.float32), 1)
    return np.asarray(labels[:, 0], dtype=np.int64)
