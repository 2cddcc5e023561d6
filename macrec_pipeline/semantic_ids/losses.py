"""The cross-modal terms of the quantizer's loss (MACRec section 3.2).

Shapes: B batch, L levels, H latent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def draw_positives(clusters: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """For each item of the batch, another one of its cluster, drawn uniformly; itself where it is alone.

    Args:
        clusters: int64 [B], pseudo-labels of the *other* modality.
        generator: on the CPU; the draw is the same on every device.

    Returns:
        int64 [B], positions in the batch.
    """
    size = len(clusters)
    alike = clusters[:, None] == clusters[None, :]
    alike.fill_diagonal_(False)
    scores = torch.rand(size, size, generator=generator).to(clusters.device).masked_fill(~alike, -1.0)
    drawn = scores.argmax(dim=1)
    return torch.where(alike.any(dim=1), drawn, torch.arange(size, device=clusters.device))


def layer_contrast(
    residuals: torch.Tensor, positives: torch.Tensor, *, from_level: int, temperature: float
) -> torch.Tensor:
    """InfoNCE over the batch at each contrasted level, averaged over those levels; nats, a scalar.

    An item is never its own negative: its similarity to itself is left out of the sum, unless it is its own positive.

    Args:
        residuals: float [B, L, H], what enters each level.
        positives: int64 [B], the batch position of each item's positive.
        from_level: first contrasted level, counted from 1; later than L gives zero.
        temperature: divides the cosine similarity.
    """
    contrasted = residuals[:, from_level - 1 :]
    if contrasted.shape[1] == 0:
        return residuals.new_zeros(())
    unit = F.normalize(contrasted, dim=-1).transpose(0, 1)  # [L', B, H]
    similarity = unit @ unit.transpose(1, 2) / temperature  # [L', B, B]
    itself = torch.arange(len(positives), device=positives.device)
    left_out = torch.diag(positives != itself)
    similarity = similarity.masked_fill(left_out, float("-inf"))
    target = positives.expand(len(similarity), -1)
    return F.cross_entropy(similarity.flatten(0, 1), target.flatten())
