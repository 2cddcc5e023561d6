"""A small catalogue with two modalities, and quantizers that are fitted to it within a moment."""

from typing import Any

import numpy as np
import torch

from macrec_pipeline.config import PseudoLabelConfig, QuantizerConfig
from macrec_pipeline.semantic_ids import FittedQuantizer, fit_pseudo_labels, fit_quantizer

CPU = torch.device("cpu")
TINY = QuantizerConfig(
    num_levels=3,
    codebook_size=8,
    latent_dim=4,
    projection_dim=16,
    hidden_dims=(16, 8),
    batch_size=64,
    num_epochs=6,
    evaluate_every=2,
    contrast_from_level=2,
)


def tiny(**settings: Any) -> QuantizerConfig:
    """Return `TINY` with some settings changed and validated."""
    return QuantizerConfig.model_validate(TINY.model_dump() | settings)


def two_modalities(num_items: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Return text and image vectors of items with ten kinds and ten looks: text shows the kind, the image the look."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2, 10, 12)).astype(np.float32) * 3
    kind, look = generator.integers(10, size=num_items), generator.integers(10, size=num_items)
    noise = generator.normal(size=(2, num_items, 12)).astype(np.float32)
    return centres[0][kind] + noise[0], centres[1][look] + noise[1]


def collaborative_vectors(num_items: int = 100) -> np.ndarray:
    """Return random float32 [N, 5]."""
    return np.random.default_rng(7).normal(size=(num_items, 5)).astype(np.float32)


def fitted(
    config: QuantizerConfig = TINY,
    *,
    seed: int = 1,
    image: np.ndarray | None = None,
    collaborative: np.ndarray | None = None,
) -> FittedQuantizer:
    """Fit a quantizer to the catalogue, optionally with other image vectors."""
    text, catalogue_image = two_modalities()
    image = catalogue_image if image is None else image
    labels = [fit_pseudo_labels(vectors, PseudoLabelConfig(num_clusters=10), seed=1) for vectors in (text, image)]
    return fit_quantizer(text, image, *labels, config, seed=seed, device=CPU, collaborative_vectors=collaborative)
