"""From the predictions of four systems to the metrics of a report: `evaluate` with top 20 and 1000 bootstrap samples.

This includes all checks of the lists, the target's rank in both settings of six systems, HR, NDCG, MRR and coverage
with their intervals, the paired comparisons, the slices and the table per user. It excludes popularity and item-kNN,
which are recommenders, and the HTML page. The baseline loops over users and resamples, only for the fused system.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation import evaluate
from macrec_pipeline.evaluation.baselines import BaselineLists, recommend_popular
from macrec_pipeline.evaluation.flat_histories import flat_histories
from macrec_pipeline.evaluation.predictions import COMPUTED_HERE
from macrec_pipeline.evaluation.statistics import percentile_intervals
from macrec_pipeline.runtime.seeds import numpy_generator
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS

_TOP_K, _SEED = 20, 1
_SYSTEMS = ("macrec", "macrec_image", "macrec_text", "sasrec")
_CONFIG = EvaluationConfig()


def cases() -> list[Case]:
    """Return the cases of the table."""
    return [_case(100_000, 6_250, target=2, repeats=5, baseline_repeats=1)]


def growing() -> list[Case]:
    """Return cases for the cost by number of users."""
    sizes = (12_500, 25_000, 50_000, 200_000)
    return [_case(size, 6_250, repeats=3, baseline_repeats=int(size <= 50_000)) for size in sizes]


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return [_case(300, 200, repeats=1, baseline_repeats=1)]


def write_tables(folder: Path, users: int, items: int) -> None:
    """Write histories of 5 to 24 items, and lists without seen items that contain the target of about 20% of users."""
    generator = np.random.default_rng(1)
    starts = np.concatenate([[0], np.cumsum(generator.integers(5, 25, users))])
    half = items // 2
    items_taken = (half * generator.random(int(starts[-1])) ** 2).astype(np.int64)
    targets = items_taken[starts[1:] - 1] = half - 1  # in no history before
    items_taken[: starts[-1]][np.isin(np.arange(starts[-1]), starts[1:] - 1, invert=True)] %= half - 1
    histories = pl.DataFrame({"user_index": np.arange(users)}).select(
        "user_index",
        pl.format("u{}", "user_index").alias("user_id"),
        _lists(items_taken, starts).alias("item_indices"),
        _lists(np.arange(starts[-1]), starts).alias("timestamps"),
        pl.lit(True).alias("tested"),
        pl.lit(1, pl.Int64).alias("num_at_target_time"),
    )
    histories.match_to_schema(HISTORIES.columns).write_parquet(folder / "histories.parquet")
    parts = [
        _predictions(system, exclude, _random_lists(generator, users, half, targets=targets))
        for system in _SYSTEMS
        for exclude in (False, True)
    ]
    pl.concat(parts).write_parquet(folder / "predictions.parquet")


def _random_lists(generator: np.random.Generator, users: int, half: int, *, targets: int) -> np.ndarray:
    """Draw lists of distinct items from the unseen half of the catalogue, sometimes with the target."""
    first = (half * np.minimum(np.abs(generator.normal(0, 0.25, users)), 1)).astype(np.int64)
    lists = half + (first[:, None] + np.arange(_TOP_K) * 3) % half
    with_target = np.flatnonzero(generator.random(users) < 0.2)
    lists[with_target, generator.integers(0, _TOP_K, len(with_target))] = targets
    return lists


def _predictions(system: str, exclude_seen: bool, lists: np.ndarray) -> pl.DataFrame:
    users = len(lists)
    starts = np.arange(users + 1) * _TOP_K
    return (
        pl.DataFrame({"user_index": np.arange(users)})
        .select(
            pl.lit(system).alias("system"),
            pl.lit(exclude_seen).alias("exclude_seen"),
            "user_index",
            _lists(lists.ravel(), starts).alias("item_indices"),
            _lists(np.tile(np.arange(_TOP_K, 0.0, -1), users), starts).alias("scores"),
        )
        .match_to_schema(PREDICTIONS.columns)
    )


def _lists(values: np.ndarray, starts: np.ndarray) -> pl.Series:
    series = pl.from_arrow(pa.LargeListArray.from_arrays(pa.array(starts), pa.array(values)))
    assert isinstance(series, pl.Series)
    return series


def _read(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    return pl.read_parquet(folder / "histories.parquet"), pl.read_parquet(folder / "predictions.parquet")


def _pipeline(folder: Path, items: int) -> Timed:
    histories, predictions = _read(folder)
    popular = recommend_popular(flat_histories(histories, num_items=items), num_items=items, top_k=_TOP_K)
    lists = {(system, exclude): popular[exclude] for system in COMPUTED_HERE for exclude in (False, True)}
    baselines = BaselineLists(lists, {})

    def run() -> dict[str, Any]:
        result = evaluate(
            histories,
            predictions,
            num_items=items,
            config=_CONFIG,
            seed=_SEED,
            top_k=_TOP_K,
            items_imputed={"image": np.arange(items) % 5 == 0},
            baselines=baselines,
        )
        return result.systems["macrec"]

    return run


def _baseline(folder: Path) -> Timed:
    histories, predictions = _read(folder)

    def run() -> dict[str, Any]:
        rows = predictions.filter((pl.col("system") == "macrec") & ~pl.col("exclude_seen"))
        targets = [items[-1] for items in histories["item_indices"].to_list()]
        users = [_metrics(items, target) for items, target in zip(rows["item_indices"].to_list(), targets, strict=True)]
        values = np.array([list(user.values()) for user in users])
        resampling = numpy_generator(_SEED, "evaluation/bootstrap")
        means = np.array(
            [
                values[resampling.integers(len(values), size=len(values))].mean(axis=0)
                for _ in range(_CONFIG.bootstrap_samples)
            ]
        )
        intervals = percentile_intervals(means, confidence=_CONFIG.confidence)
        return {name: (values[:, column].mean(), intervals[column]) for column, name in enumerate(users[0])}

    return run


def _metrics(items: list[int], target: int) -> dict[str, float]:
    """Compute HR and NDCG of one user at each cutoff."""
    rank = items.index(target) + 1 if target in items else math.inf
    hits = {f"hr_{cutoff}": float(rank <= cutoff) for cutoff in _CONFIG.cutoffs}
    return hits | {f"ndcg_{cutoff}": 1 / math.log2(rank + 1) if rank <= cutoff else 0.0 for cutoff in _CONFIG.cutoffs}


def _check_equal(pipeline: Any, baseline: Any) -> None:
    """Means must be equal. Interval bounds come from different resamples, so each has noise of its own.

    With 1000 resamples, the standard error of a 95% bound is .085 standard deviations of the mean, and .12 for the
    difference of two bounds; the tolerance of .15 interval widths is five times that.
    """
    for name, (mean, (low, high)) in baseline.items():
        np.testing.assert_allclose(pipeline[name], mean, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(pipeline[f"{name}_ci"], (low, high), atol=0.15 * (high - low), rtol=0, err_msg=name)


def _case(users: int, items: int, **kwargs: Any) -> Case:
    def limit(machine: Machine) -> float:
        """Reading eight lists of each user once; resamples are drawn by rank, and cost almost nothing."""
        return len(_SYSTEMS) * 2 * users * _TOP_K * 8 / machine.gigabytes_per_second / 1e9

    return Case(
        name=f"evaluation, {users:,} users, top {_TOP_K}",
        size=users,
        size_of="users",
        prepare=lambda folder: write_tables(folder, users, items),
        pipeline=lambda folder: _pipeline(folder, items),
        baseline=_baseline,
        check_equal=_check_equal,
        limit=limit,
        **kwargs,
    )
