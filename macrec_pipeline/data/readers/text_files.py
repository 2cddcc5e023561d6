"""Find, unpack and split text files below the data folder: CSV, TSV and files with one record per line.

Reading stays bounded: `line_blocks` unpacks one block of whole lines at a time, and `read_delimited_parts` turns each
block into columns before the next block is read. gzip files are recognised by their content, whatever their name.

Nothing is guessed from the values. Cells stay strings, and every row keeps the number of the line it begins on, so that
quarantine can name that line. A row with too few cells ends in nulls. A row with too many non-empty cells becomes a row
of nulls, because its columns can no longer be told apart. A file that cannot be split into rows with certainty, for
example because a quote never closes, is an error that names the line.
"""

import csv
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from macrec_pipeline.errors import DataError, MissingFileError, SchemaError

BLOCK_BYTES = 16 << 20
OVERFLOW = "overflow"
"""The column that holds the first cell beyond the columns of the file."""

_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_LINE = 64 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class LineBlock:
    """Consecutive whole lines of a file.

    Attributes:
        first_line: the number of the first line, counted from 1.
        data: the bytes of the lines; only the last line of a file may lack its line break.
    """

    first_line: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield each line without its line break, together with its number."""
        lines = self.data.split(b"\n")
        if not lines[-1]:
            lines.pop()
        return ((self.first_line + offset, line.removesuffix(b"\r")) for offset, line in enumerate(lines))


@dataclass(frozen=True)
class SourceTable:
    """Rows of a file, with columns named by position.

    Attributes:
        file: path of the file below the data folder.
        column_names: names from the header; None if the file has no header.
        num_columns: number of columns of the file.
        cells: the columns that were read, each named by its position: "0", "1", ...
        line_numbers: int64, the line (from 1) on which each row begins; the row number in a parquet file.
        has_extra_cells: bool, whether a row has more cells than the file has columns; None if no row does.
    """

    file: str
    column_names: tuple[str, ...] | None
    num_columns: int
    cells: pl.DataFrame
    line_numbers: pl.Series
    has_extra_cells: pl.Series | None = None

    def column(self, ref: str | int) -> pl.Series:
        """Return the cells of one column, by name or position.

        Raises:
            SchemaError: there is no such column, or several columns have this name; lists the columns of the file.
        """
        return self.cells[str(column_position(ref, self.column_names, self.num_columns, self.file))]

    def problems(self) -> pl.Series:
        """Return the `problem` column of the raw tables: why a row cannot be used, null for usable rows."""
        if self.has_extra_cells is None:
            return pl.repeat(None, len(self.line_numbers), dtype=pl.String, eager=True)
        reason = pl.lit(f"wrong_number_of_cells: more than the {self.num_columns} columns of the file")
        return pl.select(pl.when(self.has_extra_cells).then(reason).alias("problem")).to_series()


def require_file(data_dir: Path, relative: str, *, what: str) -> Path:
    """Return the path of a file that must exist in the data folder.

    Args:
        data_dir: the data folder (`MACREC_DATA`).
        relative: path below the data folder, as written in the data set's YAML file.
        what: the setting that names the file, for the error message.

    Raises:
        MissingFileError: the path does not exist, or is a folder.
    """
    path = data_dir / relative
    if path.is_file():
        return path
    problem = "is a folder, not a file" if path.is_dir() else "does not exist"
    raise MissingFileError(
        f"{path} {problem} ({what}). Put the file there, or set MACREC_DATA to the folder that contains {relative} "
        f"(currently {data_dir})."
    )


def require_file_or_gz(data_dir: Path, relative: str, *, what: str) -> tuple[Path, str]:
    """Return the path of a file or of the same name with `.gz`, and its path below the data folder.

    Raises:
        MissingFileError: neither file exists.
    """
    for name in (relative, f"{relative}.gz"):
        if (data_dir / name).is_file():
            return data_dir / name, name
    return require_file(data_dir, relative, what=f"{what}; {relative}.gz is also accepted"), relative


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a plain or gzip file for reading its unpacked bytes.

    Raises:
        DataError: the file cannot be opened, read or unpacked; also raised for errors while the caller reads.
    """
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Copy it again, or check its permissions.") from None


