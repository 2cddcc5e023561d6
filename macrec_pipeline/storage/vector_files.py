"""A table with a column of vectors as one parquet file, at the speed that parquet allows (docs/decisions/010).

In and out: a table with one fixed-width float32 array column. Shapes: N rows, D embedding.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

# What one thread decodes at a time: bounds the memory beside the matrix.
_ROWS_A_GROUP = 16_384


def write_vector_file(path: Path, table: pl.DataFrame) -> None:
    """Write the table; the same table gives the same bytes."""
    # Numbers of an encoder hardly compress, and their extremes help nobody to skip a page.
    table.write_parquet(
        path,
        compression="uncompressed",
        statistics=False,
        row_group_size=_ROWS_A_GROUP,
        arrow_schema=_schema_without_gaps(table),
    )


def read_vector_file(path: Path) -> pl.DataFrame:
    """Read what `write_vector_file` wrote, with the matrix in one piece; a file without vectors is read as it is.

    Bytes that were damaged raise an error of Python or give other numbers: the caller compares the file's hash.
    """
    with pq.ParquetFile(path, pre_buffer=False) as file:
        schema, metadata = file.schema_arrow, file.metadata
        places = [place for place, column in enumerate(schema) if pa.types.is_fixed_size_list(column.type)]
        others = file.read(columns=[name for place, name in enumerate(schema.names) if place not in places[:1]])
    table = pl.from_arrow(others)
    assert isinstance(table, pl.DataFrame), "a file holds a table"
    if not places:
        return table
    column = schema.field(places[0])
    matrix = _decode(path, metadata, column.name, width=column.type.list_size)
    vectors = pl.from_arrow(pa.FixedSizeListArray.from_arrays(pa.array(matrix.ravel()), column.type.list_size))
    assert isinstance(vectors, pl.Series)
    return table.insert_column(places[0], vectors.alias(column.name))


def _schema_without_gaps(table: pl.DataFrame) -> pa.Schema:
    """The table's, where a vector and its numbers are never null: a reader then need not look at each number for it."""
    schema = table.head(0).to_arrow().schema
    for place, column in enumerate(schema):
        if pa.types.is_fixed_size_list(column.type):
            number = pa.field(column.type.value_field.name, pa.float32(), nullable=False)
            dense = pa.field(column.name, pa.list_(number, column.type.list_size), nullable=False)
            schema = schema.set(place, dense)
    return schema


def _decode(path: Path, metadata: pq.FileMetaData, name: str, *, width: int) -> npt.NDArray[np.float32]:
    """The vectors float32 [N, D], decoded into their places by as many threads as there are cores."""
    heights = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    starts = np.cumsum([0, *heights])
    matrix = np.empty((int(starts[-1]), width), dtype=np.float32)

    def decode(group: int) -> None:
        # Mapped a group at a time: no copy of the bytes on the way, and no more of the file in memory than is decoded.
        with pq.ParquetFile(path, metadata=metadata, memory_map=True, pre_buffer=False) as file:
            chunks = file.read_row_group(group, columns=[name], use_threads=False)[name].chunks
        place = starts[group]
        for chunk in chunks:
            matrix[place : place + len(chunk)] = chunk.flatten().to_numpy().reshape(-1, width)
            place += len(chunk)

    with ThreadPoolExecutor(max_workers=pa.cpu_count()) as pool:
        list(pool.map(decode, range(len(heights))))
    return matrix
