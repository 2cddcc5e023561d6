"""Ranking metrics for test users who each have one relevant item, as in section 4.1 of the paper.

The input is recommendation lists (best item first) and the test target of each user. The output is the rank of the
target and, computed from it, HR@k, NDCG@k and the reciprocal rank of each user. Means, intervals and paired tests are
all computed from these values per user.
Shapes (docs/notation.md): U users, N items in the catalogue; `list_length` is the length of a recommendation list.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.flat_histories import NO_ITEM, IntArray

FloatArray = NDArray[np.float64]
MISSED = 0
COVERAGE_DEPTH = 10


def target_ranks(lists: IntArray, targets: IntArray) -> IntArray:
    """Find the 1-based rank of each user's target in the user's list.

    Args:
        lists: int64 [U, list_length], best item first, padded with `NO_ITEM`.
        targets: int64 [U].

    Returns:
        int64 [U], `MISSED` (0) where the target is not in the list.
    """
    if not lists.shape[1]:
        return np.full(len(targets), MISSED, dtype=np.int64)
    found = lists == targets[:, None]  # [U, list_length]
    return np.where(found.any(axis=1), found.argmax(axis=1) + 1, MISSED).astype(np.int64)


def hit_rate(ranks: IntArray, *, cutoff: int) -> FloatArray:
    """HR@cutoff of each user: 1 if the target is among the first `cutoff` items, else 0; float64, shape of `ranks`."""
    hits: FloatArray = ((ranks != MISSED) & (ranks <= cutoff)).astype(np.float64)
    return hits


def ndcg(ranks: IntArray, *, cutoff: int) -> FloatArray:
    """NDCG@cutoff of each user: 1 / log2(rank + 1) up to rank `cutoff`, else 0.

    With a single relevant item the ideal DCG is 1, so the DCG is already normalized.
    """
    gain = 1.0 / np.log2(np.maximum(ranks, 1) + 1.0)
    return np.where(hit_rate(ranks, cutoff=cutoff) > 0, gain, 0.0)


def reciprocal_rank(ranks: IntArray) -> FloatArray:
    """1 / rank of each user, 0 if the target was missed. The mean is MRR, cut at the length of the lists (top_k)."""
    return np.where(ranks != MISSED, 1.0 / np.maximum(ranks, 1), 0.0)


def coverage(lists: IntArray, *, num_items: int, depth: int = COVERAGE_DEPTH) -> float:
    """Share of the catalogue's N items that appear among the first `depth` items of at least one user's list."""
    recommended = lists[:, :depth]
    covered = np.zeros(num_items, dtype=bool)
    covered[recommended[recommended != NO_ITEM]] = True
    return float(covered.sum()) / num_items


def user_metrics(ranks: IntArray, *, cutoffs: Sequence[int]) -> dict[str, FloatArray]:
    """Compute every metric that is a mean over users.

    Args:
        ranks: int64 [U], 1-based, 0 for a miss.
        cutoffs: the values of k.

    Returns:
        `hr_<k>` for each cutoff, then `ndcg_<k>` for each cutoff, then `mrr`; float64 [U] each.
    """
    columns = {f"hr_{cutoff}": hit_rate(ranks, cutoff=cutoff) for cutoff in cutoffs}
    columns |= {f"ndcg_{cutoff}": ndcg(ranks, cutoff=cutoff) for cutoff in cutoffs}
    columns["mrr"] = reciprocal_rank(ranks)
    return columns
