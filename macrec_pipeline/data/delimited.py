"""CSV and TSV files -> a polars table of strings that keeps every row and the line it stands on.

Nothing is guessed from the values: cells stay strings, a row with a filled cell too many becomes a row of nulls (its
columns cannot be told apart any more), a row with too few has nulls at its end. What cannot be split into rows without
doubt, such as quotes that never close, is refused with its line. gzip is read as it is.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import polars as pl

from macrec_pipeline.errors import DataError, SchemaError

_GZIP_MAGIC = b"\x1f\x8b"
_OVERFLOW = "overflow"


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
    """Read a whole file.

    Args:
        path: the file, plain or gzip.
        file: its path below the data folder, for messages and `source_file`.
        separator: one character between cells.
        header: whether the first row holds names.

    Raises:
        SchemaError: it is empty, or its quotes do not close; names the line.
    """
    names, width, header_lines = read_header(path, file, separator=separator, header=header)
    columns = [str(place) for place in range(width)]
    quoted = _has_quotes(path)
    try:
        rows = pl.read_csv(
            path,
            has_header=False,
            skip_lines=header_lines,
            schema=dict.fromkeys([*columns, _OVERFLOW], pl.String),
            separator=separator,
            quote_char='"' if quoted else None,
            encoding="utf8-lossy",
            truncate_ragged_lines=True,
            missing_columns="insert",
            extra_columns="ignore",
        )
    except pl.exceptions.PolarsError:
        return _read_with_stray_quotes(path, file, names, separator=separator, columns=columns, skip=header_lines)
    lines = _line_numbers(rows, header_lines, quoted=quoted)
    overfull = rows[_OVERFLOW].is_not_null()
    if not overfull.any():
        return SourceTable(file, names, width, rows.select(columns), lines)
    # No cell of an overfull row is believed: its columns cannot be told apart.
    believed = rows.select(pl.when(~overfull).then(pl.col(columns)))
    return SourceTable(file, names, width, believed, lines, overfull)


def _line_numbers(rows: pl.DataFrame, header_lines: int, *, quoted: bool) -> pl.Series:
    """The line on which each row begins; a quoted cell may run over several."""
    lines = pl.int_range(header_lines + 1, header_lines + 1 + rows.height, dtype=pl.Int64, eager=True)
    if quoted and rows.height:
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
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a plain or gzip file; whoever reads them meets only errors of this package."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Copy it again, or check its permissions.") from None


@contextmanager
def _open_text(path: Path) -> Iterator[IO[str]]:
    with (
        open_unpacked(path) as stream,
        io.TextIOWrapper(stream, encoding="utf-8-sig", errors="replace", newline="") as text,
    ):
        yield text
