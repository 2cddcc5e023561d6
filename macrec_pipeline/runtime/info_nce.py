"""The contrast of pairs that two stages share: the quantizer's reconstruction alignment and the implicit alignment."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def symmetric_info_nce(first: torch.Tensor, second: torch.Tensor, *, temperature: float) -> torch.Tensor:
    """InfoNCE of paired rows against the batch, averaged over both directions (MACRec sections 3.2 and 3.3).

    Args:
        first, second: float [B, D]; row i of one belongs to row i of the other, every other row is a negative.
        temperature: divides the cosine similarity.

    Returns:
        A scalar in nats.
    """
    similarity = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T / temperature
    pairs = torch.arange(len(first), device=first.device)
    return (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2
