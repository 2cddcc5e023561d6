"""Read and write a table as one Parquet file.

A table comes as a whole or in slices. Tables with a column of vectors are written without compression and decoded by
all cores, as fast as Parquet allows (docs/decisions/010-vectors-in-parquet.md).

Shapes (docs/notation.md): D width of a vector; `[rows, D]` is one vector per row of a table.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from polars.io.plugins import register_io_source

from macrec_pipeline.schemas import TableSchema

# zstd level 3 takes 1.6 times as long and saves only 3% (interactions, histories).
_COMPRESSION_LEVEL = 1
# One thread decodes a row group at a time, so this limits the memory that is used beside the matrix.
_ROWS_PER_GROUP = 16_384


def table_file(folder: Path, name: str) -> Path:
    """Return the path of a table's file in a folder, whether it exists or not."""
    return folder / f"{name}.parquet"


def write_table_file(folder: Path, schema: TableSchema, name: str, table: pl.DataFrame) -> Path:
    """Write a table that conforms to `schema` into a folder, and return its path; equal tables give equal bytes."""
    path = table_file(folder, name)
    if schema.has_vectors:
        write_vector_file(path, table)
    else:
        table.write_parquet(path, compression="zstd", compression_level=_COMPRESSION_LEVEL)
    return path


def write_slices_file(
    folder: Path, schema: TableSchema, name: str, slices: Iterable[pl.DataFrame], *, where: str
) -> Path:
    """Write a table slice by slice, so that it never has to fit into memory.

    Args:
        folder: the folder to write into.
        schema: what each slice must keep, and the row order also across slices. It must not demand unique rows.
        name: the name of the table.
        slices: the table's rows, in order.
        where: the step that writes, for error messages.

    Returns:
        The path of the file.

    Raises:
        SchemaError: a slice breaks the schema.
    """
    assert not schema.unique, f"{schema.name} demands unique rows, which slices by themselves cannot guarantee"
    path = table_file(folder, name)
    checked_slices = _CheckedSlices(schema, slices, where=where)
    try:
        register_io_source(lambda *_: iter(checked_slices), schema=schema.columns).sink_parquet(
            path, compression="zstd", compression_level=_COMPRESSION_LEVEL
        )
    except pl.exceptions.ComputeError:
        if checked_slices.error is not None:
            raise checked_slices.error from None
        raise
    return path


class _CheckedSlices:
    """Checks slices while they are iterated over.

    Attributes:
        error: the exception that ended the iteration. It is kept because polars replaces it by one of its own.
    """

    def __init__(self, schema: TableSchema, slices: Iterable[pl.DataFrame], *, where: str) -> None:
        self._schema = schema
        self._slices = slices
        self._where = where
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[pl.DataFrame]:
        last_row = self._schema.empty()
        try:
            for table_slice in self._slices:
                self._schema.check(table_slice, where=self._where)
                if table_slice.height:
                    self._schema.check(pl.concat([last_row, table_slice.head(1)]), where=self._where)
                    last_row = table_slice.tail(1)
                    yield table_slice
        except Exception as error:
            self.error = error
            raise


def read_table_file(path: Path, schema: TableSchema) -> pl.DataFrame:
    """Read what `write_table_file` wrote; the caller checks the result against `schema`."""
    return read_vector_file(path) if schema.has_vectors else pl.read_parquet(path, memory_map=False, glob=False)


def scan_table_file(path: Path) -> pl.LazyFrame:
    """Return a scan of a table without vectors, to be read in batches."""
    return pl.scan_parquet(path, glob=False)


def write_vector_file(path: Path, table: pl.DataFrame) -> None:
    """Write a table with a column of fixed-width float32 vectors; the same table gives the same bytes."""
    # Embeddings hardly compress, and no reader can use their minimum and maximum to skip pages.
    table.write_parquet(
        path,
        compression="uncompressed",
        statistics=False,
        row_group_size=_ROWS_PER_GROUP,
        arrow_schema=_schema_without_nulls(table),
    )


def read_vector_file(path: Path) -> pl.DataFrame:
    """Read what `write_vector_file` wrote, with all vectors in one contiguous matrix.

    A file without vectors is read as it is. If the file is damaged, this raises any exception or returns wrong numbers,
    so the caller must compare the file's hash.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        schema, metadata = file.schema_arrow, file.metadata
        positions = [position for position, column in enumerate(schema) if pa.types.is_fixed_size_list(column.type)]
        other_columns = [name for position, name in enumerate(schema.names) if position not in positions[:1]]
        table = pl.from_arrow(file.read(columns=other_columns))
    assert isinstance(table, pl.DataFrame), "a Parquet file holds a table"
    if not positions:
        return table
    column = schema.field(positions[0])
    matrix = _decode_vectors(path, metadata, column.name, width=column.type.list_size)
    vectors = pl.from_arrow(pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), column.type.list_size))
    assert isinstance(vectors, pl.Series)
    return table.insert_column(positions[0], vectors.alias(column.name))


def _schema_without_nulls(table: pl.DataFrame) -> pa.Schema:
    """Return the table's schema with non-nullable vectors of non-nullable numbers.

    A reader then need not check each number for null.
    """
    schema = table.head(0).to_arrow().schema
    for position, column in enumerate(schema):
        if pa.types.is_fixed_size_list(column.type):
            number = pa.field(column.type.value_field.name, pa.float32(), nullable=False)
            vectors = pa.field(column.name, pa.list_(number, column.type.list_size), nullable=False)
            schema = schema.set(position, vectors)
    return schema


def _decode_vectors(path: Path, metadata: pq.FileMetaData, name: str, *, width: int) -> npt.NDArray[np.float32]:
    """Decode a column of vectors into one matrix, float32 [rows, D], with one thread per core."""
    group_heights = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    group_starts = np.cumsum([0, *group_heights])
    matrix = np.empty((int(group_starts[-1]), width), dtype=np.float32)

    def decode_group(group: int) -> None:
        # The file is mapped for each group: no bytes are copied, and only the groups in progress stay in memory.
        with pq.ParquetFile(path, metadata=metadata, memory_map=True, pre_buffer=False) as file:
            chunks = file.read_row_group(group, columns=[name], use_threads=False)[name].chunks
        row = group_starts[group]
        for chunk in chunks:
            matrix[row : row + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, width)
            row += len(chunk)

    with ThreadPoolExecutor(max_workers=pa.cpu_count()) as pool:
        list(pool.map(decode_group, range(len(group_heights))))
    return matrix
