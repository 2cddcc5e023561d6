"""From predictions of four systems to the figures of a report: `evaluate`, top 20, 1000 resamples of the users.

Covered: every check of the lists, the target's rank in both settings of six systems, HR, NDCG, MRR and coverage with
their intervals, the paired comparisons, the slices and the table a user. Not covered: popularity and item-kNN, which
are recommenders, and the HTML page. The baseline goes user by user and resample by resample, for the fused system.
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
from macrec_pipeline.evaluation.baselines import recommend_popular
from macrec_pipeline.evaluation.contenders import BaselineLists
from macrec_pipeline.evaluation.flat_histories import flat_histories
from macrec_pipeline.evaluation.predictions import COMPUTED_HERE
from macrec_pipeline.evaluation.statistics import percentile_intervals
from macrec_pipeline.runtime.seeds import numpy_generator
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS

_TOP_K, _SEED = 20, 1
_SYSTEMS = ("macrec", "macrec_image", "macrec_text", "sasrec")
_CONFIG = EvaluationConfig()


def cases() -> list[Case]:
    """The table."""
    return [_case(100_000, 6_250, target=2, repeats=5, baseline_repeats=1)]


def growing() -> list[Case]:
    """The cost by users."""
    sizes = (12_500, 25_000, 50_000, 200_000)
    return [_case(size, 6_250, repeats=3, baseline_repeats=int(size <= 50_000)) for size in sizes]


def tiny() -> list[Case]:
    """For the tests."""
    return [_case(300, 200, repeats=1, baseline_repeats=1)]


def write_tables(folder: Path, users: int, items: int) -> None:
    """Histories of 5 to 24 items, and lists that name the target for some 20% of the users, seen items never."""
    draw = np.random.default_rng(1)
    starts = np.concatenate([[0], np.cumsum(draw.integers(5, 25, users))])
    half = items // 2
    taken = (half * draw.random(int(starts[-1])) ** 2).astype(np.int64)
    targets = taken[starts[1:] - 1] = half - 1  # nobody has taken it before
    taken[: starts[-1]][np.isin(np.arange(starts[-1]), starts[1:] - 1, invert=True)] %= half - 1
    histories = pl.DataFrame({"user_index": np.arange(users)}).select(
        "user_index",
        pl.format("u{}", "user_index").alias("user_id"),
        _lists(taken, starts).alias("item_indices"),
        _lists(np.arange(starts[-1]), starts).alias("timestamps"),
        pl.lit(True).alias("tested"),
    )
    histories.match_to_schema(HISTORIES.columns).write_parquet(folder / "histories.parquet")
    parts = [
        _predictions(system, exclude, _some_lists(draw, users, half, targets=targets))
        for system in _SYSTEMS
        for exclude in (False, True)
    ]
    pl.concat(parts).write_parquet(folder / "predictions.parquet")


def _some_lists(draw: np.random.Generator, users: int, half: int, *, targets: int) -> np.ndarray:
    """Distinct items of the half that nobody has taken, some for a few users only, and at times the target."""
    first = (half * np.minimum(np.abs(draw.normal(0, 0.25, users)), 1)).astype(np.int64)
    lists = half + (first[:, None] + np.arange(_TOP_K) * 3) % half
    found = np.flatnonzero(draw.random(users) < 0.2)
    lists[found, draw.integers(0, _TOP_K, len(found))] = targets
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


def _ours(folder: Path, items: int) -> Timed:
    histories, predictions = _read(folder)
    popular = recommend_popular(flat_histories(histories, num_items=items), num_items=items, top_k=_TOP_K)
    lists = {(system, exclude): popular[exclude] for system in COMPUTED_HERE for exclude in (False, True)}
    contenders = BaselineLists(lists, {})

    def run() -> dict[str, Any]:
        found = evaluate(
            histories,
            predictions,
            num_items=items,
            config=_CONFIG,
            seed=_SEED,
            top_k=_TOP_K,
            items_imputed={"image": np.arange(items) % 5 == 0},
            contenders=contenders,
        )
        return found.systems["macrec"]

    return run


def _user_by_user(folder: Path) -> Timed:
    histories, predictions = _read(folder)

    def run() -> dict[str, Any]:
        rows = predictions.filter((pl.col("system") == "macrec") & ~pl.col("exclude_seen"))
        targets = [items[-1] for items in histories["item_indices"].to_list()]
        users = [_metrics(items, target) for items, target in zip(rows["item_indices"].to_list(), targets, strict=True)]
        values = np.array([list(user.values()) for user in users])
        generator = numpy_generator(_SEED, "evaluation/bootstrap")
        draws = np.array(
            [
                values[generator.integers(len(values), size=len(values))].mean(axis=0)
                for _ in range(_CONFIG.bootstrap_samples)
            ]
        )
        intervals = percentile_intervals(draws, confidence=_CONFIG.confidence)
        return {name: (values[:, place].mean(), intervals[place]) for place, name in enumerate(users[0])}

    return run


def _metrics(items: list[int], target: int) -> dict[str, float]:
    """HR and NDCG of one user at each cutoff."""
    rank = items.index(target) + 1 if target in items else math.inf
    found = {f"hr_{cutoff}": float(rank <= cutoff) for cutoff in _CONFIG.cutoffs}
    return found | {f"ndcg_{cutoff}": 1 / math.log2(rank + 1) if rank <= cutoff else 0.0 for cutoff in _CONFIG.cutoffs}


def _same(ours: Any, theirs: Any) -> None:
    """Equal means; bounds of other resamples, so each is off by its own noise.

    With 1000 resamples a 95% bound has a standard error of .085 standard deviations of the mean, .12 between two such
    bounds: five of those are .15 of the interval's width.
    """
    for name, (mean, (low, high)) in theirs.items():
        np.testing.assert_allclose(ours[name], mean, rtol=1e-9, err_msg=name)
        np.testing.assert_allclose(ours[f"{name}_ci"], (low, high), atol=0.15 * (high - low), rtol=0, err_msg=name)


def _case(users: int, items: int, **kwargs: Any) -> Case:
    def limit(machine: Machine) -> float:
        """Lists of eight systems read once; resamples are drawn by rank and cost next to nothing."""
        return len(_SYSTEMS) * 2 * users * _TOP_K * 8 / machine.gigabytes_a_second / 1e9

    return Case(
        name=f"evaluation, {users:,} users, top {_TOP_K}",
        size=users,
        size_of="users",
        prepare=lambda folder: write_tables(folder, users, items),
        ours=lambda folder: _ours(folder, items),
        baseline=_user_by_user,
        same=_same,
        limit=limit,
        **kwargs,
    )
