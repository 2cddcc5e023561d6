"""A table as one file: parquet, or an Arrow file where a column holds vectors (docs/decisions/009).

Parquet decodes a vector number by number, at a third of the speed of the disk; in an Arrow file the matrix lies as it
lies in memory, so reading it is mapping it.
"""

from pathlib import Path

import polars as pl
import pyarrow as pa

from macrec_pipeline.schemas import ANY_WIDTH_VECTOR, TableSchema

_COMPRESSION_LEVEL = 3
_ARROW, _PARQUET = ".arrow", ".parquet"


def write_table_file(folder: Path, schema: TableSchema, name: str, table: pl.DataFrame) -> Path:
    """Write a table that keeps `schema` into a folder; the same table gives the same bytes. Returns the file."""
    path = folder / f"{name}{_ending(schema)}"
    if path.suffix == _ARROW:
        # One record batch, so that the matrix comes back in one piece; numbers of an encoder hardly compress.
        table.rechunk().write_ipc(
            path,
            compression="uncompressed",
            compat_level=pl.CompatLevel.oldest(),
            record_batch_size=max(table.height, 1),
        )
    else:
        table.write_parquet(path, compression="zstd", compression_level=_COMPRESSION_LEVEL)
    return path


def find_table_file(folder: Path, schema: TableSchema, name: str) -> Path:
    """The table's file in a folder, whether it is there or not; versions before 0.2 kept embeddings in parquet."""
    path = folder / f"{name}{_ending(schema)}"
    older = path.with_suffix(_PARQUET)
    return older if older.is_file() and not path.is_file() else path


def read_table_file(path: Path) -> pl.DataFrame:
    """Read what `write_table_file` wrote; an Arrow file is mapped, and its columns are read-only."""
    if path.suffix != _ARROW:
        return pl.read_parquet(path, memory_map=False)
    with pa.memory_map(str(path)) as source:
        table = pl.from_arrow(pa.ipc.open_file(source).read_all(), rechunk=False)
    assert isinstance(table, pl.DataFrame), "a file holds a table"
    return table


def _ending(schema: TableSchema) -> str:
    return _ARROW if ANY_WIDTH_VECTOR in schema.columns.values() else _PARQUET
