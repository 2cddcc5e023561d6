"""What do tables at a URL cost beside tables in a folder: to write, to read first, to read again, to look at?

    OMP_NUM_THREADS=1 python benchmarks/storage_by_url.py [ROWS]

Writes ROWS x 384 embeddings into a folder and to moto's S3, a process of its own on this machine, and reads them as
this machine and as another one would; prints the least and the most seconds of five rounds. What a real line and a
real store add is not in it.
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
_DIM, _ROUNDS, _LOOKS = 384, 5, 50


@contextmanager
def _server() -> Iterator[str]:
    """A bucket's URL, named in the environment."""
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
    raise SystemExit("moto's server does not answer")


def _table(rows: int, seed: int) -> pl.DataFrame:
    items = pl.DataFrame({"item_index": np.arange(rows)}).with_columns(item_id=pl.format("i{}", "item_index"))
    vectors = np.random.default_rng(seed).standard_normal((rows, _DIM), dtype=np.float32)
    return embedding_table(items, vectors=vectors, imputed=np.zeros(rows, dtype=np.bool_))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def _works(
    plain: AssetStore, writer: AssetStore, reader: AssetStore, table: pl.DataFrame
) -> dict[str, Callable[[], object]]:
    return {
        "folder, write": lambda: plain.write_table(_ASSET, table),
        "folder, read": lambda: plain.read_table(_ASSET),
        "URL, write": lambda: writer.write_table(_ASSET, table),
        "URL, first read on another machine": lambda: reader.read_table(_ASSET),
        "URL, read again": lambda: reader.read_table(_ASSET),
        f"URL, {_LOOKS} manifests": lambda: [reader.manifest(_ASSET) for _ in range(_LOOKS)],
    }


def main() -> None:
    """Measure both places, the rounds interleaved."""
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, _server() as url:
        plain = AssetStore(Path(folder, "plain"), "shop")
        writer, reader = (AssetStore(Path(folder, name), "shop", url=url) for name in ("writer", "reader"))
        for seed in range(_ROUNDS):
            for name, work in _works(plain, writer, reader, _table(rows, seed)).items():
                seconds.setdefault(name, []).append(_seconds(work))
    print(f"{rows:,} x {_DIM}, {rows * _DIM * 4 / 1e6:,.0f} MB")
    for name, each in seconds.items():
        print(f"{name}: {min(each):.2f}-{max(each):.2f} s")


if __name__ == "__main__":
    main()
