"""Compute a long table in shards that survive a kill: finished shards are not computed again.

The input is a folder to work in, everything that the rows depend on, and a function that loads what computes rows. The
output is the shards in order, `part-00000.parquet` onwards, each of them complete. Shards that were computed from
something else are deleted, never mixed in.
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
from macrec_pipeline.runtime.sharding.drivers import map_shards
from macrec_pipeline.runtime.sharding.shards import Shard, ShardTask, split_into_shards
from macrec_pipeline.schemas import TableSchema
from macrec_pipeline.storage.manifest import flush
from macrec_pipeline.storage.table_files import read_table_file, table_file, write_table_file

if TYPE_CHECKING:  # torch is loaded when there is work, not with the Dagster definitions
    import torch

ComputeRows = Callable[[int, int], pl.DataFrame]
"""(first row, number of rows) -> those rows of the table."""

RowsLoader: TypeAlias = "Callable[[torch.device], ComputeRows]"
"""Loads what computes rows, on the device of a worker; see `runtime.sharding.shards.TaskLoader`."""


def write_shards(
    folder: Path,
    schema: TableSchema,
    load: RowsLoader,
    *,
    num_rows: int,
    rows_per_shard: int,
    depends_on: Mapping[str, Any],
    runtime: RuntimeConfig,
    device: "torch.device",
    progress: Progress = quiet_progress,
) -> list[Path]:
    """Compute the shards that do not exist yet.

    Args:
        folder: where the shards are kept until the caller takes them; it must outlive the process.
        schema: the schema of each shard.
        load: called once per worker. What it returns is called once per shard that is missing or damaged.
        num_rows: the number of rows of the whole table.
        rows_per_shard: the number of rows of a shard; the last one may be shorter.
        depends_on: plain JSON that identifies everything from which the rows are computed. With any other value, all
            shards are computed again. The worker that computes a shard is not part of it.
        runtime: how many workers compute, and where; see `map_shards`.
        device: the device of this process.
        progress: called as stage `schema.name` after each shard, counting rows.

    Returns:
        The shards' files in the order of rows. If the table has no rows, there is one shard without rows.

    Raises:
        SchemaError: computed rows break the schema.
        StorageError: a shard cannot be written.
        WorkerError: workers repeatedly died while computing a shard.
    """
    inputs = {**depends_on, "num_rows": num_rows, "rows_per_shard": rows_per_shard}
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]
    shard_folder = folder / key
    with _os_errors_as_storage_errors(schema, shard_folder):
        shard_folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != shard_folder:
                shutil.rmtree(other)
        shards = split_into_shards(num_rows, rows_per_shard)
        missing = [shard for shard in shards if not _is_finished(shard_folder, schema, shard)]
    finished_rows = num_rows - sum(shard.count for shard in missing)

    def report_progress(shard: Shard) -> None:
        nonlocal finished_rows
        finished_rows += shard.count
        progress(schema.name, finished_rows, num_rows)

    map_shards(_ShardWriter(shard_folder, schema, load), missing, runtime, device=device, on_finished=report_progress)
    return [_shard_file(shard_folder, shard) for shard in shards]


@dataclass(frozen=True)
class _ShardWriter:
    """What is sent to workers: computes the rows of a shard and writes them, completely or not at all."""

    folder: Path
    schema: TableSchema = field(hash=False)
    load: RowsLoader

    def __call__(self, device: "torch.device") -> ShardTask:
        compute_rows = self.load(device)
        return lambda shard: self._write(shard, compute_rows(shard.first, shard.count))

    def _write(self, shard: Shard, rows: pl.DataFrame) -> None:
        path = _shard_file(self.folder, shard)
        self.schema.check(rows, where=path.name)
        # The temporary name is unique because a worker that was given up for dead may still be writing this shard.
        with _os_errors_as_storage_errors(self.schema, path):
            temporary = write_table_file(self.folder, self.schema, f".{path.stem}.{uuid.uuid4().hex}", rows)
            flush(temporary)
            _digest_file(path).write_text(_digest(temporary), encoding="ascii")
            temporary.replace(path)
            flush(self.folder)


def _shard_file(folder: Path, shard: Shard) -> Path:
    return table_file(folder, f"part-{shard.number:05d}")


def _is_finished(folder: Path, schema: TableSchema, shard: Shard) -> bool:
    path = _shard_file(folder, shard)
    digest_file = _digest_file(path)
    if not path.exists() or not digest_file.exists() or digest_file.read_bytes() != _digest(path).encode():
        return False
    try:
        return schema.check(read_table_file(path, schema)).height == shard.count
    except (pl.exceptions.PolarsError, SchemaError):  # another version of this package wrote it
        return False


def _digest_file(shard_path: Path) -> Path:
    """Return the file that holds a shard's digest, since Parquet itself does not reveal a flipped bit in a vector."""
    return shard_path.with_suffix(".sha256")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _os_errors_as_storage_errors(schema: TableSchema, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{schema.name} cannot be stored: {error.filename or path}: {error.strerror}.") from error
