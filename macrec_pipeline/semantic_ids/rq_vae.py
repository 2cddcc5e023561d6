"""The RQ-VAE of one modality: an autoencoder whose latent is residually quantized (MACRec section 3.2; TIGER).

Shapes (docs/notation.md): B batch rows, D input width, H latent width.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.runtime.fast_layers import Linear
from macrec_pipeline.runtime.training import autocast
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, QuantizerSpec
from macrec_pipeline.semantic_ids.residual_quantizer import Quantized


class RqVae(ModalityQuantizer):
    """Standardization, projection, encoder, residual quantizer, and a decoder that mirrors the encoder.

    Args:
        input_dim: D of this modality.
        spec: the sizes.
        generator: draws the Xavier-normal weights; None if weights will be loaded.
    """

    def __init__(self, input_dim: int, spec: QuantizerSpec, generator: torch.Generator | None = None) -> None:
        super().__init__(input_dim, spec, latent_dim=spec.latent_dim)
        self.projection = Linear(input_dim, spec.projection_dim)
        self.precision = spec.precision
        widths = (spec.projection_dim, *spec.hidden_dims, spec.latent_dim)
        self.encoder = _mlp(widths)
        self.decoder = _mlp((*reversed(widths), input_dim))
        if generator is not None:
            self._draw_weights(generator)

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> latents float [B, H]."""
        return self._encode_standardized(self.standardized(vectors))

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Quantized latents float [B, H] -> reconstructed input float [B, D], standardized."""
        result: torch.Tensor = self.decoder(latents)
        return result

    def forward(self, vectors: torch.Tensor) -> tuple[Quantized, torch.Tensor]:
        """Return the quantization of raw float [B, D], and the mse of the reconstruction of the standardized input."""
        target = self.standardized(vectors)
        # only the layers run in low precision: finding the nearest code depends on small differences
        with autocast(self.precision, vectors.device):
            latent = self._encode_standardized(target).float()
        quantized: Quantized = self.quantizer(latent)
        with autocast(self.precision, vectors.device):
            reconstruction = self.decoder(quantized.latent).float()
        return quantized, F.mse_loss(reconstruction, target)

    def _encode_standardized(self, standardized: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.encoder(self.projection(standardized))
        return result

    def _draw_weights(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
    """Return linear layers of these widths with ReLU between them, and none after the last."""
    layers: list[nn.Module] = []
    for input_width, output_width in pairwise(widths):
        layers += [Linear(input_width, output_width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
