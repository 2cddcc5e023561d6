"""A long table as shards of a fixed number of rows that outlive a kill: what is finished is not made again.

In: a folder to work in, what the rows depend on, and a function that makes some of them. Out: the shards in order,
`part-00000.parquet` onwards, each whole. Shards of other circumstances are thrown away, never mixed in.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.schemas import TableSchema
from macrec_pipeline.storage.manifest import flush
from macrec_pipeline.storage.table_files import read_table_file, write_table_file


def write_shards(
    folder: Path,
    schema: TableSchema,
    make: Callable[[int, int], pl.DataFrame],
    *,
    num_rows: int,
    rows_per_shard: int,
    depends_on: Mapping[str, Any],
) -> list[Path]:
    """Make the shards that are not there yet.

    Args:
        folder: where they are kept until the caller takes them; outlives the process.
        schema: of each shard.
        make: (first row, number of rows) -> those rows; called once for each shard that is missing or not whole.
        num_rows, rows_per_shard: of the whole table, and of a shard; the last one may be shorter.
        depends_on: plain JSON that says all that the rows are made from; anything else in it begins anew.

    Returns:
        The shards' files in the order of the rows; one without rows if there are none.

    Raises:
        SchemaError: `make` gave rows that break the schema.
        StorageError: the disk refused.
    """
    circumstances = {**depends_on, "num_rows": num_rows, "rows_per_shard": rows_per_shard}
    key = hashlib.sha256(json.dumps(circumstances, sort_keys=True).encode()).hexdigest()[:16]
    place, shards = folder / key, []
    try:
        place.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other != place:
                shutil.rmtree(other)
        for number, first in enumerate(range(0, max(num_rows, 1), rows_per_shard)):
            name, rows = f"part-{number:05d}", min(rows_per_shard, num_rows - first)
            shard = place / f"{name}.parquet"
            if not _is_whole(shard, schema, rows):
                _write(shard, schema, make(first, rows))
            shards.append(shard)
    except OSError as error:
        raise StorageError(f"{schema.name} cannot be stored: {error.filename or place}: {error.strerror}.") from error
    return shards


def _write(shard: Path, schema: TableSchema, rows: pl.DataFrame) -> None:
    schema.check(rows, where=shard.name)
    unfinished = write_table_file(shard.parent, schema, f".{shard.stem}.unfinished", rows)
    flush(unfinished)
    unfinished.replace(shard)
    flush(shard.parent)


def _is_whole(shard: Path, schema: TableSchema, rows: int) -> bool:
    if not shard.exists():
        return False
    try:
        return schema.check(read_table_file(shard, schema)).height == rows
    except (pl.exceptions.PolarsError, SchemaError):  # of a power cut, or of another version of this package
        return False
