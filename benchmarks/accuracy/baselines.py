"""The lists of popularity, item-kNN and SASRec, in the form of a variant's.

In: a prepared data set, whose blinded histories are all that is read. Out: lists for the inputs `[:-2]` and `[:-1]`.
Popularity and item-kNN have nothing to choose and are fitted anew for each input, on all but the last two items of what
they are given; SASRec is trained once, on `[:-2]`, as the recommender is. U users, R listed items.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.preparation import Prepared
from benchmarks.accuracy.trained import LIST_LENGTH, SETTINGS
from benchmarks.accuracy.variants import DETERMINISTIC, POPULARITY, SASREC
from benchmarks.accuracy.work_folder import Result, code_digest, remembered
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.evaluation.baselines import recommend_item_knn, recommend_popular
from macrec_pipeline.evaluation.sasrec import recommend_sasrec
from macrec_pipeline.evaluation.sasrec_fitting import fit_sasrec
from macrec_pipeline.evaluation.sequences import FlatHistories
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress

ROUTE = "list"
"""The one route of a baseline."""
COUNTING_CODE = ("evaluation/baselines.py", "evaluation/sequences.py")
SASREC_CODE = (*COUNTING_CODE, "evaluation/sasrec.py", "evaluation/sasrec_fitting.py", "runtime")
_BySetting = dict[bool, np.ndarray]


def baseline_lists(name: str, prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """What a baseline recommends; see `trained.variant_lists` for the form."""
    identity = {
        "baseline": name,
        "settings": _settings(name, config),
        "runtime": config.runtime.model_dump(mode="json"),
        "seed": None if name in DETERMINISTIC else config.seed,
        "histories": prepared.blinded_digest,
        "num_items": prepared.num_items,
        "torch": torch.__version__,
        "code": code_digest(*(SASREC_CODE if name == SASREC else COUNTING_CODE)),
    }

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        begun = time.monotonic()
        recommend, facts = _recommender_of(name, prepared, config, progress)
        lists: dict[str, np.ndarray] = {}
        for target, histories in _histories_by_target(prepared).items():
            found = recommend(histories)
            lists |= {f"{target}/{ROUTE}/{setting}": found[exclude] for setting, exclude in SETTINGS.items()}
        return lists, {"seconds": {name: round(time.monotonic() - begun, 1)}, **facts, "code": identity["code"]}

    return remembered(work, name if name in DETERMINISTIC else f"{name}-{config.seed}", identity, make)


def _settings(name: str, config: PipelineConfig) -> dict[str, Any]:
    if name == SASREC:
        return config.evaluation.sasrec.model_dump(mode="json")
    return {} if name == POPULARITY else {"history_length": config.evaluation.item_knn_history}


def _histories_by_target(prepared: Prepared) -> dict[str, list[np.ndarray]]:
    """Histories whose last item, which no baseline reads, is the target; the test targets are blinded."""
    return {"validation": [history[:-1] for history in prepared.blinded], "test": prepared.blinded}


def _recommender_of(
    name: str, prepared: Prepared, config: PipelineConfig, progress: Progress
) -> tuple[Callable[[Sequence[np.ndarray]], _BySetting], dict[str, Any]]:
    """From histories to exclude_seen -> int64 [U, R], and how it came about."""
    sizes = {"num_items": prepared.num_items, "top_k": min(LIST_LENGTH, prepared.num_items)}
    if name == SASREC:
        return _sasrec(prepared, config, progress)
    if name == POPULARITY:
        return lambda histories: recommend_popular(_flat(histories), **sizes), {}
    window = config.evaluation.item_knn_history
    return lambda histories: recommend_item_knn(_flat(histories), **sizes, history_length=window), {}


def _sasrec(
    prepared: Prepared, config: PipelineConfig, progress: Progress
) -> tuple[Callable[[Sequence[np.ndarray]], _BySetting], dict[str, Any]]:
    """Train SASRec; every call of its modules is here."""
    fitted = fit_sasrec(
        _flat(prepared.blinded),
        num_items=prepared.num_items,
        config=config.evaluation.sasrec,
        seed=config.seed,
        device=prepare_device(config.runtime),
        progress=progress,
    )
    top_k = min(LIST_LENGTH, prepared.num_items)
    facts = {"epochs": len(fitted.log), "best_epoch": fitted.best_epoch}
    return lambda histories: recommend_sasrec(fitted.model, _flat(histories), top_k=top_k), facts


def _flat(histories: Sequence[np.ndarray]) -> FlatHistories:
    ends = np.cumsum([len(history) for history in histories])
    return FlatHistories(np.concatenate(histories), np.concatenate([[0], ends]).astype(np.int64))
