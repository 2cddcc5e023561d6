"""A table as one file: parquet, or an Arrow file where a column holds vectors (docs/decisions/009).

Parquet decodes a vector number by number, at a third of the speed of the disk; in an Arrow file the matrix lies as it
lies in memory, so reading it is mapping it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
from polars.io.plugins import register_io_source

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


def write_slices_file(
    folder: Path, schema: TableSchema, name: str, slices: Iterable[pl.DataFrame], *, where: str
) -> Path:
    """Write a parquet table from parts that keep `schema`, also at their borders, while they come. Returns the file.

    Raises:
        SchemaError: a part does not keep it; `where` says what was being done.
    """
    assert not schema.unique, f"{schema.name} asks for unique rows, which parts by themselves cannot show"
    path = folder / f"{name}{_PARQUET}"
    writer = _SliceChecker(schema, slices, where=where)
    try:
        register_io_source(lambda *_: iter(writer), schema=schema.columns).sink_parquet(
            path, compression="zstd", compression_level=_COMPRESSION_LEVEL
        )
    except pl.exceptions.ComputeError:
        if writer.error is not None:
            raise writer.error from None
        raise
    return path


class _SliceChecker:
    """Hands on slices that keep the schema; what went wrong in Python is kept, since polars only tells of it."""

    def __init__(self, schema: TableSchema, slices: Iterable[pl.DataFrame], *, where: str) -> None:
        self._schema = schema
        self._slices = slices
        self._where = where
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pl.DataFrame]:
        above = self._schema.empty()
        try:
            for part in self._slices:
                self._schema.check(part, where=self._where)
                if part.height:
                    self._schema.check(pl.concat([above, part.head(1)]), where=self._where)
                    above = part.tail(1)
                    yield part
        except Exception as error:
            self.error = error
            raise


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


def scan_table_file(path: Path) -> pl.LazyFrame:
    """The same to be read in parts; parquet only."""
    return pl.scan_parquet(path)


def _ending(schema: TableSchema) -> str:
    return _ARROW if ANY_WIDTH_VECTOR in schema.columns.values() else _PARQUET
