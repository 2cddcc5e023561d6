"""The collaborative signal in the quantizer, off by default: item vectors learned from interactions, as in CAGRec.

The vectors come from a sequential recommender. They can enter the quantizer in two ways: as further columns of its
input, which codes and reconstruction then have to account for, and through a contrastive loss that pulls each quantized
latent towards the vector of its item.

Shapes (docs/notation.md): B batch rows, D embedding width, F width of a collaborative vector, H width of a latent,
N items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from macrec_pipeline.errors import ConfigError, SemanticIdError
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.info_nce import symmetric_info_nce

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


class CollaborativeContrast(nn.Module):
    """InfoNCE between the quantized latent of an item and a learned projection of its collaborative vector.

    Args:
        collaborative_dim: F.
        latent_dim: H.
        temperature: temperature of the InfoNCE loss.
        generator: draws the Xavier-normal projection.
    """

    def __init__(
        self, collaborative_dim: int, latent_dim: int, *, temperature: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.projection = nn.Linear(collaborative_dim, latent_dim, bias=False)
        nn.init.xavier_normal_(self.projection.weight, generator=generator)
        self.temperature = temperature

    def forward(
        self, latents: torch.Tensor, collaborative: torch.Tensor, *, num_rows: int | None = None
    ) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            latents: float [B, H].
            collaborative: standardized float [B, F].
            num_rows: rows of the batch over all ranks; None if this rank has all of them.

        Returns:
            A scalar, in nats.
        """
        size = num_rows or len(latents)
        pair = (distributed.gather_batch(rows, num_rows=size) for rows in (latents, self.projection(collaborative)))
        return symmetric_info_nce(*pair, temperature=self.temperature)


def required_collaborative_vectors(
    vectors: np.ndarray | None, config: QuantizerConfig, *, num_items: int
) -> np.ndarray | None:
    """Return the collaborative vectors if the settings use them, and None if both of their weights are 0.

    Raises:
        ConfigError: the settings use collaborative vectors, and there are none.
        SemanticIdError: the vectors are not float [N, F].
    """
    weights = {
        name: getattr(config, name)
        for name in ("collaborative_input_weight", "collaborative_contrast_weight")
        if getattr(config, name) > 0
    }
    if not weights:
        return None
    if vectors is None:
        settings = " and ".join(f"quantizer.{name}={weight}" for name, weight in weights.items())
        raise ConfigError(
            f"{settings} needs a collaborative vector per item, but there are none. Pass collaborative_vectors, "
            f"float32 [{num_items}, F], or set the weight to 0."
        )
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise SemanticIdError(
            f"The collaborative vectors have shape {vectors.shape}; expected ({num_items}, F), one row per item in the "
            "order of the embeddings. Compute them from the same catalogue."
        )
    return vectors


def with_collaborative_columns(
    vectors: np.ndarray, collaborative: np.ndarray | None, *, collaborative_dim: int
) -> np.ndarray:
    """Append the collaborative vectors to the embeddings, if the quantizer takes them.

    Args:
        vectors: float32 [N, D].
        collaborative: float32 [N, F]; None if there are none.
        collaborative_dim: F of the quantizer, or 0 if it takes the embeddings alone.

    Returns:
        float32 [N, D + F], or `vectors` itself if F is 0.

    Raises:
        SemanticIdError: the quantizer takes collaborative vectors, and they are missing or have another shape.
    """
    if not collaborative_dim:
        return vectors
    expected = (len(vectors), collaborative_dim)
    if collaborative is None or collaborative.shape != expected:
        found = "none" if collaborative is None else f"shape {collaborative.shape}"
        raise SemanticIdError(
            "The quantizer was fitted with collaborative vectors beside the embeddings. Expected collaborative_vectors "
            f"of shape {expected}, found {found}. Pass the item vectors of the model that it was fitted with, or fit "
            "it with quantizer.collaborative_input_weight=0."
        )
    return np.concatenate([vectors, collaborative], axis=1, dtype=np.float32)
