"""From ranked lists to metrics: HR and NDCG per run, mean and spread over seeds, paired differences over users.

The input is each run's lists and the histories, whose targets are read only here. The output is plain values for the
results file. The bootstrap resamples users: a user's metric is first averaged over the seeds of a system. Intervals
therefore describe the variation between users, and the spread describes the variation between seeds.

Shapes (docs/notation.md): T items of a history, U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.accuracy.baselines import ROUTE
from benchmarks.accuracy.trained import HIDDEN, SETTINGS
from benchmarks.accuracy.variants import FULL
from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation.metrics import hit_rate, ndcg, target_ranks
from macrec_pipeline.evaluation.statistics import paired_differences
from macrec_pipeline.runtime.seeds import numpy_generator

METRICS = ("hr_1", "hr_5", "hr_10", "ndcg_5", "ndcg_10")
COMPARED = ("hr_10", "ndcg_10")
REFERENCE = f"{FULL}/fused"
# Compared in addition to the reference against every other system: the effect of the explicit tasks alone, and
# everything together against the strongest baselines.
FURTHER_PAIRS = (
    ("no_implicit/fused", "no_explicit/fused"),
    ("anchored_three_routes/fused", "sasrec"),
    ("anchored_three_routes/fused", "item_knn"),
)
_STREAM = "benchmarks/ablations/bootstrap"


@dataclass(frozen=True)
class Run:
    """One system with one seed.

    Attributes:
        system: a name of `variants.SYSTEMS`.
        seed: None for a baseline that draws nothing.
        lists: `<target>/<route>/<setting>` -> int64 [U, list length], padded with `NO_ITEM`.
        facts: plain values about the run.
    """

    system: str
    seed: int | None
    lists: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


# (label, target, setting, metric) -> one float64 [U] per seed
_ByUser = dict[tuple[str, str, str, str], list[np.ndarray]]


def measure(
    runs: Sequence[Run],
    histories: Sequence[np.ndarray],
    *,
    targets: Sequence[str],
    config: EvaluationConfig,
    seed: int,
) -> dict[str, Any]:
    """Compute all metrics of a results file.

    Args:
        runs: of all systems and seeds, on the same users.
        histories: whole histories, int64 [T] item indices each.
        targets: "validation", "test" or both. Only these items are read, and the last target is compared.
        config: number of resamples and confidence.
        seed: root seed of the resamples.

    Returns:
        `runs`, `systems` (mean and sd over seeds) and `comparisons`.
    """
    by_user: _ByUser = {}
    for run in runs:
        for (label, target, setting), ranks in _ranks(run, histories, targets=targets).items():
            for metric, values in _user_values(ranks).items():
                by_user.setdefault((label, target, setting, metric), []).append(values)
    return {
        "runs": [_described(run, by_user, runs=runs) for run in runs],
        "systems": _over_seeds(by_user),
        "comparisons": _comparisons(by_user, target=targets[-1], config=config, seed=seed),
    }


def label_of(system: str, route: str) -> str:
    """Name a system and its route, as in `full/fused`; a baseline has no route in its label."""
    return system if route == ROUTE else f"{system}/{route}"


def _ranks(
    run: Run, histories: Sequence[np.ndarray], *, targets: Sequence[str]
) -> dict[tuple[str, str, str], np.ndarray]:
    """Map (label, target, setting) to the 1-based rank of each user's target, int64 [U], 0 if it is not listed."""
    items = {target: np.array([history[-HIDDEN[target]] for history in histories]) for target in targets}
    ranks = {}
    for key, lists in run.lists.items():
        target, route, setting = key.split("/")
        if target in items:
            ranks[label_of(run.system, route), target, setting] = target_ranks(lists, items[target])
    return ranks


def _user_values(ranks: np.ndarray) -> dict[str, np.ndarray]:
    values = {}
    for metric in METRICS:
        kind, _, cutoff = metric.partition("_")
        values[metric] = (hit_rate if kind == "hr" else ndcg)(ranks, cutoff=int(cutoff))
    return values


def _described(run: Run, by_user: _ByUser, *, runs: Sequence[Run]) -> dict[str, Any]:
    """Describe a run with its metrics, nested by target, route, setting and metric."""
    index = [other for other in runs if other.system == run.system].index(run)
    metrics: dict[str, Any] = {}
    for key in run.lists:
        target, route, setting = key.split("/")
        label = label_of(run.system, route)
        if (label, target, setting, METRICS[0]) in by_user:
            means = {metric: float(by_user[label, target, setting, metric][index].mean()) for metric in METRICS}
            metrics.setdefault(target, {}).setdefault(route, {})[setting] = means
    return {"system": run.system, "seed": run.seed, **run.facts, **metrics}


def _over_seeds(by_user: _ByUser) -> dict[str, Any]:
    """Nest mean and standard deviation over seeds by label, target, setting and metric; sd is None for one seed."""
    systems: dict[str, Any] = {}
    for (label, target, setting, metric), runs in by_user.items():
        means = [float(values.mean()) for values in runs]
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
        cells = systems.setdefault(label, {}).setdefault(target, {}).setdefault(setting, {})
        cells[metric] = {"mean": float(np.mean(means)), "sd": spread}
    return systems


def _comparisons(by_user: _ByUser, *, target: str, config: EvaluationConfig, seed: int) -> list[dict[str, Any]]:
    """Compute paired differences, all on the same resamples of the users; positive favours the first system."""
    labels = list(dict.fromkeys(label for label, *_ in by_user))
    pairs = [(REFERENCE, label) for label in labels if label != REFERENCE] + list(FURTHER_PAIRS)
    columns = [
        (first, second, setting, metric)
        for first, second in pairs
        if first in labels and second in labels
        for setting in SETTINGS
        for metric in COMPARED
    ]
    if not columns:
        return []
    averaged = {key: np.mean(runs, axis=0) for key, runs in by_user.items()}  # [U] each
    differences = paired_differences(
        np.stack([averaged[first, target, setting, metric] for first, _, setting, metric in columns], axis=1),
        np.stack([averaged[second, target, setting, metric] for _, second, setting, metric in columns], axis=1),
        num_samples=config.bootstrap_samples,
        confidence=config.confidence,
        generator=numpy_generator(seed, _STREAM),
    )
    return [
        {
            "system": first,
            "against": second,
            "target": target,
            "setting": setting,
            "metric": metric,
            "difference": result.difference,
            "low": result.low,
            "high": result.high,
            "share_better": result.share_better,
        }
        for (first, second, setting, metric), result in zip(columns, differences, strict=True)
    ]
