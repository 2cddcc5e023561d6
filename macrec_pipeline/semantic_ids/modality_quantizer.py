"""What the quantizer of one modality is to the rest: standardization, latents, codebooks, and quantizing a catalogue.

In: raw embeddings, with collaborative vectors beside them if those anchor the input. Out: codes, before any collision
is resolved. `rq_vae.py` and `residual_k_means.py` say what a latent is.

Shapes: N items, B batch, D input (embedding and collaborative vector), H latent, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.semantic_ids.residual_quantizer import ResidualQuantizer, nearest_codes

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

_INFERENCE_BATCH = 8192


class ModalityQuantizer(nn.Module):
    """One modality: standardization and a residual quantizer of the latents that a subclass makes.

    Encoders differ in scale by orders of magnitude (a unit vector of 384 numbers has a mean square of 0.003), so
    embeddings are centred and divided by one number first, so that the reconstruction weighs the same against the
    contrasts whatever the encoder. Both are buffers, and part of the checkpoint.

    Args:
        input_dim: D of this modality.
        config: the sizes.
        latent_dim: H, size of what is quantized.
    """

    def __init__(self, input_dim: int, config: QuantizerConfig, *, latent_dim: int) -> None:
        super().__init__()
        self.centre: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("centre", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))
        self.collaborative_input_weight = config.collaborative_input_weight
        self.quantizer = ResidualQuantizer(
            num_levels=config.num_levels,
            codebook_size=config.codebook_size,
            latent_dim=latent_dim,
            commitment_weight=config.commitment_weight,
            straight_through_residuals=config.variant == "as_released",
        )

    @property
    def input_dim(self) -> int:
        """D, with the collaborative part."""
        return len(self.centre)

    @torch.no_grad()
    def standardize(self, vectors: torch.Tensor, *, collaborative_dim: int = 0) -> None:
        """Set centre and scale from all items, float [N, D]: mean square one around the mean.

        The last `collaborative_dim` columns are a block with a scale of its own. A weight of 1 gives it the sum of
        squares that all the others have together, whatever the sizes, so that both count the same in a distance.

        Raises:
            TrainingError: the spread overflows float32, so that everything would be divided down to zero.
        """
        own = self.input_dim - collaborative_dim
        self.centre[:own], self.scale[:own] = centre_and_scale(vectors[:, :own])
        if collaborative_dim:
            self.centre[own:], scale = centre_and_scale(vectors[:, own:])
            self.scale[own:] = scale / (self.collaborative_input_weight * math.sqrt(own / collaborative_dim))

    def standardized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> standardized float [B, D]."""
        return (vectors - self.centre) / self.scale

    def latents(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> latents float [B, H]."""
        raise NotImplementedError

    def decoded(self, latents: torch.Tensor) -> torch.Tensor:
        """What quantized latents float [B, H] say of the input: float [B, D], standardized."""
        raise NotImplementedError


def centre_and_scale(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean, float [D], and the one number that brings float [N, D] to mean square one around it.

    Raises:
        TrainingError: the spread overflows float32, or a value is not finite.
    """
    centre = vectors.mean(dim=0)
    scale = (vectors - centre).square().mean().sqrt().clamp(min=1e-12)
    if not torch.isfinite(scale):
        raise TrainingError(
            f"The embeddings cannot be standardized: their largest magnitude is {vectors.abs().max().item():.4g}, and "
            "the mean square is not finite. Look for extreme values in the embeddings."
        )
    return centre, scale


@torch.no_grad()
def latents_in_batches(
    module: ModalityQuantizer, vectors: np.ndarray, *, device: torch.device
) -> Iterator[torch.Tensor]:
    """The latents of a whole catalogue float32 [N, D], some thousand items at once: float [B, H] on the device."""
    for begin in range(0, len(vectors), _INFERENCE_BATCH):
        yield module.latents(torch.tensor(vectors[begin : begin + _INFERENCE_BATCH], device=device))


@torch.no_grad()
def quantize(
    module: ModalityQuantizer, vectors: np.ndarray, *, device: torch.device
) -> tuple[np.ndarray, torch.Tensor]:
    """Quantize raw vectors float32 [N, D], before any collision is resolved.

    Returns:
        The nearest codes, int64 [N, L], and what entered the last two levels, float [N, 2, H] on the CPU (twice the
        same if there is one level).
    """
    codes, residuals = [], []
    for left in latents_in_batches(module, vectors, device=device):
        chosen: list[torch.Tensor] = []
        entering = left
        for codebook in module.quantizer.codebooks:
            before, entering = entering, left
            chosen.append(nearest_codes(entering, codebook))
            left = entering - codebook[chosen[-1]]
        codes.append(torch.stack(chosen, dim=1).cpu())
        residuals.append(torch.stack([before, entering], dim=1).cpu())
    return torch.cat(codes).numpy(), torch.cat(residuals)
