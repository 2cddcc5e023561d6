"""CSV and TSV files -> polars tables of strings that keep every row and the line it stands on.

Nothing is guessed from the values: cells stay strings, a row with a filled cell too many becomes a row of nulls (its
columns cannot be told apart any more), a row with too few has nulls at its end. What cannot be split into rows without
doubt, such as quotes that never close, is refused with its line. gzip is read as it is.
"""

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl

from macrec_pipeline.data.readers.input_files import open_unpacked
from macrec_pipeline.data.readers.line_blocks import BLOCK_BYTES, LineBlock, line_blocks
from macrec_pipeline.errors import SchemaError

OVERFLOW = "overflow"
"""The column of the first cell too many."""


@dataclass(frozen=True)
class SourceTable:
    """A file's rows, its columns named by position.

    Attributes:
        file: path below the data folder.
        names: the columns' names, None in a file without header.
        width: how many columns the file has.
        cells: the columns that were read, each named by its position: "0", "1", ...
        lines: int64, the line (from 1) on which each row begins; in parquet the row.
        overfull: bool, whether a row has more cells than there are columns; None: no row has.
    """

    file: str
    names: tuple[str, ...] | None
    width: int
    cells: pl.DataFrame
    lines: pl.Series
    overfull: pl.Series | None = None

    def column(self, ref: str | int) -> pl.Series:
        """The cells of one column, by name or position.

        Raises:
            SchemaError: it is not there, or its name is there twice; lists the columns that are.
        """
        return self.cells[str(column_position(ref, self.names, self.width, self.file))]

    def problems(self) -> pl.Series:
        """Why a row cannot be used, as the raw tables say it; null for the others."""
        if self.overfull is None:
            return pl.repeat(None, len(self.lines), dtype=pl.String, eager=True)
        reason = pl.lit(f"wrong_number_of_cells: more than the {self.width} columns of the file")
        return pl.select(pl.when(self.overfull).then(reason).alias("problem")).to_series()


def column_position(ref: str | int, names: tuple[str, ...] | None, width: int, file: str) -> int:
    """Where the column is, from 0. Raises `SchemaError` as `SourceTable.column` does."""
    if isinstance(ref, int):
        if 0 <= ref < width:
            return ref
        raise SchemaError(f"{file}: there is no column at position {ref}; its {width} columns are 0 to {width - 1}.")
    if names is None:
        raise SchemaError(
            f"{file}: column {ref!r} is named, but the file has no header; use a position from 0 to {width - 1}, "
            "or say header: true."
        )
    places = [place for place, name in enumerate(names) if name == ref]
    if len(places) == 1:
        return places[0]
    if places:
        raise SchemaError(
            f"{file}: column {ref!r} is there {len(places)} times, at positions {places}; use one of them."
        )
    raise SchemaError(f"{file}: there is no column {ref!r}; it has {', '.join(names) or 'none'}.")


def read_header(path: Path, file: str, *, separator: str, header: bool) -> tuple[tuple[str, ...] | None, int, int]:
    """Names (None without header), number of columns and number of lines of the header.

    Raises:
        SchemaError: the file is empty or its first row cannot be split.
    """
    with _open_text(path) as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        try:
            first = next(reader, None)
        except csv.Error as error:
            raise SchemaError(f"{file}: its first row is not readable: {error}.") from None
        if not first:
            raise SchemaError(f"{file}: its first row is empty.")
        if not header:
            return None, len(first), 0
        return tuple(name.strip() for name in first), len(first), reader.line_num


def read_delimited(path: Path, file: str, *, separator: str, header: bool) -> SourceTable:
    """Read a whole file; see `read_delimited_parts`."""
    parts = list(read_delimited_parts(path, file, separator=separator, header=header))
    if len(parts) == 1:
        return parts[0]
    overfull = [
        pl.repeat(False, len(part.lines), eager=True) if part.overfull is None else part.overfull for part in parts
    ]
    return SourceTable(
        file,
        parts[0].names,
        parts[0].width,
        pl.concat([part.cells for part in parts]),
        pl.concat([part.lines for part in parts]),
        pl.concat(overfull),
    )