def line_blocks(path: Path, file: str, *, block_bytes: int = BLOCK_BYTES) -> Iterator[LineBlock]:
    """Read a file block by block, without the byte order mark at its beginning.

    Args:
        path: the file, plain or gzip, whatever its name says.
        file: its path below the data folder, for error messages.
        block_bytes: number of unpacked bytes to read at once.

    Raises:
        DataError: the file cannot be read to its end, for example because a download was cut off; names the last
            readable line.
        SchemaError: the file is not a text file: a line is longer than any sensible record.
    """
    line_number, rest = 1, b""
    try:
        with open_unpacked(path) as stream:
            start = stream.read(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
            while chunk := start + stream.read(block_bytes):
                start = b""
                end = chunk.rfind(b"\n") + 1
                if not end:
                    rest += chunk
                    if len(rest) > _LONGEST_LINE:
                        raise SchemaError(
                            f"{file}: line {line_number} is longer than {_LONGEST_LINE} bytes, so this is not a text "
                            "file. Check that the data set names the right file."
                        )
                    continue
                block = LineBlock(line_number, rest + chunk[:end])
                rest = chunk[end:]
                line_number += block.data.count(b"\n")
                yield block
    except SchemaError:
        raise
    except DataError as error:
        raise DataError(
            f"{error} The file is readable up to line {line_number - 1}, but a partial file is not used."
        ) from None
    if rest:
        yield LineBlock(line_number, rest)


def column_position(ref: str | int, names: tuple[str, ...] | None, num_columns: int, file: str) -> int:
    """Return the position of a column, from 0. Raise `SchemaError` as `SourceTable.column` does."""
    if isinstance(ref, int):
        if 0 <= ref < num_columns:
            return ref
        raise SchemaError(
            f"{file} has no column at position {ref}. Its {num_columns} columns have the positions 0 to "
            f"{num_columns - 1}."
        )
    if names is None:
        raise SchemaError(
            f"{file}: column {ref!r} is given by name, but the file has no header. Use a position from 0 to "
            f"{num_columns - 1}, or set header: true."
        )
    positions = [position for position, name in enumerate(names) if name == ref]
    if len(positions) == 1:
        return positions[0]
    if positions:
        raise SchemaError(
            f"{file} has {len(positions)} columns named {ref!r}, at positions {positions}. Use one of the positions "
            "instead of the name."
        )
    raise SchemaError(f"{file} has no column {ref!r}. Its columns are: {', '.join(names) or 'none'}.")


def read_header(path: Path, file: str, *, separator: str, header: bool) -> tuple[tuple[str, ...] | None, int, int]:
    """Read the first row of a delimited file.

    Returns:
        The column names (None without header), the number of columns and the number of lines of the header.

    Raises:
        SchemaError: the file is empty, or its first row cannot be split into cells.
    """
    with _open_text(path) as stream:
        reader = csv.reader(stream, delimiter=separator, strict=True)
        try:
            first_row = next(reader, None)
        except csv.Error as error:
            raise SchemaError(f"{file}: the first row cannot be split into cells: {error}.") from None
        if not first_row:
            raise SchemaError(f"{file}: the first row is empty, so the number of columns is unknown.")
        if not header:
            return None, len(first_row), 0
        return tuple(name.strip() for name in first_row), len(first_row), reader.line_num


def read_delimited(path: Path, file: str, *, separator: str, header: bool) -> SourceTable:
    """Read a whole CSV or TSV file. Arguments and errors as in `read_delimited_parts`."""
    parts = list(read_delimited_parts(path, file, separator=separator, header=header))
    if len(parts) == 1:
        return parts[0]
    has_extra_cells = [
        pl.repeat(False, len(part.line_numbers), eager=True) if part.has_extra_cells is None else part.has_extra_cells
        for part in parts
    ]
    return SourceTable(
        file,
        parts[0].column_names,
        parts[0].num_columns,
        pl.concat([part.cells for part in parts]),
        pl.concat([part.line_numbers for part in parts]),
        pl.concat(has_extra_cells),
    )


def read_delimited_parts(
    path: Path, file: str, *, separator: str, header: bool, block_bytes: int = BLOCK_BYTES
) -> Iterator[SourceTable]:
    """Read a CSV or TSV file part by part; yields at least one part.

    A file that contains quotes is one part, because a quoted cell may span several lines.

    Args:
        path: the file, plain or gzip.
        file: its path below the data folder, for error messages and `source_file`.
        separator: the character between cells.
        header: whether the first row holds the column names.
        block_bytes: unpacked bytes per part.

    Raises:
        DataError: the file cannot be read to its end.
        SchemaError: the file is empty, or its quotes do not close; names the line.
    """
    names, num_columns, header_lines = read_header(path, file, separator=separator, header=header)
    if _has_quotes(path):
        yield _read_quoted(path, file, names, num_columns, separator=separator, header_lines=header_lines)
        return
    for block in line_blocks(path, file, block_bytes=block_bytes):
        if header and block.first_line == 1:
            block = LineBlock(2, block.data.partition(b"\n")[2])
        rows = split_cells(block.data, num_columns, separator)
        line_numbers = pl.int_range(block.first_line, block.first_line + rows.height, dtype=pl.Int64, eager=True)
        yield _source_table(file, names, rows, line_numbers)


def split_cells(data: bytes, num_columns: int, separator: str) -> pl.DataFrame:
    """Split whole lines without quotes into the string columns "0", "1", ... and `OVERFLOW`.

    Every line becomes a row, including blank lines. Missing and empty cells are null; invalid UTF-8 becomes U+FFFD.
    """
    schema = dict.fromkeys([*map(str, range(num_columns)), OVERFLOW], pl.String)
    return _read_csv(data, schema, separator=separator) if data else pl.DataFrame(schema=schema)


def _read_quoted(
    path: Path, file: str, names: tuple[str, ...] | None, num_columns: int, *, separator: str, header_lines: int
) -> SourceTable:
    columns = [str(position) for position in range(num_columns)]
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


def _source_table(file: str, names: tuple[str, ...] | None, rows: pl.DataFrame, line_numbers: pl.Series) -> SourceTable:
    cells, num_columns = rows.drop(OVERFLOW), rows.width - 1
    has_extra_cells = rows[OVERFLOW].is_not_null()
    if not has_extra_cells.any():
        return SourceTable(file, names, num_columns, cells, line_numbers)
    # No cell of a row with extra cells is trusted: its columns cannot be told apart.
    trusted = cells.select(pl.when(~has_extra_cells).then(pl.all()))
    return SourceTable(file, names, num_columns, trusted, line_numbers, has_extra_cells)


def _line_numbers(rows: pl.DataFrame, header_lines: int) -> pl.Series:
    """Return the line on which each row begins; a quoted cell may span several lines."""
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
    """Read row by row: a quote inside a cell is an ordinary character, and a quote that opens a cell must close it."""
    num_columns = len(columns)
    cells: list[list[str | None]] = []
    line_numbers: list[int] = []
    has_extra_cells: list[bool] = []
    with _open_text(path) as stream:
        for _ in range(skip):
            next(stream)
        reader = csv.reader(stream, delimiter=separator, strict=True)
        row_start = 1
        try:
            for row in reader:
                has_extra_cells.append(any(row[num_columns : num_columns + 1]))
                padded = [*(row + [None] * num_columns)[:num_columns]]
                cells.append([None] * num_columns if has_extra_cells[-1] else padded)
                line_numbers.append(skip + row_start)
                row_start = reader.line_num + 1
        except csv.Error as error:
            raise SchemaError(
                f"{file}: the row that begins in line {skip + row_start} cannot be split into cells ({error}). A cell "
                'that begins with a quote must end with one, and quotes inside it must be doubled (""). Correct the '
                "line."
            ) from None
    return SourceTable(
        file,
        names,
        num_columns,
        pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String), orient="row"),
        pl.Series("source_row", line_numbers, dtype=pl.Int64),
        pl.Series(has_extra_cells, dtype=pl.Boolean),
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
