"""Measure the throughput of parquet for a float32 matrix on one core, by settings and by reader.

    OMP_NUM_THREADS=1 POLARS_MAX_THREADS=1 python benchmarks/vectors.py [ROWS]

Writes ROWS x 768 numbers in several ways to a temporary folder, and reads each file from the page cache. Prints the
size of the file, and MB per second of processor time in the best of three runs.
"""

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from macrec_pipeline.storage.table_files import read_vector_file, write_vector_file

_DIM = 768


def _polars_writer(table: pl.DataFrame, compression: Any) -> Callable[[Path], None]:
    return lambda path: table.write_parquet(path, compression=compression)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(3):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def main() -> None:
    """Measure every combination of a writer and a reader."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    matrix = np.random.default_rng(1).standard_normal((rows, _DIM), dtype=np.float32)
    table = pl.DataFrame({"item_index": np.arange(rows), "embedding": matrix})
    writers: dict[str, Callable[[Path], None]] = {
        "polars, zstd": _polars_writer(table, "zstd"),
        "polars, uncompressed": _polars_writer(table, "uncompressed"),
        "macrec": lambda path: write_vector_file(path, table),
    }
    readers: dict[str, Callable[[Path], object]] = {
        "polars": lambda path: pl.read_parquet(path, memory_map=False),
        "pyarrow": lambda path: pq.read_table(path, memory_map=True),
        "macrec": read_vector_file,
        "SHA-256": _hash,
    }
    megabytes = matrix.nbytes / 1e6
    with tempfile.TemporaryDirectory() as folder:
        for number, (writer, write) in enumerate(writers.items()):
            path = Path(folder, f"{number}.parquet")
            rates = {"write": megabytes / _best(lambda write=write, path=path: write(path))}  # type: ignore[misc]
            for name, read in readers.items():
                rates[name] = megabytes / _best(lambda read=read, path=path: read(path))  # type: ignore[misc]
            print(
                f"{writer}, {path.stat().st_size / megabytes / 1e6:.0%} of the size: "
                + ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
            )


if __name__ == "__main__":
    main()
