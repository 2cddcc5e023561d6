"""Runs every baseline on the test users, and tells what each was set to.

What enters: flat histories. What leaves: lists of the same shape as the recommender's, in both settings.
U users, R items a list, N items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macrec_pipeline.evaluation.baselines import RECENCY_DECAY, recommend_item_knn, recommend_popular
from macrec_pipeline.evaluation.predictions import ITEM_KNN, POPULARITY, SASREC, Lists
from macrec_pipeline.evaluation.sasrec import recommend_sasrec
from macrec_pipeline.evaluation.sasrec_fitting import FittedSasrec, fit_sasrec

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.config import EvaluationConfig
    from macrec_pipeline.evaluation.sequences import FlatHistories
    from macrec_pipeline.runtime.progress import Progress


@dataclass(frozen=True)
class Contenders:
    """What the baselines recommend.

    Attributes:
        lists: (system, exclude_seen) -> int64 [U, R], best first, padded with `NO_ITEM`.
        settings: system -> how it was made, as plain values, for those that have settings.
    """

    lists: Lists
    settings: dict[str, dict[str, Any]]


def run_contenders(
    flat: FlatHistories,
    *,
    num_items: int,
    top_k: int,
    config: EvaluationConfig,
    seed: int,
    device: torch.device,
    progress: Progress,
) -> Contenders:
    """Popularity, item-kNN and, where it is enabled, SASRec, which is trained here on `device`."""
    window = config.item_knn_history
    found = {
        POPULARITY: recommend_popular(flat, num_items=num_items, top_k=top_k),
        ITEM_KNN: recommend_item_knn(flat, num_items=num_items, top_k=top_k, history_length=window),
    }
    settings: dict[str, dict[str, Any]] = {ITEM_KNN: {"history_length": window, "recency_decay": RECENCY_DECAY}}
    if config.sasrec.enabled:
        fitted = fit_sasrec(
            flat, num_items=num_items, config=config.sasrec, seed=seed, device=device, progress=progress
        )
        found[SASREC] = recommend_sasrec(fitted.model, flat, top_k=top_k)
        settings[SASREC] = _sasrec_settings(fitted, config)
    lists = {
        (system, exclude): by_setting[exclude] for system, by_setting in found.items() for exclude in (False, True)
    }
    return Contenders(lists, settings)


def _sasrec_settings(fitted: FittedSasrec, config: EvaluationConfig) -> dict[str, Any]:
    best = fitted.log[fitted.best_epoch - 1]["validation_ndcg"] if fitted.log else 0.0
    return {
        **config.sasrec.model_dump(exclude={"enabled"}),
        "num_epochs": len(fitted.log),
        "best_epoch": fitted.best_epoch,
        "validation_ndcg_10": best,
    }
