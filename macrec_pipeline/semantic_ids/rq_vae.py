"""The RQ-VAE of one modality: an autoencoder whose latent is residually quantized (MACRec section 3.2; TIGER).

Shapes: B batch, D input, H latent.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.runtime.fast_layers import Linear
from macrec_pipeline.runtime.training import products_in
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer
from macrec_pipeline.semantic_ids.residual_quantizer import Quantized

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


class RqVae(ModalityQuantizer):
    """Standardization, projection, encoder, residual quantizer, mirrored decoder.

    Args:
        input_dim: D of this modality.
        config: the sizes.
        generator: draws the Xavier-normal weights; None leaves them to be loaded.
    """

    def __init__(self, input_dim: int, config: QuantizerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__(input_dim, config, latent_dim=config.latent_dim)
        self.projection = Linear(input_dim, config.projection_dim)
        self.precision = config.precision
        sizes = (config.projection_dim, *config.hidden_dims, config.latent_dim)
        self.encoder = _mlp(sizes)
        self.decoder = _mlp((*reversed(sizes), input_dim))
        if generator is not None:
            self._initialise(generator)

    def latents(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> latents float [B, H]."""
        return self._encode(self.standardized(vectors))

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """Quantized latents float [B, H] -> reconstruction float [B, D], standardized."""
        result: torch.Tensor = self.decoder(latents)
        return result

    def forward(self, vectors: torch.Tensor) -> tuple[Quantized, torch.Tensor]:
        """In training, raw float [B, D] -> their quantization and the reconstruction loss (mse of the standardized)."""
        target = self.standardized(vectors)
        # the layers alone: which code is nearest, and how far, is a matter of small differences
        with products_in(self.precision, vectors.device):
            latent = self._encode(target).float()
        quantized: Quantized = self.quantizer(latent)
        with products_in(self.precision, vectors.device):
            reconstruction = self.decoder(quantized.latent).float()
        return quantized, F.mse_loss(reconstruction, target)

    def _encode(self, standardized: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.encoder(self.projection(standardized))
        return result

    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for enters, leaves in pairwise(sizes):
        layers += [Linear(enters, leaves), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
