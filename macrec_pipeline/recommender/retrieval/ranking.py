"""What every route's search ends in: items of a history, best first; and which items a history has already.

Shapes: B rows, N items, W beams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from macrec_pipeline.recommender.retrieval.beam_search import Beams


@dataclass(frozen=True)
class Ranked:
    """The recommendations for one history, best first.

    Attributes:
        item_indices: int64 [at most k].
        scores: float64, of the same length; comparable within one history only.
    """

    item_indices: np.ndarray
    scores: np.ndarray


def as_ranked(beams: Beams, top_k: int) -> list[Ranked]:
    """The first `top_k` items of each row, without those that are missing."""
    items = beams.items[:, :top_k].cpu().numpy()
    scores = beams.scores[:, :top_k].double().cpu().numpy()
    kept = items >= 0
    return [Ranked(row[mask], score[mask]) for row, score, mask in zip(items, scores, kept, strict=True)]


def seen_items(histories: Sequence[np.ndarray], *, num_items: int) -> torch.Tensor:
    """The items of each history: bool [B, N], on the CPU."""
    rows = np.repeat(np.arange(len(histories)), [len(history) for history in histories])
    seen = torch.zeros(len(histories), num_items, dtype=torch.bool)
    seen[torch.from_numpy(rows), torch.from_numpy(np.concatenate(histories).astype(np.int64))] = True
    return seen
