"""A long table as shards of a fixed number of rows that outlive a kill: what is finished is not made again.

In: a folder to work in, what the rows depend on, and what loads a function that makes some of them. Out: the shards in
order, `part-00000.parquet` onwards, each whole. Shards of other circumstances are thrown away, never mixed in.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import polars as pl

from macrec_pipeline.config import RuntimeConfig
from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.sharding.shards import Make, Shard, map_shards, shards_of
from macrec_pipeline.schemas import TableSchema
from macrec_pipeline.storage.manifest import flush
from macrec_pipeline.storage.table_files import read_table_file, table_file, write_table_file

if TYPE_CHECKING:  # torch is loaded when there is work, not with the definitions
    import torch

MakeRows = Callable[[int, int], pl.DataFrame]
"""(first row, number of rows) -> those rows."""

LoadRows: TypeAlias = "Callable[[torch.device], MakeRows]"
"""Loads what it takes to make rows, on the device of a worker; see `runtime.shards.Load`."""


def write_shards(
    folder: Path,
    schema: TableSchema,
    load: LoadRows,
    *,
    num_rows: int,
    rows_per_shard: int,
    depends_on: Mapping[str, Any],
    runtime: RuntimeConfig,
    device: "torch.device",
    progress: Progress = quiet_progress,
) -> list[Path]:
    """Make the shards that are not there yet.

    Args:
        folder: where they are kept until the caller takes them; outlives the process.
        schema: of each shard.
        load: called once in each worker, and what it gives once for each shard that is missing or not whole.
        num_rows, rows_per_shard: of the whole table, and of a shard; the last one may be shorter.
        depends_on: plain JSON that says all that the rows are made from; anything else in it begins anew. Who makes
            them is no part of it.
        runtime, device: who makes them; see `map_shards`.
        progress: called as stage `schema.name` after each shard, counting rows.

    Returns:
        The shards' files in the order of the rows; one without rows if there are none.

    Raises:
        SchemaError: rows that break the schema.
        StorageError: the disk refused.
        WorkerError: workers died over a shard.
    """
    circumstances = {**depends_on, "num_rows": num_rows, "rows_per_shard": rows_per_shard}
    key = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
    place = folder / key
    with _refusals_are_told(schema, place):
        place.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != place:
                shutil.rmtree(other)
        every = shards_of(num_rows, rows_per_shard)
        missing = [shard for shard in every if not _is_whole(place, schema, shard)]
    rows = num_rows - sum(shard.count for shard in missing)

    def done(shard: Shard) -> None:
        nonlocal rows
        rows += shard.count
        progress(schema.name, rows, num_rows)

    map_shards(_Writing(place, schema, load), missing, runtime, device=device, done=done)
    return [_file(place, shard) for shard in every]


@dataclass(frozen=True)
class _Writing:
    """What travels to workers: makes the rows of a shard and writes them down as a whole."""

    place: Path
    schema: TableSchema = field(hash=False)
    load: LoadRows

    def __call__(self, device: "torch.device") -> Make:
        make = self.load(device)
        return lambda shard: self._write(shard, make(shard.first, shard.count))

    def _write(self, shard: Shard, rows: pl.DataFrame) -> None:
        path = _file(self.place, shard)
        self.schema.check(rows, where=path.name)
        # a name of its own: of a worker that was given up nobody knows whether it still writes
        with _refusals_are_told(self.schema, path):
            unfinished = write_table_file(self.place, self.schema, f".{path.stem}.{uuid.uuid4().hex}", rows)
            flush(unfinished)
            _digest_file(path).write_text(_digest(unfinished), encoding="ascii")
            unfinished.replace(path)
            flush(self.place)


def _file(place: Path, shard: Shard) -> Path:
    return table_file(place, f"part-{shard.number:05d}")


def _is_whole(place: Path, schema: TableSchema, shard: Shard) -> bool:
    path = _file(place, shard)
    digest = _digest_file(path)
    if not path.exists() or not digest.exists() or digest.read_bytes() != _digest(path).encode():
        return False
    try:
        return schema.check(read_table_file(path, schema)).height == shard.count
    except (pl.exceptions.PolarsError, SchemaError):  # of another version of this package
        return False


def _digest_file(shard: Path) -> Path:
    """Beside a shard: by its bytes it is known to be whole, since vectors in parquet do not show a flipped bit."""
    return shard.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _refusals_are_told(schema: TableSchema, place: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{schema.name} cannot be stored: {error.filename or place}: {error.strerror}.") from error
