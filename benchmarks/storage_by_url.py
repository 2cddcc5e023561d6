"""Compare tables at a URL with tables in a folder: writing, the first read, further reads, and reading manifests.

    OMP_NUM_THREADS=1 python benchmarks/storage_by_url.py [ROWS]

Writes ROWS x 384 embeddings to a folder and to moto's S3, which runs in its own process on this machine, and reads them
as this machine and as another machine would. Prints the minimum and the maximum seconds of five rounds. The latency of
a real network and a real object store is not included.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
from pyarrow import fs

from macrec_pipeline.storage import AssetStore, embedding_table

_ASSET = "text_embeddings"
_DIM, _ROUNDS, _NUM_MANIFESTS = 384, 5, 50


@contextmanager
def _server() -> Iterator[str]:
    """Start an S3 server, set its address in the environment, and yield the URL of a bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "key", "AWS_REGION": "us-east-1"}
    os.environ.update(keys, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(port)
            system = fs.S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True)
            system.create_dir("benchmark")
            yield "s3://benchmark/home"
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(300):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit("moto's server did not start within 30 seconds")


def _table(rows: int, seed: int) -> pl.DataFrame:
    items = pl.DataFrame({"item_index": np.arange(rows)}).with_columns(item_id=pl.format("i{}", "item_index"))
    vectors = np.random.default_rng(seed).standard_normal((rows, _DIM), dtype=np.float32)
    return embedding_table(items, vectors=vectors, imputed=np.zeros(rows, dtype=np.bool_))


def _seconds(operation: Callable[[], object]) -> float:
    start = time.perf_counter()
    operation()
    return time.perf_counter() - start


def _operations(
    local: AssetStore, writer: AssetStore, reader: AssetStore, table: pl.DataFrame
) -> dict[str, Callable[[], object]]:
    return {
        "folder, write": lambda: local.write_table(_ASSET, table),
        "folder, read": lambda: local.read_table(_ASSET),
        "URL, write": lambda: writer.write_table(_ASSET, table),
        "URL, first read on another machine": lambda: reader.read_table(_ASSET),
        "URL, read again": lambda: reader.read_table(_ASSET),
        f"URL, {_NUM_MANIFESTS} manifests": lambda: [reader.manifest(_ASSET) for _ in range(_NUM_MANIFESTS)],
    }


def main() -> None:
    """Measure both stores in interleaved rounds."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, _server() as url:
        local = AssetStore(Path(folder, "plain"), "shop")
        writer, reader = (AssetStore(Path(folder, name), "shop", url=url) for name in ("writer", "reader"))
        for seed in range(_ROUNDS):
            for name, operation in _operations(local, writer, reader, _table(rows, seed)).items():
                seconds.setdefault(name, []).append(_seconds(operation))
    print(f"{rows:,} x {_DIM}, {rows * _DIM * 4 / 1e6:,.0f} MB")
    for name, of_rounds in seconds.items():
        print(f"{name}: {min(of_rounds):.2f}-{max(of_rounds):.2f} s")


if __name__ == "__main__":
    main()
