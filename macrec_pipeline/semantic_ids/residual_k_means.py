"""Residual k-means: a quantizer that learns nothing but centroids, a baseline for the RQ-VAEs.

Takes the raw embeddings of one modality and returns one codebook per level, in the standardized space. Each codebook
comes from a k-means of the residuals of the levels before it.

Shapes (docs/notation.md): B batch rows, D input width, H latent width, N items.
"""

from __future__ import annotations

import torch

from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, QuantizerSpec


class ResidualKMeans(ModalityQuantizer):
    """A modality whose latent is the standardized embedding itself.

    Args:
        input_dim: D of this modality, which is also H.
        spec: number of levels and codes.
    """

    def __init__(self, input_dim: int, spec: QuantizerSpec) -> None:
        super().__init__(input_dim, spec, latent_dim=input_dim)

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> standardized float [B, D]."""
        return self.standardized(vectors)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Return the quantized float [B, D] unchanged, since a latent is the standardized embedding."""
        return latents

    def fit(self, vectors: torch.Tensor, *, seed: int) -> list[float]:
        """Set the codebooks from all items, float [N, D]; the standardization must be fitted before.

        Returns:
            The mean squared error that remains after each level.
        """
        return self.quantizer.initialize_codebooks(self.encode(vectors), seed=seed)
