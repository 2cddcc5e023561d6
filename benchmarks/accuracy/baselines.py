"""Ranked lists of popularity, item-kNN and SASRec, in the same form as those of a variant.

The input is a prepared data set, of which only the blinded histories are read. The output is lists for the inputs
`[:-2]` and `[:-1]`. Popularity and item-kNN have no settings to choose, and are fitted for each input separately, on
all but the last two items of the histories they are given. SASRec is trained on `[:-2]`, like the recommender.

Shapes (docs/notation.md): U users.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accuracy.collaborative import sasrec_identity, trained_sasrec
from benchmarks.accuracy.preparation import Prepared
from benchmarks.accuracy.trained import LIST_LENGTH, SETTINGS, padded
from benchmarks.accuracy.variants import DETERMINISTIC, ITEM_KNN, POPULARITY, SASREC
from benchmarks.accuracy.work_folder import Result, cached_result, code_digest
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.evaluation.baselines import recommend_item_knn, recommend_popular
from macrec_pipeline.evaluation.flat_histories import FlatHistories
from macrec_pipeline.recommender.retrieval.retriever import rank_catalogue
from macrec_pipeline.runtime.progress import Progress

ROUTE = "list"
"""The only route of a baseline."""
COUNTING_CODE = ("evaluation/baselines.py", "evaluation/flat_histories.py")
SASREC_CODE = ("recommender", "runtime")
_ByExclusion = dict[bool, np.ndarray]


def baseline_lists(name: str, prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """Compute the lists of a baseline, in the form of `trained.variant_lists`."""
    identity = {
        "baseline": name,
        "settings": {"history_length": config.evaluation.item_knn_history} if name == ITEM_KNN else {},
        "histories": prepared.blinded_digest,
        "num_items": prepared.num_items,
        "code": code_digest(*COUNTING_CODE),
    }
    if name == SASREC:
        identity |= {"settings": sasrec_identity(prepared, config), "code": code_digest(*SASREC_CODE)}

    def compute() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        start = time.monotonic()
        recommend, facts = _recommender_of(name, prepared, config, work, progress)
        lists: dict[str, np.ndarray] = {}
        for target, histories in _histories_by_target(prepared).items():
            by_exclusion = recommend(histories)
            lists |= {f"{target}/{ROUTE}/{setting}": by_exclusion[exclude] for setting, exclude in SETTINGS.items()}
        return lists, {"seconds": {name: round(time.monotonic() - start, 1)}, **facts, "code": identity["code"]}

    return cached_result(work, name if name in DETERMINISTIC else f"{name}-{config.seed}", identity, compute)


def _histories_by_target(prepared: Prepared) -> dict[str, list[np.ndarray]]:
    """Return histories whose last item is the target, which no baseline reads; test targets are blinded."""
    return {"validation": [history[:-1] for history in prepared.blinded], "test": prepared.blinded}


def _recommender_of(
    name: str, prepared: Prepared, config: PipelineConfig, work: Path, progress: Progress
) -> tuple[Callable[[Sequence[np.ndarray]], _ByExclusion], dict[str, Any]]:
    """Return a function from histories to lists, int64 [U, LIST_LENGTH] with and without seen items, and facts."""
    num_items, top_k = prepared.num_items, min(LIST_LENGTH, prepared.num_items)
    if name == SASREC:
        return _sasrec(prepared, config, work, progress)
    if name == POPULARITY:
        return lambda histories: recommend_popular(_flat(histories), num_items=num_items, top_k=top_k), {}
    window = config.evaluation.item_knn_history
    return lambda histories: recommend_item_knn(
        _flat(histories), num_items=num_items, top_k=top_k, history_length=window
    ), {}


def _sasrec(
    prepared: Prepared, config: PipelineConfig, work: Path, progress: Progress
) -> tuple[Callable[[Sequence[np.ndarray]], _ByExclusion], dict[str, Any]]:
    fitted = trained_sasrec(prepared, config, work=work, progress=progress)
    top_k = min(LIST_LENGTH, prepared.num_items)

    def recommend(histories: Sequence[np.ndarray]) -> _ByExclusion:
        inputs = [history[:-1] for history in histories]
        return {
            exclude: padded(rank_catalogue(fitted.model, inputs, top_k=top_k, exclude_seen=exclude))
            for exclude in SETTINGS.values()
        }

    return recommend, {"epochs": len(fitted.log), "best_epoch": fitted.best_epoch}


def _flat(histories: Sequence[np.ndarray]) -> FlatHistories:
    ends = np.cumsum([len(history) for history in histories])
    return FlatHistories(np.concatenate(histories), np.concatenate([[0], ends]).astype(np.int64))
