"""Residual k-means: the quantizer that learns nothing but centroids, a baseline for the RQ-VAEs.

In: raw embeddings of one modality. Out: codebooks in the standardized space, by k-means of what the levels before left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


class ResidualKMeans(ModalityQuantizer):
    """A modality whose latent is the standardized embedding itself.

    Args:
        input_dim: D of this modality, and H.
        config: number of levels and codes.
    """

    def __init__(self, input_dim: int, config: QuantizerConfig) -> None:
        super().__init__(input_dim, config, latent_dim=input_dim)

    def latents(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> standardized float [B, D]."""
        return self.standardized(vectors)

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """The quantized float [B, D] as they are: a latent is the standardized embedding."""
        return latents

    def fit(self, vectors: torch.Tensor, *, seed: int) -> list[float]:
        """Set the codebooks from all items, float [N, D], standardized before.

        Returns:
            The mean squared error that is left after each level.
        """
        return self.quantizer.initialise(self.latents(vectors), seed=seed)
