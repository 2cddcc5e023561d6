"""Published rating logs with one rating per line, such as `item,user,rating,timestamp`, become raw interactions.

A log is read in blocks, and each block becomes one part of the table.
"""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_parsing import id_cells, number_cells, time_cells
from macrec_pipeline.data.readers.row_splitting import OVERFLOW
from macrec_pipeline.data.readers.text_files import BLOCK_BYTES, LineBlock, invalid_lines, line_blocks, split_cells
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.runtime.secret_addresses import without_secrets

# polars splits at a single byte only. This one replaces a longer separator and does not occur in any log.
_UNIT_SEPARATOR = "\x1f"
_MAX_QUOTED_CHARACTERS = 40


def rating_parts(
    path: Path,
    file: str,
    *,
    columns: tuple[str, ...],
    separator: str = ",",
    header: str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pl.DataFrame]:
    """Read a log as parts of `RAW_INTERACTIONS`. Cells are never quoted, and times are seconds.

    For a line that cannot be used, `problem` says why: `invalid_text`, `wrong_number_of_cells` or
    `wrong_type`. Missing cells are null.

    Args:
        path: the file, plain or gzip.
        file: its path below the data folder, for error messages and `source_file`.
        columns: user_id, item_id, rating and timestamp, in the order of the file.
        separator: the text between cells; it may be longer than one character.
        header: the first line that the format prescribes; None if the format has no header.
        block_bytes: number of unpacked bytes to read at once.

    Raises:
        DataError: the file cannot be read to its end.
        SchemaError: the first line is not the header.
    """
    blocks = line_blocks(path, file, block_bytes=block_bytes)
    if header is not None:
        blocks = _without_header(blocks, file, header)
    return (_interactions(block, file, columns, separator) for block in blocks)


def check_header(path: Path, file: str, header: str) -> None:
    """Raise `SchemaError` if the first line is not the header; reads only the beginning of the file."""
    next(_without_header(line_blocks(path, file, block_bytes=1 << 16), file, header), None)


def _without_header(blocks: Iterator[LineBlock], file: str, header: str) -> Iterator[LineBlock]:
    first_block = next(blocks, LineBlock(1, b""))
    line, _, rest = first_block.data.partition(b"\n")
    first_line = line.decode("utf-8", errors="replace").strip()
    if first_line != header:
        raise SchemaError(f"{file}: the first line is {without_secrets(first_line)[:200]!r}, expected {header!r}.")
    yield LineBlock(2, rest)
    yield from blocks


def _interactions(block: LineBlock, file: str, columns: tuple[str, ...], separator: str) -> pl.DataFrame:
    cells = _split(block.data, columns, separator)
    rating, timestamp = number_cells(cells["rating"]), time_cells(cells["timestamp"], "s")
    has_extra_cells = cells[OVERFLOW].is_not_null()
    problem: pl.Expr = (
        pl.when(has_extra_cells)
        .then(pl.lit(f"wrong_number_of_cells: more than {len(columns)}, separated by {separator!r}"))
        .when(cells["rating"].is_not_null() & rating.is_null())
        .then(_not_a_number(cells["rating"]))
        .when(cells["timestamp"].is_not_null() & timestamp.is_null())
        .then(_not_a_number(cells["timestamp"]))
    )
    problem, is_usable = problem.cast(pl.String), ~has_extra_cells
    if lines := invalid_lines(block):
        is_invalid = pl.repeat(False, cells.height, eager=True).scatter(lines, True)
        problem = pl.when(is_invalid).then(pl.lit("invalid_text: bytes that are not UTF-8")).otherwise(problem)
        is_usable &= ~is_invalid
    return pl.DataFrame(
        {
            "user_id": id_cells(cells["user_id"]),
            "item_id": id_cells(cells["item_id"]),
            "rating": rating,
            "timestamp": timestamp,
        }
    ).select(
        # No cell of a line with extra cells is trusted: its columns cannot be told apart. Replaced bytes are no ID.
        pl.when(is_usable).then(pl.all()),
        pl.lit(file).alias("source_file"),
        pl.int_range(block.first_line, pl.len() + block.first_line, dtype=pl.Int64).alias("source_row"),
        problem.alias("problem"),
    )


def _not_a_number(cells: pl.Series) -> pl.Expr:
    quoted = cells.str.slice(0, _MAX_QUOTED_CHARACTERS)
    return pl.format("wrong_type: {} is '{}', expected a number", pl.lit(cells.name), quoted)


def _split(data: bytes, columns: tuple[str, ...], separator: str) -> pl.DataFrame:
    if len(separator) > 1:
        data, separator = data.replace(separator.encode(), _UNIT_SEPARATOR.encode()), _UNIT_SEPARATOR
    return split_cells(data, len(columns), separator).rename(
        dict(zip(map(str, range(len(columns))), columns, strict=True))
    )
