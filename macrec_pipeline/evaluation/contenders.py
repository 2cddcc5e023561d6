"""Runs the baselines that are made here on the test users, and tells what each was set to.

What enters: flat histories. What leaves: lists of the same shape as the recommender's, in both settings.
U users, R items a list, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macrec_pipeline.evaluation.baselines import RECENCY_DECAY, recommend_item_knn, recommend_popular
from macrec_pipeline.evaluation.predictions import ITEM_KNN, POPULARITY, Lists

if TYPE_CHECKING:
    from macrec_pipeline.config import EvaluationConfig
    from macrec_pipeline.evaluation.flat_histories import FlatHistories


@dataclass(frozen=True)
class BaselineLists:
    """What the baselines recommend.

    Attributes:
        lists: (system, exclude_seen) -> int64 [U, R], best first, padded with `NO_ITEM`.
        settings: system -> how it was made, as plain values, for those that have settings.
    """

    lists: Lists
    settings: dict[str, dict[str, Any]]


def run_baselines(flat: FlatHistories, *, num_items: int, top_k: int, config: EvaluationConfig) -> BaselineLists:
    """Popularity and item-kNN."""
    window = config.item_knn_history
    found = {
        POPULARITY: recommend_popular(flat, num_items=num_items, top_k=top_k),
        ITEM_KNN: recommend_item_knn(flat, num_items=num_items, top_k=top_k, history_length=window),
    }
    settings: dict[str, dict[str, Any]] = {ITEM_KNN: {"history_length": window, "recency_decay": RECENCY_DECAY}}
    lists = {
        (system, exclude): by_setting[exclude] for system, by_setting in found.items() for exclude in (False, True)
    }
    return BaselineLists(lists, settings)
