"""The quantizer of one modality as the rest of the stage uses it: standardization, latents, codebooks, codes.

Takes raw embeddings, with collaborative vectors as further columns if the quantizer uses them, and returns codes from
before collision resolution. `rq_vae.py` and `residual_k_means.py` define what a latent is.

Shapes (docs/notation.md): B batch rows, D input width (embedding and collaborative columns), H latent width, L levels,
N items.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.semantic_ids.residual_quantizer import ResidualQuantizer, nearest_codes

_INFERENCE_BATCH = 8192


@dataclass(frozen=True)
class QuantizerSpec:
    """What determines a modality's quantizer: the settings of the same names in the section `quantizer`."""

    num_levels: int
    codebook_size: int
    latent_dim: int
    projection_dim: int
    hidden_dims: tuple[int, ...]
    commitment_weight: float
    collaborative_input_weight: float
    variant: Literal["as_intended", "as_released"]
    precision: str

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> QuantizerSpec:
        """Pick the fields out of the section `quantizer`, as plain values. Raise `KeyError` if one is missing."""
        values = {field.name: settings[field.name] for field in fields(cls)}
        return cls(**values | {"hidden_dims": tuple(values["hidden_dims"])})


class ModalityQuantizer(nn.Module):
    """One modality: standardization, and a residual quantizer of the latents that a subclass computes.

    Encoders differ in scale by orders of magnitude (a unit vector of 384 numbers has a mean square of 0.003). So that
    the reconstruction loss has the same weight against the contrastive ones whatever the encoder, embeddings are first
    centred and divided by one number. Both are buffers, and thus part of the checkpoint.

    Args:
        input_dim: D of this modality.
        spec: the sizes.
        latent_dim: H, the width of what is quantized.
    """

    def __init__(self, input_dim: int, spec: QuantizerSpec, *, latent_dim: int) -> None:
        super().__init__()
        self.centre: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("centre", torch.zeros(input_dim))
        self.register_buffer("scale", torch.ones(input_dim))
        self.collaborative_input_weight = spec.collaborative_input_weight
        self.quantizer = ResidualQuantizer(
            num_levels=spec.num_levels,
            codebook_size=spec.codebook_size,
            latent_dim=latent_dim,
            commitment_weight=spec.commitment_weight,
            straight_through_residuals=spec.variant == "as_released",
        )

    @property
    def input_dim(self) -> int:
        """D, including the collaborative columns."""
        return len(self.centre)

    @torch.no_grad()
    def fit_standardization(self, vectors: torch.Tensor, *, collaborative_dim: int = 0) -> None:
        """Set centre and scale from all items, so that their mean square around the mean is one.

        Args:
            vectors: float [N, D].
            collaborative_dim: number of collaborative columns at the end, which get a scale of their own. With a
                `collaborative_input_weight` of 1 they get the same sum of squares as all the other columns together,
                whatever the widths, so that both parts count the same in a distance.

        Raises:
            TrainingError: the spread overflows float32, so that everything would be divided down to zero.
        """
        embedding_dim = self.input_dim - collaborative_dim
        self.centre[:embedding_dim], self.scale[:embedding_dim] = centre_and_scale(vectors[:, :embedding_dim])
        if collaborative_dim:
            self.centre[embedding_dim:], scale = centre_and_scale(vectors[:, embedding_dim:])
            self.scale[embedding_dim:] = scale / (
                self.collaborative_input_weight * math.sqrt(embedding_dim / collaborative_dim)
            )

    def standardized(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> standardized float [B, D]."""
        return (vectors - self.centre) / self.scale

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        """Raw float [B, D] -> latents float [B, H]."""
        raise NotImplementedError

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Quantized latents float [B, H] -> reconstructed input float [B, D], standardized."""
        raise NotImplementedError


def centre_and_scale(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean, float [D], of float [N, D] and the number that gives them mean square one around it.

    Raises:
        TrainingError: the spread overflows float32, or a value is not finite.
    """
    centre = vectors.mean(dim=0)
    scale = (vectors - centre).square().mean().sqrt().clamp(min=1e-12)
    if not torch.isfinite(scale):
        raise TrainingError(
            "The vectors cannot be standardized, because their mean square is not finite. Their largest magnitude is "
            f"{vectors.abs().max().item():.4g}. Look for extreme values in the embeddings."
        )
    return centre, scale


@torch.no_grad()
def latents_in_batches(
    module: ModalityQuantizer, vectors: np.ndarray, *, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield the latents of a whole catalogue float32 [N, D] batch by batch: float [B, H] on the device."""
    for begin in range(0, len(vectors), _INFERENCE_BATCH):
        yield module.encode(torch.tensor(vectors[begin : begin + _INFERENCE_BATCH], device=device))


@torch.no_grad()
def quantize(
    module: ModalityQuantizer, vectors: np.ndarray, *, device: torch.device
) -> tuple[np.ndarray, torch.Tensor]:
    """Quantize raw vectors float32 [N, D], before any collision is resolved.

    Returns:
        The nearest codes, int64 [N, L], and the inputs of the last two levels, float [N, 2, H] on the CPU (the same
        input twice if there is one level).
    """
    codes, residuals = [], []
    for residual in latents_in_batches(module, vectors, device=device):
        chosen: list[torch.Tensor] = []
        level_input = residual
        for codebook in module.quantizer.codebooks:
            previous_input, level_input = level_input, residual
            chosen.append(nearest_codes(level_input, codebook))
            residual = level_input - codebook[chosen[-1]]
        codes.append(torch.stack(chosen, dim=1).cpu())
        residuals.append(torch.stack([previous_input, level_input], dim=1).cpu())
    return torch.cat(codes).numpy(), torch.cat(residuals)
