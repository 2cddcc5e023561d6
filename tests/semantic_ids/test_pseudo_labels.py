"""Euclidean distances are right whatever offset the vectors share.

faiss takes another formula for distances from about 128,000 numbers per call on, so the inputs here are larger.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

import macrec_pipeline
from macrec_pipeline.config import PseudoLabelConfig
from macrec_pipeline.semantic_ids.pseudo_labels import fit_pseudo_labels, k_means, nearest_centroids
from macrec_pipeline.semantic_ids.residual_quantizer import ResidualQuantizer

OFFSETS = (0.0, 100.0, 1000.0, -1000.0)


def vectors_around(offset: float, num_rows: int, width: int) -> np.ndarray:
    rows = np.random.default_rng(1).standard_normal((num_rows, width))
    return (rows + offset).astype(np.float32)


def nearest_in_float64(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """Search by brute force, difference by difference."""
    found = []
    for row in vectors.astype(np.float64):
        found.append(np.square(centroids.astype(np.float64) - row).sum(axis=1).argmin())
    return np.array(found)


@pytest.mark.parametrize("offset", OFFSETS)
def test_the_nearest_centroid_is_that_of_float64(offset: float) -> None:
    vectors = vectors_around(offset, 3000, 128)
    centroids = vectors[np.random.default_rng(2).choice(3000, 256, replace=False)] + np.float32(0.25)
    np.testing.assert_array_equal(nearest_centroids(vectors, centroids), nearest_in_float64(vectors, centroids))


@pytest.mark.parametrize("offset", OFFSETS)
def test_k_means_moves_with_the_vectors(offset: float) -> None:
    """The centroids of shifted vectors are the shifted centroids, up to two roundings to float32."""
    vectors = np.round(vectors_around(0, 2000, 96) * 256) / 256
    settings = {"num_clusters": 16, "num_iterations": 10, "seed": 3}
    expected, found = k_means(vectors, **settings), k_means(vectors + np.float32(offset), **settings)
    np.testing.assert_allclose(
        found.astype(np.float64) - offset, expected, rtol=0, atol=2 * np.spacing(np.float32(1000))
    )


@pytest.mark.parametrize("offset", OFFSETS)
def test_pseudo_labels_do_not_depend_on_the_offset(offset: float) -> None:
    vectors = np.round(vectors_around(0, 2000, 96) * 256) / 256
    config = PseudoLabelConfig(num_clusters=64)
    expected = fit_pseudo_labels(vectors, config, seed=1)
    np.testing.assert_array_equal(fit_pseudo_labels(vectors + np.float32(offset), config, seed=1), expected)


@pytest.mark.parametrize("offset", OFFSETS)
def test_codebooks_start_with_the_error_that_float64_finds(offset: float) -> None:
    """The first level of the residual quantizer takes away what the nearest centroid explains."""
    vectors = vectors_around(offset, 3000, 64)
    quantizer = ResidualQuantizer(num_levels=2, codebook_size=128, latent_dim=64, commitment_weight=0.25)
    errors = quantizer.initialize_codebooks(torch.from_numpy(vectors), seed=1)
    centroids = quantizer.codebooks[0].detach().numpy()
    residuals = vectors.astype(np.float64) - centroids[nearest_in_float64(vectors, centroids)]
    np.testing.assert_allclose(errors[0], np.square(residuals).mean(), rtol=1e-5)


def test_no_other_module_uses_euclidean_distances_of_faiss() -> None:
    """A module that needs them calls `k_means` or `nearest_centroids`, which subtract the mean."""
    package = Path(macrec_pipeline.__file__).parent
    words = ("FlatL2", "METRIC_L2", "faiss.Kmeans", "index_factory", "pairwise_distance")
    users = {
        path.name
        for path in package.rglob("*.py")
        if "faiss" in (text := path.read_text(encoding="utf-8")) and any(word in text for word in words)
    }
    assert users == {"pseudo_labels.py"}
