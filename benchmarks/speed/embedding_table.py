"""An embedding table through the store, written and read, against plain files of the same bytes on the same disk.

Writing is hashing, flushing and publishing included; reading is from a disk whose pages the system has forgotten, with
the verification of the hash, until the matrix lies in memory.
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


# Rates of one core: benchmarks/vectors.py.
_READING = (
    "parquet rebuilds each vector number by number and every byte is hashed: 0.66 GB/s a core for both, so 1.3 at best "
    "with two, which is 0.7 of a disk of 1.9 GB/s"
)
_WRITING = (
    "a file is encoded (1.8 GB/s a core), hashed (1.5) and flushed before it counts as there, and only the first two "
    "hide behind the disk: one of 1.1 GB/s was kept up with, one of 1.3 not"
)


def cases() -> list[Case]:
    """The table."""
    asked: dict[str, Any] = {"target": 0.7, "by_ratio": True, "repeats": 3, "baseline_repeats": 3}
    return [make(1_000_000, **asked, why_not=why_not) for make, why_not in ((_writing, _WRITING), (_reading, _READING))]


def growing() -> list[Case]:
    """The cost by items."""
    sizes = (25_000, 50_000, 100_000, 200_000)
    return [make(size, repeats=3, baseline_repeats=3) for make in (_writing, _reading) for size in sizes]


def tiny() -> list[Case]:
    """For the tests."""
    return [make(50, repeats=1, baseline_repeats=1) for make in (_writing, _reading)]


def write_matrix(folder: Path, items: int) -> None:
    """The matrix."""
    matrix = np.random.default_rng(1).standard_normal((items, _DIM), dtype=np.float32)
    np.save(folder / "matrix.npy", matrix)


def _stored(folder: Path, matrix: np.ndarray, name: str) -> AssetStore:
    items = pl.DataFrame({"item_index": np.arange(len(matrix))}).with_columns(item_id=pl.format("i{}", "item_index"))
    store = AssetStore(folder / name, "shop")
    table = embedding_table(items, vectors=matrix, imputed=np.zeros(len(matrix), dtype=np.bool_))
    store.write_table(_ASSET, table)
    return store


def _write_ours(folder: Path) -> Timed:
    matrix = np.load(folder / "matrix.npy")
    return lambda: _stored(folder, matrix, "written")


def _write_plainly(folder: Path) -> Timed:
    matrix = np.load(folder / "matrix.npy")

    def run() -> Path:
        path = folder / "plain-written.bin"
        with path.open("wb") as file:
            file.write(matrix.data.cast("B"))
            file.flush()
            os.fsync(file.fileno())
        return path

    return run


def _same_written(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(vectors_of(ours.read_table(_ASSET)).ravel(), np.fromfile(theirs, dtype=np.float32))


def _prepare_reading(folder: Path, items: int) -> None:
    write_matrix(folder, items)
    matrix = np.load(folder / "matrix.npy")
    _stored(folder, matrix, "store")
    matrix.tofile(folder / "plain.bin")


def _read_ours(folder: Path) -> Timed:
    return lambda: vectors_of(AssetStore(folder / "store", "shop").read_table(_ASSET))


def _read_plainly(folder: Path) -> Timed:
    return lambda: np.fromfile(folder / "plain.bin", dtype=np.float32).reshape(-1, _DIM)


def _same(ours: Any, theirs: Any) -> None:
    np.testing.assert_array_equal(ours, theirs)


def _writing(items: int, **kwargs: Any) -> Case:
    return Case(
        name=f"embedding table, write, {items:,} x {_DIM}",
        size=items,
        size_of="items",
        prepare=lambda folder: write_matrix(folder, items),
        ours=_write_ours,
        baseline=_write_plainly,
        same=_same_written,
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
        ours=_read_ours,
        baseline=_read_plainly,
        same=_same,
        unit="MB/s",
        megabytes=items * _DIM * 4 / 1e6,
        drop_caches=("store/**/*.parquet", "plain.bin"),
        **kwargs,
    )
