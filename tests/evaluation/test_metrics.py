"""Metrics, compared with values computed by hand and with scikit-learn."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from macrec_pipeline.evaluation.metrics import (
    coverage,
    hit_rate,
    ndcg,
    reciprocal_rank,
    target_ranks,
    user_metrics,
)

# The targets are at rank 1, at rank 3, missing, and at rank 2. The last two lists are padded.
LISTS = np.array([[7, 1, 2], [5, 6, 0], [4, -1, -1], [3, 9, -1]])
TARGETS = np.array([7, 0, 8, 9])


def test_ranks_start_at_one_and_are_zero_for_misses() -> None:
    """The rank is the 1-based position of the target; a target that is not in the list has rank 0."""
    assert target_ranks(LISTS, TARGETS).tolist() == [1, 3, 0, 2]


def test_empty_lists_are_misses() -> None:
    """Users with empty lists count as misses and are not dropped."""
    assert target_ranks(np.empty((2, 0), dtype=np.int64), np.array([0, 1])).tolist() == [0, 0]


def test_metrics_match_values_computed_by_hand() -> None:
    """HR@k counts ranks up to k, NDCG@k is 1 / log2(rank + 1) up to k, and the reciprocal rank has no cutoff."""
    ranks = np.array([1, 3, 0, 2])
    assert hit_rate(ranks, cutoff=2).tolist() == [1, 0, 0, 1]
    assert ndcg(ranks, cutoff=3).tolist() == pytest.approx([1.0, 0.5, 0.0, 1 / math.log2(3)])
    assert ndcg(ranks, cutoff=2).tolist() == pytest.approx([1.0, 0.0, 0.0, 1 / math.log2(3)])
    assert reciprocal_rank(ranks).tolist() == pytest.approx([1.0, 1 / 3, 0.0, 0.5])


def test_coverage_counts_distinct_items_up_to_a_depth() -> None:
    """At depth 2 the lists contain 7, 1, 5, 6, 4, 3 and 9 of ten items; padding does not count."""
    assert coverage(LISTS, num_items=10, depth=2) == pytest.approx(0.7)


def test_user_metrics_have_a_column_for_every_cutoff() -> None:
    """There is one column per metric and cutoff, with HR first and MRR last."""
    assert list(user_metrics(np.array([1]), cutoffs=(1, 10))) == ["hr_1", "hr_10", "ndcg_1", "ndcg_10", "mrr"]


@given(rank=st.integers(1, 15), cutoff=st.integers(1, 15))
def test_ndcg_agrees_with_scikit_learn(rank: int, cutoff: int) -> None:
    """With one relevant item at a known rank, NDCG@k equals that of scikit-learn for every rank and k."""
    relevance = np.zeros((1, 15))
    relevance[0, rank - 1] = 1
    expected = ndcg_score(relevance, -np.arange(15.0)[None, :], k=cutoff)
    assert ndcg(np.array([rank]), cutoff=cutoff)[0] == pytest.approx(expected)
