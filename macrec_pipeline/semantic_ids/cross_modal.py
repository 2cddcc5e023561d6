"""The cross-modal quantizer: an autoencoder a modality, a residual quantizer in each, contrasts between (section 3.2).

Shapes: B batch, D raw embedding, H latent, L levels, K codes a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.runtime.contrast import symmetric_info_nce
from macrec_pipeline.semantic_ids.losses import draw_positives, layer_contrast
from macrec_pipeline.semantic_ids.residual_quantizer import Quantized, ResidualQuantizer

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


class ModalityQuantizer(nn.Module):
    """One modality: standardization, projection, encoder, residual quantizer, mirrored decoder.

    Encoders differ in scale by orders of magnitude (a unit vector of 384 numbers has a mean square of 0.003), so
    embeddings are centred and divided by one number first, so that the reconstruction weighs the same against the
    contrasts whatever the encoder. Both are buffers, and part of the checkpoint.

    Args:
        input_dim: D of this modality.
        config: the sizes.
        generator: draws the Xavier-normal weights.
    """

    def __init__(self, input_dim: int, config: QuantizerConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.centre: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("centre", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(()))
        self.projection = nn.Linear(input_dim, config.projection_dim)
        sizes = (config.projection_dim, *config.hidden_dims, config.latent_dim)
        self.encoder = _mlp(sizes)
        self.quantizer = ResidualQuantizer(
            num_levels=config.num_levels,
            codebook_size=config.codebook_size,
            latent_dim=config.latent_dim,
            commitment_weight=config.commitment_weight,
        )
        self.decoder = _mlp((*reversed(sizes), input_dim))
        if generator is not None:
            self._initialise(generator)

    @torch.no_grad()
    def standardize(self, vectors: torch.Tensor) -> None:
        """Set centre and scale from all raw embeddings, float [N, D]: mean square one around their mean.

        Raises:
            TrainingError: the spread overflows float32, so that everything would be divided down to zero.
        """
        self.centre.copy_(vectors.mean(dim=0))
        self.scale.copy_((vectors - self.centre).square().mean().sqrt().clamp(min=1e-12))
        if not torch.isfinite(self.scale):
            largest = vectors.abs().max().item()
            raise TrainingError(
                f"The embeddings cannot be standardized: their largest magnitude is {largest:.4g}, and the mean square "
                "is not finite. Look for extreme values in the embeddings."
            )

    def latents(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw embeddings float [B, D] -> latents float [B, H]."""
        result: torch.Tensor = self.encoder(self.projection((vectors - self.centre) / self.scale))
        return result

    def forward(self, vectors: torch.Tensor) -> tuple[Quantized, torch.Tensor]:
        """Raw embeddings float [B, D] -> their quantization and the reconstruction loss (mse of the standardized)."""
        quantized: Quantized = self.quantizer(self.latents(vectors))
        return quantized, F.mse_loss(self.decoder(quantized.latent), (vectors - self.centre) / self.scale)

    def _initialise(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)


@dataclass(frozen=True)
class QuantizerLosses:
    """The weighted sum, and its parts unweighted; scalars."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class CrossModalQuantizer(nn.Module):
    """Both modalities, trained together.

    Args:
        text_dim, image_dim: D of each modality.
        config: sizes and weights.
        generator: draws the initial weights; None leaves them to be loaded.
    """

    def __init__(
        self, text_dim: int, image_dim: int, config: QuantizerConfig, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.text = ModalityQuantizer(text_dim, config, generator)
        self.image = ModalityQuantizer(image_dim, config, generator)

    def losses(
        self,
        text: torch.Tensor,
        image: torch.Tensor,
        text_clusters: torch.Tensor,
        image_clusters: torch.Tensor,
        *,
        generator: torch.Generator,
    ) -> QuantizerLosses:
        """Every term on one batch.

        Args:
            text, image: float [B, D], the raw embeddings of the same items.
            text_clusters, image_clusters: int64 [B], their pseudo-labels.
            generator: draws the positives, on the CPU.
        """
        config = self.config
        text_quantized, text_reconstruction = self.text(text)
        image_quantized, image_reconstruction = self.image(image)
        contrast = partial(layer_contrast, from_level=config.contrast_from_level, temperature=config.temperature)
        parts = {
            "text_reconstruction": text_reconstruction,
            "image_reconstruction": image_reconstruction,
            "text_level_loss": text_quantized.level_loss,
            "image_level_loss": image_quantized.level_loss,
            # a modality's levels are told who is alike by the other modality's clusters
            "text_contrast": contrast(text_quantized.residuals, draw_positives(image_clusters, generator=generator)),
            "image_contrast": contrast(image_quantized.residuals, draw_positives(text_clusters, generator=generator)),
            "alignment": symmetric_info_nce(
                text_quantized.latent, image_quantized.latent, temperature=config.temperature
            ),
        }
        weights = {"text_contrast": config.contrast_weight, "image_contrast": config.contrast_weight}
        weights["alignment"] = config.alignment_weight
        total = torch.stack([weights.get(name, 1.0) * value for name, value in parts.items()]).sum()
        return QuantizerLosses(total, parts)


def _mlp(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for enters, leaves in pairwise(sizes):
        layers += [nn.Linear(enters, leaves), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
