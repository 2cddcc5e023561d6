"""The residual quantizer: a latent as a sum of one code vector per level (MACRec section 3.2; RQ-VAE).

Shapes (docs/notation.md): B batch rows, H latent width, K codes per level, L levels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from macrec_pipeline.runtime.seeds import derived_seed
from macrec_pipeline.semantic_ids.pseudo_labels import k_means, nearest_centroids


@dataclass(frozen=True)
class Quantized:
    """The quantization of a batch.

    Attributes:
        codes: int64 [B, L], each in [0, K).
        latent: float [B, H], the sum of the chosen code vectors, with the straight-through gradient of its input.
        residuals: float [B, L, H], the input of each level.
        level_losses: float [L], codebook and commitment loss of each level.
    """

    codes: torch.Tensor
    latent: torch.Tensor
    residuals: torch.Tensor
    level_losses: torch.Tensor


class ResidualQuantizer(nn.Module):
    """L codebooks of K vectors.

    Args:
        num_levels: L.
        codebook_size: K.
        latent_dim: H.
        commitment_weight: weight of the term that pulls the residual towards its code vector.
        straight_through_residuals: whether each residual is taken against the straight-through code vector, as in the
            authors' code. Its gradient then cancels that of the level's input, so levels after the first have no
            gradient. By default the code vector is detached.
    """

    def __init__(
        self,
        *,
        num_levels: int,
        codebook_size: int,
        latent_dim: int,
        commitment_weight: float,
        straight_through_residuals: bool = False,
    ) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.zeros(num_levels, codebook_size, latent_dim))
        self.initialised: torch.Tensor
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self.commitment_weight = commitment_weight
        self.straight_through_residuals = straight_through_residuals

    @torch.no_grad()
    def initialize_codebooks(self, latents: torch.Tensor, *, seed: int) -> list[float]:
        """Set every codebook to the k-means centroids of the residuals that reach it, level by level.

        Args:
            latents: float [B, H]. If fewer than K rows are distinct, the remaining code vectors stay zero.
            seed: seed of the k-means.

        Returns:
            The mean square of the residuals that remain after each level.
        """
        residual = latents.detach().cpu().float().numpy()
        num_levels, codebook_size, _ = self.codebooks.shape
        errors = []
        for level in range(num_levels):
            num_centroids = min(codebook_size, len(np.unique(residual, axis=0)))
            centroids = k_means(residual, num_clusters=num_centroids, num_iterations=25, seed=seed + level)
            self.codebooks[level, :num_centroids] = torch.from_numpy(centroids).to(self.codebooks)
            residual = residual - centroids[nearest_centroids(residual, centroids)]
            errors.append(float(np.square(residual).mean()))
        self.initialised.fill_(True)
        return errors

    def forward(self, latents: torch.Tensor) -> Quantized:
        """Quantize float [B, H]. A level's loss is mse(code, sg(r)) + beta * mse(sg(code), r) for its input r."""
        codes, residuals, losses = [], [], []
        residual, total = latents, torch.zeros_like(latents)
        for codebook in self.codebooks:
            chosen = nearest_codes(residual.detach(), codebook.detach())
            vector = F.embedding(chosen, codebook)  # [B, H]
            codes.append(chosen)
            residuals.append(residual)
            losses.append(
                F.mse_loss(vector, residual.detach()) + self.commitment_weight * F.mse_loss(vector.detach(), residual)
            )
            total = total + vector.detach()
            straight_through = self.straight_through_residuals
            residual = residual - (residual + (vector - residual).detach() if straight_through else vector.detach())
        return Quantized(
            torch.stack(codes, dim=1),
            latents + (total - latents).detach(),
            torch.stack(residuals, dim=1),
            torch.stack(losses),
        )


def codebook_seed(seed: int, modality: str) -> int:
    """Return the seed of the k-means that initializes the codebooks of a modality, under the root `seed`."""
    return derived_seed(seed, f"quantizer/{modality} codebooks") % 2**31


def nearest_codes(residual: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the nearest code by Euclidean distance, the lower one on ties: float [B, H], [K, H] -> int64 [B]."""
    return squared_distances(residual, codebook).argmin(dim=-1)


def squared_distances(residual: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return squared Euclidean distances: float [B, H], [K, H] -> float [B, K]."""
    return residual.square().sum(-1, keepdim=True) - 2 * residual @ codebook.T + codebook.square().sum(-1)
