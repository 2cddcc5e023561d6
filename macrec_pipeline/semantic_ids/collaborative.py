"""The collaborative signal in the quantizer, off by default: item vectors learnt from who took what (CAGRec).

In: item vectors of a sequential recommender, float32 [N, C]. Out: the input with them beside the embeddings (so that
codes and reconstruction have to account for them), or a contrast that draws each quantized latent to them.
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
    """InfoNCE between an item's quantized latent and a learnt projection of its collaborative vector.

    Args:
        collaborative_dim: C.
        latent_dim: H.
        temperature: of the InfoNCE.
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
        """Float [B, H] and standardized float [B, C] -> nats, a scalar; the rest of `num_rows` is other ranks'."""
        size = num_rows or len(latents)
        both = (distributed.whole_batch(own, num_rows=size) for own in (latents, self.projection(collaborative)))
        return symmetric_info_nce(*both, temperature=self.temperature)


def wanted_collaborative_vectors(
    vectors: np.ndarray | None, config: QuantizerConfig, *, num_items: int
) -> np.ndarray | None:
    """The vectors if a weight asks for them, None if both weights are 0.

    Raises:
        ConfigError: a weight asks for vectors, and there are none.
        SemanticIdError: they are not float [N, C].
    """
    weights = {
        name: getattr(config, name)
        for name in ("collaborative_input_weight", "collaborative_contrast_weight")
        if getattr(config, name) > 0
    }
    if not weights:
        return None
    if vectors is None:
        asked = " and ".join(f"quantizer.{name}={weight}" for name, weight in weights.items())
        raise ConfigError(
            f"{asked} needs an item vector from a collaborative model, and none were given. Hand over "
            f"collaborative_vectors, float32 [{num_items}, C], or set the weight to 0."
        )
    if vectors.ndim != 2 or len(vectors) != num_items:
        raise SemanticIdError(
            f"The collaborative vectors have shape {vectors.shape}; expected ({num_items}, C), one row an item in the "
            "order of the embeddings. Make them from the same catalogue."
        )
    return vectors


def anchored(vectors: np.ndarray, collaborative: np.ndarray | None, *, collaborative_dim: int) -> np.ndarray:
    """Raw embeddings float32 [N, D] with their collaborative vectors beside them, [N, D + C]; as they are if C is 0.

    Raises:
        SemanticIdError: the quantizer was fitted with collaborative vectors, and these are missing or of another shape.
    """
    if not collaborative_dim:
        return vectors
    expected = (len(vectors), collaborative_dim)
    if collaborative is None or collaborative.shape != expected:
        raise SemanticIdError(
            "The quantizer was fitted with collaborative vectors beside the embeddings. Expected collaborative_vectors "
            f"of shape {expected}, got {None if collaborative is None else collaborative.shape}. Hand over the item "
            "vectors of the model it was fitted with, or fit it with quantizer.collaborative_input_weight=0."
        )
    return np.concatenate([vectors, collaborative], axis=1, dtype=np.float32)
