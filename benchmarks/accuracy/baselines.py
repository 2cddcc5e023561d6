"""The lists of popularity, item-kNN and SASRec, in the form of a variant's.

In: a prepared data set, whose blinded histories are all that is read. Out: lists for the inputs `[:-2]` and `[:-1]`.
Popularity and item-kNN have nothing to choose and are fitted anew for each input, on all but the last two items of what
they are given; SASRec is trained on `[:-2]`, as the recommender is. U users, R listed items.
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
from benchmarks.accuracy.work_folder import Result, code_digest, remembered
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.evaluation.baselines import recommend_item_knn, recommend_popular
from macrec_pipeline.evaluation.flat_histories import FlatHistories
from macrec_pipeline.recommender.retrieval.sasrec_route import rank_catalogue
from macrec_pipeline.runtime.progress import Progress

ROUTE = "list"
"""The one route of a baseline."""
COUNTING_CODE = ("evaluation/baselines.py", "evaluation/flat_histories.py")
SASREC_CODE = ("recommender", "runtime")
_BySetting = dict[bool, np.ndarray]


def baseline_lists(name: str, prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """What a baseline recommends; see `trained.variant_lists` for the form."""
    identity = {
        "baseline": name,
        "settings": {"history_length": config.evaluation.item_knn_history} if name == ITEM_KNN else {},
        "histories": prepared.blinded_digest,
        "num_items": prepared.num_items,
        "code": code_digest(*COUNTING_CODE),
    }
    if name == SASREC:
        identity |= {"settings": sasrec_identity(prepared, config), "code": code_digest(*SASREC_CODE)}

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        begun = time.monotonic()
        recommend, facts = _recommender_of(name, prepared, config, work, progress)
        lists: dict[str, np.ndarray] = {}
        for target, histories in _histories_by_target(prepared).items():
            found = recommend(histories)
            lists |= {f"{target}/{ROUTE}/{setting}": found[exclude] for setting, exclude in SETTINGS.items()}
        return lists, {"seconds": {name: round(time.monotonic() - begun, 1)}, **facts, "code": identity["code"]}

    return remembered(work, name if name in DETERMINISTIC else f"{name}-{config.seed}", identity, make)


def _histories_by_target(prepared: Prepared) -> dict[str, list[np.ndarray]]:
    """Histories whose last item, which no baseline reads, is the target; the test targets are blinded."""
    return {"validation": [history[:-1] for history in prepared.blinded], "test": prepared.blinded}


def _recommender_of(
    name: str, prepared: Prepared, config: PipelineConfig, work: Path, progress: Progress
) -> tuple[Callable[[Sequence[np.ndarray]], _BySetting], dict[str, Any]]:
    """From histories to exclude_seen -> int64 [U, R], and how it came about."""
    sizes = {"num_items": prepared.num_items, "top_k": min(LIST_LENGTH, prepared.num_items)}
    if name == SASREC:
        return _sasrec(prepared, config, work, progress)
    if name == POPULARITY:
        return lambda histories: recommend_popular(_flat(histories), **sizes), {}
    window = config.evaluation.item_knn_history
    return lambda histories: recommend_item_knn(_flat(histories), **sizes, history_length=window), {}


def _sasrec(
    prepared: Prepared, config: PipelineConfig, work: Path, progress: Progress
) -> tuple[Callable[[Sequence[np.ndarray]], _BySetting], dict[str, Any]]:
    fitted = trained_sasrec(prepared, config, work=work, progress=progress)
    top_k = min(LIST_LENGTH, prepared.num_items)

    def recommend(histories: Sequence[np.ndarray]) -> _BySetting:
        inputs = [history[:-1] for history in histories]
        return {
            exclude: padded(rank_catalogue(fitted.model, inputs, top_k=top_k, exclude_seen=exclude))
            for exclude in SETTINGS.values()
        }

    return recommend, {"epochs": len(fitted.log), "best_epoch": fitted.best_epoch}


def _flat(histories: Sequence[np.ndarray]) -> FlatHistories:
    ends = np.cumsum([len(history) for history in histories])
    return FlatHistories(np.concatenate(histories), np.concatenate([[0], ends]).astype(np.int64))
