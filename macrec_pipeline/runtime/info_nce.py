"""Symmetric InfoNCE, the contrastive loss of the quantizer's and the recommender's alignment between modalities.

Shapes (docs/notation.md): B batch rows, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def symmetric_info_nce(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """InfoNCE of paired rows within a batch, averaged over both directions (MACRec sections 3.2 and 3.3).

    Args:
        first, second: float [B, D]. Row i of one is paired with row i of the other; all other rows are negatives.
        temperature: divides the cosine similarity.

    Returns:
        A scalar in nats.
    """
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature  # [B, B]
    pairs = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2
