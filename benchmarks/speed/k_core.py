"""From the stored raw log to stored interactions, quarantine and histories: cleaning, and building histories.

The pipeline runs the functions of these assets on the store: verified scan, cleaning, 5-core, histories, and all
writing. The baseline does the same with a table of strings in memory, in straightforward polars, without quarantine.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean_log
from macrec_pipeline.data.cleaning.k_core import MIN_HISTORY
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS
from macrec_pipeline.storage import AssetStore

_SLICE = 2_000_000
_FIRST_TIME, _SECONDS = 1_450_000_000, 300_000_000
# Multiplying by this number modulo 2^32 is a bijection, and makes ids unrelated to popularity.
_SCATTER = 2_654_435_761
# User, item, time and rating, read once and written once.
_BYTES_PER_ROW = 2 * 48
_WHY_NOT = (
    "14.2 s for 20 million rows on two busy cores of an AMD EPYC consist of 5.2 s for reading the log and numbering "
    "its ids (a lookup per id in a table larger than the caches), 1.9 s for duplicates and the k-core, 3.0 s for "
    "writing interactions, 1.2 s for the quarantine and 2.7 s for histories"
)


def cases() -> list[Case]:
    """Return the cases of the table."""
    return [
        _case(20_000_000, target=10, peak_limit_mb=1500, baseline_repeats=1, repeats=3, why_not=_WHY_NOT),
        _case(100_000_000, target=90, peak_limit_mb=8000, baseline_repeats=0, repeats=1, why_not=_WHY_NOT),
    ]


def growing() -> list[Case]:
    """Return cases for the cost by number of interactions."""
    return [
        _case(rows, baseline_repeats=1, repeats=2) for rows in (500_000, 1_000_000, 2_000_000, 4_000_000, 8_000_000)
    ]


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return [_case(20_000, repeats=1, baseline_repeats=1)]


def write_log(folder: Path, rows: int) -> None:
    """Write raw tables in which few users and items have most rows; some rows are duplicates, some are invalid."""
    store = AssetStore(folder, "shop")
    num_items = max(rows // 100, 50)
    store.write_slices("raw_interactions", _slices(rows, num_users=max(rows // 10, 20), num_items=num_items))
    ids = _ids("i", np.arange(num_items))
    store.write_table(
        "raw_items",
        pl.DataFrame({"item_id": ids, "title": ids, "source_row": np.arange(1, num_items + 1)})
        .select(
            "item_id",
            "title",
            pl.lit("a thing").alias("text"),
            *(pl.lit(None).alias(name) for name in ("image_path", "image_url", "categories", "problem")),
            pl.lit("items.parquet").alias("source_file"),
            "source_row",
        )
        .select(*RAW_ITEMS.columns)
        .cast(pl.Schema(RAW_ITEMS.columns)),
    )


def _slices(rows: int, *, num_users: int, num_items: int) -> Iterator[pl.DataFrame]:
    generator = np.random.default_rng(1)
    for start in range(0, rows, _SLICE):
        size = min(_SLICE, rows - start)
        users = (num_users * generator.random(size) ** 2).astype(np.int64)
        items = (num_items * generator.random(size) ** 3).astype(np.int64)
        times = (_FIRST_TIME + generator.integers(0, _SECONDS, size)) * 1000
        times[::10_000] = 0
        yield pl.DataFrame(
            {
                "user_id": _ids("u", users),
                "item_id": _ids("i", items),
                "rating": generator.integers(1, 6, size).astype(np.float64),
                "timestamp": times,
                "source_file": pl.repeat("log.parquet", size, eager=True),
                "source_row": np.arange(start + 1, start + size + 1),
                "problem": pl.repeat(None, size, dtype=pl.String, eager=True),
            },
            schema=RAW_INTERACTIONS.columns,
        )


def _ids(letter: str, numbers: np.ndarray) -> pl.Series:
    return pl.select(pl.format(letter + "{}", pl.Series(numbers * _SCATTER % 2**32))).to_series()


def _pipeline(folder: Path) -> Timed:
    store = AssetStore(folder, "shop")

    def run() -> pl.DataFrame:
        log = clean_log(store.scan_table("raw_interactions"), store.read_table("raw_items"), CleaningConfig())
        store.write_slices("interactions", log.interactions())
        store.write_table("items", log.items)
        store.write_slices("quarantine", log.quarantine())
        del log
        histories = build_histories(store.scan_table("interactions"), store.read_table("items"))
        store.write_table("histories", histories)
        return histories

    return run


def _baseline(folder: Path) -> Timed:
    store = AssetStore(folder, "shop")

    def run() -> pl.DataFrame:
        rows = store.read_table("raw_interactions").filter(pl.col("timestamp") > 0)
        rows = rows.sort("timestamp", "rating", "source_row").unique(["user_id", "item_id"], keep="first")
        rows = rows.select("user_id", "item_id", "timestamp")
        height, k_core = -1, CleaningConfig().k_core
        while rows.height != height:
            height = rows.height
            rows = rows.filter(
                (pl.len().over("user_id") >= max(k_core, MIN_HISTORY)) & (pl.len().over("item_id") >= k_core)
            )
        items = rows.select(pl.col("item_id").unique().sort()).with_row_index("item_index")
        return (
            rows.join(items, on="item_id")
            .sort("user_id", "timestamp", "item_id")
            .group_by("user_id", maintain_order=True)
            .agg(pl.col("item_index").cast(pl.Int64).alias("item_indices"), pl.col("timestamp").alias("timestamps"))
        )

    return run


def _check_equal(pipeline: Any, baseline: Any) -> None:
    assert pipeline.select("user_id", "item_indices", "timestamps").equals(baseline)


def _case(rows: int, **kwargs: Any) -> Case:
    def limit(machine: Machine) -> float:
        return rows * _BYTES_PER_ROW / machine.gigabytes_per_second / 1e9

    return Case(
        name=f"k-core and histories, {rows:,} interactions",
        size=rows,
        size_of="interactions",
        prepare=lambda folder: write_log(folder, rows),
        pipeline=_pipeline,
        baseline=_baseline,
        check_equal=_check_equal,
        limit=limit,
        new_process_per_run=True,
        **kwargs,
    )
