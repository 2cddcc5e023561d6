"""Published rating logs, a line a rating: `item,user,rating,timestamp` and the like -> raw interactions.

Read in blocks, each of which becomes a part of the table.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_parsing import id_cells, number_cells, time_cells
from macrec_pipeline.data.readers.delimited import OVERFLOW, split_cells
from macrec_pipeline.data.readers.line_blocks import BLOCK_BYTES, LineBlock, line_blocks
from macrec_pipeline.errors import SchemaError

# polars splits at one byte only; this one stands for a longer separator and is in no log.
_UNIT_SEPARATOR = "\x1f"
_SHOWN = 40


def rating_parts(
    path: Path,
    file: str,
    *,
    columns: tuple[str, ...],
    separator: str = ",",
    header: str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pl.DataFrame]:
    """Read a log as parts of `RAW_INTERACTIONS`; no cell is quoted, times are seconds.

    A line that cannot be used says why in `problem`: `wrong_number_of_cells` or `wrong_type`. Missing cells are null.

    Args:
        path: the file, plain or gzip.
        file: its path below the data folder, for messages and `source_file`.
        columns: the order of user_id, item_id, rating and timestamp.
        separator: between cells; more than one character is allowed.
        header: the first line as the format prescribes it; None: there is none.
        block_bytes: unpacked bytes read at once.

    Raises:
        DataError: the file cannot be read to its end.
        SchemaError: the first line is not the header.
    """
    blocks = line_blocks(path, file, block_bytes=block_bytes)
    if header is not None:
        blocks = _without_header(blocks, file, header)
    return (_interactions(block, file, columns, separator) for block in blocks)


def check_header(path: Path, file: str, header: str) -> None:
    """Raise `SchemaError` where the first line is not the header; reads no more than the beginning."""
    next(_without_header(line_blocks(path, file, block_bytes=1 << 16), file, header), None)


def _without_header(blocks: Iterator[LineBlock], file: str, header: str) -> Iterator[LineBlock]:
    first = next(blocks, LineBlock(1, b""))
    line, _, rest = first.data.partition(b"\n")
    got = line.decode("utf-8", errors="replace").strip()
    if got != header:
        raise SchemaError(f"{file}: its first line is {got[:200]!r}, expected {header!r}.")
    yield LineBlock(2, rest)
    yield from blocks


def _interactions(block: LineBlock, file: str, columns: tuple[str, ...], separator: str) -> pl.DataFrame:
    cells = _split(block.data, columns, separator)
    rating, timestamp = number_cells(cells["rating"]), time_cells(cells["timestamp"], "s")
    shifted = cells[OVERFLOW].is_not_null()
    problem = (
        pl.when(shifted)
        .then(pl.lit(f"wrong_number_of_cells: more than {len(columns)}, separated by {separator!r}"))
        .when(cells["rating"].is_not_null() & rating.is_null())
        .then(_wrong_number(cells["rating"]))
        .when(cells["timestamp"].is_not_null() & timestamp.is_null())
        .then(_wrong_number(cells["timestamp"]))
    )
    return pl.DataFrame(
        {
            "user_id": id_cells(cells["user_id"]),
            "item_id": id_cells(cells["item_id"]),
            "rating": rating,
            "timestamp": timestamp,
        }
    ).select(
        # Of a line with a cell too many no cell is believed: its columns cannot be told apart.
        pl.when(~shifted).then(pl.all()),
        pl.lit(file).alias("source_file"),
        pl.int_range(block.first_line, pl.len() + block.first_line, dtype=pl.Int64).alias("source_row"),
        problem.cast(pl.String).alias("problem"),
    )


def _wrong_number(cells: pl.Series) -> pl.Expr:
    return pl.format("wrong_type: {} is '{}', expected a number", pl.lit(cells.name), cells.str.slice(0, _SHOWN))


def _split(data: bytes, columns: tuple[str, ...], separator: str) -> pl.DataFrame:
    if len(separator) > 1:
        data, separator = data.replace(separator.encode(), _UNIT_SEPARATOR.encode()), _UNIT_SEPARATOR
    return split_cells(data, len(columns), separator).rename(
        dict(zip(map(str, range(len(columns))), columns, strict=True))
    )
