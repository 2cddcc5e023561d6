"""A small catalogue of two modalities, and quantizers fitted to it in a moment."""

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


def tiny(**changes: Any) -> QuantizerConfig:
    """`TINY` with some settings changed, and checked."""
    return QuantizerConfig.model_validate(TINY.model_dump() | changes)


def two_modalities(num_items: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Items of ten kinds and ten looks: text tells the kind, the picture the look."""
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(2, 10, 12)).astype(np.float32) * 3
    kind, look = generator.integers(10, size=num_items), generator.integers(10, size=num_items)
    noise = generator.normal(size=(2, num_items, 12)).astype(np.float32)
    return centres[0][kind] + noise[0], centres[1][look] + noise[1]


def collaborative_vectors(num_items: int = 100) -> np.ndarray:
    """float32 [N, 5]."""
    return np.random.default_rng(7).normal(size=(num_items, 5)).astype(np.float32)


def fitted(
    config: QuantizerConfig = TINY,
    *,
    seed: int = 1,
    image: np.ndarray | None = None,
    collaborative: np.ndarray | None = None,
) -> FittedQuantizer:
    """Fit to the catalogue, or to other pictures of it."""
    text, own_image = two_modalities()
    image = own_image if image is None else image
    labels = [fit_pseudo_labels(x, PseudoLabelConfig(num_clusters=10), seed=1) for x in (text, image)]
    return fit_quantizer(text, image, *labels, config, seed=seed, device=CPU, collaborative_vectors=collaborative)
