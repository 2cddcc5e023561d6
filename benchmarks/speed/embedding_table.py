"""Writing and reading an embedding table through the store, compared with plain files of the same size.

Writing includes hashing, flushing and publishing. Reading starts with an empty page cache, verifies the digest, and
ends with the matrix in memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.speed.case import Case, Timed
from macrec_pipeline.storage import AssetStore, embedding_table, vectors_of

_ASSET = "text_embeddings"
_DIM = 768


# benchmarks/vectors.py measures the rates of one core.
_WHY_READING_IS_SLOW = (
    "parquet decodes each vector number by number, and every byte is hashed: both together run at 0.66 GB/s per core, "
    "so at most 1.3 GB/s with two cores, which is 0.7 of a disk of 1.9 GB/s"
)
_WHY_WRITING_IS_SLOW = (
    "a file is encoded (1.8 GB/s per core), hashed (1.5 GB/s) and flushed before it is published, and only the first "
    "two overlap with writing to the disk: a disk of 1.1 GB/s was kept up with, one of 1.3 GB/s was not"
)


def cases() -> list[Case]:
    """Return the cases of the table."""
    options: dict[str, Any] = {"target": 0.7, "by_ratio": True, "repeats": 3, "baseline_repeats": 3}
    return [
        make(1_000_000, **options, why_not=why_not)
        for make, why_not in ((_writing, _WHY_WRITING_IS_SLOW), (_reading, _WHY_READING_IS_SLOW))
    ]


def growing() -> list[Case]:
    """Return cases for the cost by number of items."""
    sizes = (25_000, 50_000, 100_000, 200_000)
    return [make(size, repeats=3, baseline_repeats=3) for make in (_writing, _reading) for size in sizes]


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return [make(50, repeats=1, baseline_repeats=1) for make in (_writing, _reading)]


def write_matrix(folder: Path, items: int) -> None:
    """Write a random matrix, float32 [items, 768]."""
    matrix = np.random.default_rng(1).standard_normal((items, _DIM), dtype=np.float32)
    np.save(folder / "matrix.npy", matrix)


def _write_table(folder: Path, matrix: np.ndarray, name: str) -> AssetStore:
    items = pl.DataFrame({"item_index": np.arange(len(matrix))}).with_columns(item_id=pl.format("i{}", "item_index"))
    store = AssetStore(folder / name, "shop")
    table = embedding_table(items, vectors=matrix, imputed=np.zeros(len(matrix), dtype=np.bool_))
    store.write_table(_ASSET, table)
    return store


def _write_pipeline(folder: Path) -> Timed:
    matrix = np.load(folder / "matrix.npy")
    return lambda: _write_table(folder, matrix, "written")


def _write_baseline(folder: Path) -> Timed:
    matrix = np.load(folder / "matrix.npy")

    def run() -> Path:
        path = folder / "plain-written.bin"
        with path.open("wb") as file:
            file.write(matrix.data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        return path

    return run


def _check_equal_written(pipeline: Any, baseline: Any) -> None:
    np.testing.assert_array_equal(
        vectors_of(pipeline.read_table(_ASSET)).ravel(), np.fromfile(baseline, dtype=np.float32)
    )


def _prepare_reading(folder: Path, items: int) -> None:
    write_matrix(folder, items)
    matrix = np.load(folder / "matrix.npy")
    _write_table(folder, matrix, "store")
    matrix.tofile(folder / "plain.bin")


def _read_pipeline(folder: Path) -> Timed:
    return lambda: vectors_of(AssetStore(folder / "store", "shop").read_table(_ASSET))


def _read_baseline(folder: Path) -> Timed:
    return lambda: np.fromfile(folder / "plain.bin", dtype=np.float32).reshape(-1, _DIM)


def _check_equal(pipeline: Any, baseline: Any) -> None:
    np.testing.assert_array_equal(pipeline, baseline)


def _writing(items: int, **kwargs: Any) -> Case:
    return Case(
        name=f"embedding table, write, {items:,} x {_DIM}",
        size=items,
        size_of="items",
        prepare=lambda folder: write_matrix(folder, items),
        pipeline=_write_pipeline,
        baseline=_write_baseline,
        check_equal=_check_equal_written,
        unit="MB/s",
        megabytes=items * _DIM * 4 / 1e6,
        remove=("written", "plain-written.bin"),
        **kwargs,
    )


def _reading(items: int, **kwargs: Any) -> Case:
    return Case(
        name=f"embedding table, read, {items:,} x {_DIM}",
        size=items,
        size_of="items",
        prepare=lambda folder: _prepare_reading(folder, items),
        pipeline=_read_pipeline,
        baseline=_read_baseline,
        check_equal=_check_equal,
        unit="MB/s",
        megabytes=items * _DIM * 4 / 1e6,
        drop_caches=("store/**/*.parquet", "plain.bin"),
        **kwargs,
    )
