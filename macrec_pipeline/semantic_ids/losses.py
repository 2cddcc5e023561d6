"""The cross-modal terms of the quantizer's loss (MACRec section 3.2).

Shapes (docs/notation.md): B batch rows, H latent width, L levels. `[contrasted, ...]` is one entry per
contrasted level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def draw_positives(clusters: torch.Tensor, *, generator: torch.Generator) -> torch.Tensor:
    """Draw for each item of a batch another item of its cluster, uniformly; the item itself if it is alone.

    Args:
        clusters: int64 [B], pseudo-labels of the *other* modality.
        generator: on the CPU, so that the draw is the same on every device.

    Returns:
        int64 [B], positions in the batch.
    """
    order = clusters.argsort(stable=True)  # the items of a cluster are now adjacent
    _, group, sizes = torch.unique_consecutive(clusters[order], return_inverse=True, return_counts=True)
    size, begin = sizes[group], (sizes.cumsum(0) - sizes)[group]
    # a step of 1 to size - 1 around the circle of the cluster reaches every other item and never the item itself
    uniform = torch.rand(len(clusters), generator=generator, dtype=torch.float64).to(clusters.device)
    step = 1 + (uniform * (size - 1)).long()
    position_in_cluster = torch.arange(len(clusters), device=clusters.device) - begin
    positives = torch.empty_like(order)
    positives[order] = order[begin + (position_in_cluster + step) % size]
    return positives


def layer_contrast(
    residuals: torch.Tensor, positives: torch.Tensor, *, from_level: int, temperature: float
) -> torch.Tensor:
    """InfoNCE within the batch at each contrasted level.

    An item is never its own negative: its similarity to itself is left out of the sum, unless it is its own positive.

    Args:
        residuals: float [B, L, H], the input of each level.
        positives: int64 [B], the position in the batch of each item's positive.
        from_level: first contrasted level, counted from 1.
        temperature: divides the cosine similarity.

    Returns:
        float [contrasted] in nats, one per level from `from_level` to L; the loss term is their mean.
    """
    unit = F.normalize(residuals[:, from_level - 1 :], dim=-1).transpose(0, 1)  # [contrasted, B, H]
    similarity = unit @ unit.transpose(1, 2) / temperature  # [contrasted, B, B]
    positions = torch.arange(len(positives), device=positives.device)
    is_left_out = torch.diag(positives != positions)  # [B, B]
    similarity = similarity.masked_fill(is_left_out, float("-inf"))
    target = positives.expand(len(similarity), -1)
    losses = F.cross_entropy(similarity.flatten(0, 1), target.flatten(), reduction="none")
    return losses.view_as(target).mean(dim=1)
