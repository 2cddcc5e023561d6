"""Ranking metrics from the place of each user's one relevant item, as in the evaluation of the paper (section 4.1).

What enters: recommendation lists, best first, and each user's test target. What leaves: the target's rank, and from
it HR@k, NDCG@k and reciprocal rank a user, so that means, intervals and paired tests all read the same numbers.
U users, R items a list, N items.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.flat_histories import NO_ITEM, IntArray

FloatArray = NDArray[np.float64]
MISSED = 0
COVERAGE_DEPTH = 10


def target_ranks(lists: IntArray, targets: IntArray) -> IntArray:
    """The 1-based place of each user's target in the user's list.

    Args:
        lists: int64 [U, R], best first, padded with `NO_ITEM`.
        targets: int64 [U].

    Returns:
        int64 [U], `MISSED` (0) where the target is not in the list.
    """
    if not lists.shape[1]:
        return np.full(len(targets), MISSED, dtype=np.int64)
    found = lists == targets[:, None]  # [U, R]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, MISSED).astype(np.int64)


def hit_rate(ranks: IntArray, *, cutoff: int) -> FloatArray:
    """HR@cutoff a user: 1 if the target is among the first `cutoff` items, else 0. float64 [U]."""
    hits: FloatArray = ((ranks != MISSED) & (ranks <= cutoff)).astype(np.float64)
    return hits


def ndcg(ranks: IntArray, *, cutoff: int) -> FloatArray:
    """NDCG@cutoff a user: 1 / log2(rank + 1) up to `cutoff`, else 0; with one relevant item the ideal DCG is 1."""
    gain = 1.0 / np.log2(np.maximum(ranks, 1) + 1.0)
    return np.where(hit_rate(ranks, cutoff=cutoff) > 0, gain, 0.0)


def reciprocal_rank(ranks: IntArray) -> FloatArray:
    """1 / rank a user, 0 where the target is missing: MRR is its mean, so it is cut at the list's length (top_k)."""
    return np.where(ranks != MISSED, 1.0 / np.maximum(ranks, 1), 0.0)


def coverage(lists: IntArray, *, num_items: int, depth: int = COVERAGE_DEPTH) -> float:
    """Share of the N items of the catalogue that are among the first `depth` items of at least one user's list."""
    shown = lists[:, :depth]
    covered = np.zeros(num_items, dtype=bool)
    covered[shown[shown != NO_ITEM]] = True
    return float(covered.sum()) / num_items


def user_metrics(ranks: IntArray, *, cutoffs: Sequence[int]) -> dict[str, FloatArray]:
    """Every metric that is a mean over users: `hr_<k>` and `ndcg_<k>` for each cutoff, then `mrr`; float64 [U] each."""
    columns = {f"hr_{cutoff}": hit_rate(ranks, cutoff=cutoff) for cutoff in cutoffs}
    columns |= {f"ndcg_{cutoff}": ndcg(ranks, cutoff=cutoff) for cutoff in cutoffs}
    columns["mrr"] = reciprocal_rank(ranks)
    return columns