def read_delimited_parts(
    path: Path, file: str, *, separator: str, header: bool, block_bytes: int = BLOCK_BYTES
) -> Iterator[SourceTable]:
    """Read a file part by part, at least one; a file with quotes is one part, since a cell may run over lines.

    Args:
        path: the file, plain or gzip.
        file: its path below the data folder, for messages and `source_file`.
        separator: one character between cells.
        header: whether the first row holds names.
        block_bytes: unpacked bytes of a part.

    Raises:
        DataError: it cannot be read to its end.
        SchemaError: it is empty, or its quotes do not close; names the line.
    """
    names, width, header_lines = read_header(path, file, separator=separator, header=header)
    if _has_quotes(path):
        yield _read_quoted(path, file, names, width, separator=separator, header_lines=header_lines)
        return
    for block in line_blocks(path, file, block_bytes=block_bytes):
        if header and block.first_line == 1:
            block = LineBlock(2, block.data.partition(b"\n")[2])
        rows = split_cells(block.data, width, separator)
        lines = pl.int_range(block.first_line, block.first_line + rows.height, dtype=pl.Int64, eager=True)
        yield _source_table(file, names, rows, lines)


def split_cells(data: bytes, width: int, separator: str) -> pl.DataFrame:
    """Whole lines without quotes -> columns "0", "1", ... and `OVERFLOW`, strings; missing cells and empty ones null.

    Every line is a row, a blank one too. Bytes that are no UTF-8 become U+FFFD.
    """
    schema = dict.fromkeys([*map(str, range(width)), OVERFLOW], pl.String)
    return _read_csv(data, schema, separator=separator) if data else pl.DataFrame(schema=schema)


def _read_quoted(
    path: Path, file: str, names: tuple[str, ...] | None, width: int, *, separator: str, header_lines: int
) -> SourceTable:
    columns = [str(place) for place in range(width)]
    schema = dict.fromkeys([*columns, OVERFLOW], pl.String)
    try:
        rows = _read_csv(path, schema, separator=separator, quote_char='"', skip_lines=header_lines)
    except pl.exceptions.PolarsError:
        return _read_with_stray_quotes(path, file, names, separator=separator, columns=columns, skip=header_lines)
    return _source_table(file, names, rows, _line_numbers(rows, header_lines))


def _read_csv(
    source: bytes | Path,
    schema: dict[str, Any],
    *,
    separator: str,
    quote_char: str | None = None,
    skip_lines: int = 0,
) -> pl.DataFrame:
    return pl.read_csv(
        source,
        has_header=False,
        skip_lines=skip_lines,
        schema=schema,
        separator=separator,
        quote_char=quote_char,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        missing_columns="insert",
        extra_columns="ignore",
    )


def _source_table(file: str, names: tuple[str, ...] | None, rows: pl.DataFrame, lines: pl.Series) -> SourceTable:
    cells, width = rows.drop(OVERFLOW), rows.width - 1
    overfull = rows[OVERFLOW].is_not_null()
    if not overfull.any():
        return SourceTable(file, names, width, cells, lines)
    # No cell of an overfull row is believed: its columns cannot be told apart.
    return SourceTable(file, names, width, cells.select(pl.when(~overfull).then(pl.all())), lines, overfull)


def _line_numbers(rows: pl.DataFrame, header_lines: int) -> pl.Series:
    """The line on which each row begins; a quoted cell may run over several."""
    lines = pl.int_range(header_lines + 1, header_lines + 1 + rows.height, dtype=pl.Int64, eager=True)
    if rows.height:
        breaks = rows.select(
            pl.sum_horizontal(pl.all().str.count_matches("\n", literal=True).fill_null(0)).cast(pl.Int64)
        ).to_series()
        lines = lines + breaks.cum_sum().shift(1, fill_value=0)
    return lines.alias("source_row")


def _read_with_stray_quotes(
    path: Path, file: str, names: tuple[str, ...] | None, *, separator: str, columns: list[str], skip: int
) -> SourceTable:
    """Read rows one by one: a quote inside a cell is a character of it, one that opens a cell must close it."""
    width = len(columns)
    cells: list[list[str | None]] = []
    lines: list[int] = []
    overfull: list[bool] = []
    with _open_text(path) as stream:
        for _ in range(skip):
            next(stream)
        reader = csv.reader(stream, delimiter=separator, strict=True)
        begin = 1
        try:
            for row in reader:
                overfull.append(any(row[width : width + 1]))
                cells.append([None] * width if overfull[-1] else [*(row + [None] * width)[:width]])
                lines.append(skip + begin)
                begin = reader.line_num + 1
        except csv.Error as error:
            raise SchemaError(
                f"{file}: the row that begins in line {skip + begin} cannot be split into cells ({error}). A cell that "
                'begins with a quote must end with one, and quotes inside it are doubled (""): correct the line.'
            ) from None
    frame = pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String), orient="row")
    return SourceTable(
        file, names, width, frame, pl.Series("source_row", lines, dtype=pl.Int64), pl.Series(overfull, dtype=pl.Boolean)
    )


def _has_quotes(path: Path) -> bool:
    with open_unpacked(path) as stream:
        return any(b'"' in block for block in iter(lambda: stream.read(1 << 20), b""))


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    with (
        open_unpacked(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text
