"""Find, unpack and split text files below the data folder: CSV, TSV and files with one record per line.

Reading stays bounded: `line_blocks` unpacks one block of whole lines at a time, and `read_delimited_parts` turns each
block into columns before the next block is read. gzip and zstd files are recognised by their content, whatever their
name.

Nothing is guessed from the values. Cells stay strings, and every row keeps the number of the line it begins on, so that
quarantine can name that line. A row with too few cells ends in nulls. A row with too many non-empty cells becomes a row
of nulls, because its columns can no longer be told apart. A file that cannot be split into rows with certainty is an
error that names the line: a quote never closes, or reading its quotes as text gives as good a table. Bytes that are not
text in the encoding of the file are an error too.
"""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import IO, cast

import polars as pl
import pyarrow as pa

from macrec_pipeline.data.readers.quoted_rows import count_breaks
from macrec_pipeline.data.readers.row_splitting import DOUBLE_QUOTES, OVERFLOW, Quoting, RowSplitter, read_lines
from macrec_pipeline.errors import DataError, MissingFileError, SchemaError
from macrec_pipeline.runtime.secret_addresses import without_secrets
from macrec_pipeline.runtime.text_sanitizing import one_line

BLOCK_BYTES = 16 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = re.compile(rb"[\x50-\x5f]\x2a\x4d\x18")  # pzstd and others begin a file with such a frame
_REFUSED_FORMATS = (
    (b"PK\x03\x04", "a zip archive or an Excel workbook (.xlsx)", "Unpack the archive, or export the sheet as CSV"),
    (b"PK\x05\x06", "an empty zip archive", "Export the file again"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "Export the sheet as CSV"),
    (
        tuple(b"BZh%d1AY&SY" % level for level in range(1, 10)),
        "packed with bzip2",
        "Unpack it with bunzip2, or pack it with gzip or zstd instead",
    ),
    (b"\xfd7zXZ\x00", "packed with xz", "Unpack it with unxz, or pack it with gzip or zstd instead"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it, or pack the file with gzip or zstd instead"),
    (b"\x04\x22\x4d\x18", "packed with lz4", "Unpack it with unlz4, or pack it with gzip or zstd instead"),
    (b"PAR1", "a parquet file", "Set `format: parquet`"),
    (b"%PDF", "a PDF document", "Export the table as CSV"),
)
"""First bytes of a file that is not text, what it is, and what to do."""
_EXCEL_SEPARATOR = re.compile(r"sep=(.{1,8}?)\r?\n")
_JSON_LINE = re.compile(r'\s*(?:\{\s*"|\[\s*[{\[])')
_MAX_SHOWN = 60
_MAX_SEARCHED = 4096
_HEADER_BYTES = 1 << 16
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

    def head(self, num_rows: int) -> "SourceTable":
        """Return the first rows."""
        extra = None if self.has_extra_cells is None else self.has_extra_cells.head(num_rows)
        return replace(
            self, cells=self.cells.head(num_rows), line_numbers=self.line_numbers.head(num_rows), has_extra_cells=extra
        )

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
    """Open a plain, gzip or zstd file for reading its unpacked bytes.

    Raises:
        SchemaError: the file is of a format that is not read, such as zip; says which.
        DataError: the file cannot be opened, read or unpacked; also raised for errors while the caller reads.
    """
    try:
        with path.open("rb") as raw:
            start = raw.read(16)
        for magic, what, remedy in _REFUSED_FORMATS:
            if start.startswith(magic):
                raise SchemaError(
                    f"{path.name} is {what}, expected a text file, plain or packed with gzip or zstd. {remedy}."
                )
        if start.startswith(_ZSTD_MAGIC) or _ZSTD_SKIPPABLE.match(start):
            with pa.input_stream(str(path), compression="zstd") as packed:
                yield cast(IO[bytes], packed)
            return
        with gzip.open(path, "rb") if start.startswith(_GZIP_MAGIC) else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Copy it again, or check its permissions.") from None


def line_blocks(
    path: Path, file: str, *, block_bytes: int = BLOCK_BYTES, encoding: str | None = None
) -> Iterator[LineBlock]:
    """Read a file block by block, without the byte order mark at its beginning.

    Args:
        path: the file, plain, gzip or zstd, whatever its name says.
        file: its path below the data folder, for error messages.
        block_bytes: number of unpacked bytes to read at once.
        encoding: the encoding of the file. The blocks are then UTF-8. None leaves the bytes as they are, unchecked.

    Raises:
        DataError: the file cannot be read to its end, for example because a download was cut off; names the last
            readable line.
        SchemaError: the file is not a text file: a line is longer than any sensible record, or has bytes that are not
            text in the encoding.
    """
    line_number, rest = 1, b""
    decoder = None if encoding is None else _Decoder(file, encoding)
    try:
        with open_unpacked(path) as stream:
            start = stream.read(len(_BYTE_ORDER_MARK)).removeprefix(_BYTE_ORDER_MARK)
            if encoding is None and start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise SchemaError(
                    f"{file} is UTF-16 text, expected UTF-8. Save it as UTF-8, or set `encoding: utf-16` if its reader "
                    "is tables."
                )
            while chunk := start + stream.read(block_bytes):
                start = b""
                if decoder is not None:
                    chunk = decoder.as_utf8(chunk, line=line_number)
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
                line_number += count_breaks(block.data)
                yield block
    except SchemaError:
        raise
    except DataError as error:
        raise DataError(
            f"{error} The file is readable up to line {line_number - 1}, but a partial file is not used."
        ) from None
    if decoder is not None:
        rest += decoder.as_utf8(b"", line=line_number, final=True)
    if rest:
        yield LineBlock(line_number, rest)


class _Decoder:
    """Turns the bytes of a file into UTF-8, chunk by chunk. Raises `SchemaError` at bytes that are not text."""

    def __init__(self, file: str, encoding: str) -> None:
        self._file, self._encoding = file, encoding
        self._decoder = codecs.getincrementaldecoder(encoding)(errors="strict")
        self._is_utf8 = codecs.lookup(encoding).name == "utf-8"
        self._is_start = True

    def as_utf8(self, chunk: bytes, *, line: int, final: bool = False) -> bytes:
        """Return a chunk as UTF-8. `line` is the number of the line that it begins in."""
        if self._is_utf8 and chunk.isascii() and b"\0" not in chunk and not self._decoder.getstate()[0]:
            self._is_start = self._is_start and not chunk
            return chunk
        try:
            text = self._decoder.decode(chunk, final)
        except UnicodeDecodeError as error:
            line += error.object.count(b"\n", 0, error.start)
            raise _not_text(
                self._file, line, self._encoding, _line_around(error.object, error.start, self._encoding)
            ) from None
        if "\0" in text:
            line += text.count("\n", 0, text.index("\0"))
            raise SchemaError(
                f"{self._file}: line {line} contains null bytes, so the file is not text in the encoding "
                f"{self._encoding}. If another program shows it as text, it is probably UTF-16: set `encoding: utf-16`."
            )
        if self._is_start and text:
            text, self._is_start = text.removeprefix("\ufeff"), False
        return text.encode()


def _line_around(data: bytes, position: int, encoding: str) -> bytes:
    """Return the part of a line around one of its bytes, short enough to show and without secrets of addresses."""
    start = max(data.rfind(b"\n", 0, position) + 1, position - _MAX_SEARCHED)
    line = data[start:position] + data[position : position + _MAX_SEARCHED].partition(b"\n")[0]
    position -= start
    text = line.decode("utf-8", errors="surrogateescape")
    if (shown := without_secrets(text)) != text:
        line = shown.encode("utf-8", errors="surrogateescape")
        try:
            line.decode(encoding)
        except UnicodeDecodeError as error:
            position = error.start
        position = min(position, len(line))
    return line[max(0, position - _MAX_SHOWN) : position + _MAX_SHOWN]


def _not_text(file: str, line: int, encoding: str, data: bytes) -> SchemaError:
    """Describe bytes that are not text in the encoding, and the encoding that they are likely in."""
    found = f"{file}: line {line} has bytes that are not text in the encoding {encoding}: {data!r}."
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return SchemaError(f"{found} The file is probably UTF-16. Set `encoding: utf-16`.")
    try:
        data.decode("utf-8")
        likely = "utf-8"
    except UnicodeDecodeError:
        num_high, num_letters = sum(byte > 127 for byte in data), sum(bytes([byte]).isalpha() for byte in data)
        if num_high > num_letters:
            return SchemaError(
                f"{found} Set `encoding` to that of the program that wrote the file, for example cp1251, gb18030 or "
                "shift_jis."
            )
        likely = "cp1252"
    shown = one_line(data.decode(likely, errors="replace")).strip()
    return SchemaError(f"{found} The file is probably {likely}, in which it reads {shown!r}. Set `encoding: {likely}`.")


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
    hint = " If that is several columns, set `separator` to the text between them." if num_columns == 1 else ""
    raise SchemaError(f"{file} has no column {ref!r}. Its columns are: {', '.join(names) or 'none'}.{hint}")


def read_header(
    path: Path,
    file: str,
    *,
    separator: str,
    header: bool,
    quoting: Quoting = DOUBLE_QUOTES,
    encoding: str = "utf-8",
) -> tuple[tuple[str, ...] | None, int, int]:
    """Read the first row of a delimited file.

    Returns:
        The column names (None without header), the number of columns and the number of lines of the header.

    Raises:
        SchemaError: the file is empty, or its first row cannot be split into cells.
    """
    splitter, text, row = RowSplitter(file, separator, quoting), "", None
    for block in line_blocks(path, file, block_bytes=_HEADER_BYTES, encoding=encoding):
        text += block.data.decode()
        if _JSON_LINE.match(text):
            raise SchemaError(
                f"{file}: the first line looks like JSON: {one_line(text.partition(chr(10))[0])[:_MAX_SHOWN]!r}. If "
                "each line is a JSON object, set `format: jsonl`. A file that is one JSON list must first be written "
                "with one object per line, for example by `jq -c '.[]'`."
            )
        row = splitter.first_row(text, is_end=False)
        if row is not None:
            break
    row = row or splitter.first_row(text, is_end=True)
    if row is None or row.cells == [""]:
        problem = "the first row is empty" if text else "the file is empty"
        raise SchemaError(
            f"{file}: {problem}, so the number of columns is unknown. Remove the empty line, or export the file again."
        )
    if header and (found := _EXCEL_SEPARATOR.match(text)):
        raise SchemaError(
            f"{file}: the first line is {found[0].strip()!r}, a note for Excel. Remove this line, and set "
            f"`separator: {found[1]!r}`."
        )
    if any("\r" in cell for cell in row.cells) and not row.has_quoted_cell:
        raise SchemaError(
            f"{file}: the first line contains carriage returns, so its lines probably end as on old Macs. Save the "
            "file with the line endings of Unix or Windows."
        )
    if not header:
        return None, len(row.cells), 0
    return tuple(name.strip() for name in row.cells), len(row.cells), row.num_lines


def read_delimited(
    path: Path,
    file: str,
    *,
    separator: str,
    header: bool,
    quoting: Quoting = DOUBLE_QUOTES,
    encoding: str = "utf-8",
) -> SourceTable:
    """Read a whole CSV or TSV file. Arguments and errors as in `read_delimited_parts`."""
    parts = list(
        read_delimited_parts(path, file, separator=separator, header=header, quoting=quoting, encoding=encoding)
    )
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
    path: Path,
    file: str,
    *,
    separator: str,
    header: bool,
    quoting: Quoting = DOUBLE_QUOTES,
    encoding: str = "utf-8",
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[SourceTable]:
    """Read a CSV or TSV file part by part; yields at least one part.

    Args:
        path: the file, plain, gzip or zstd.
        file: its path below the data folder, for error messages and `source_file`.
        separator: the text between cells.
        header: whether the first row holds the column names.
        quoting: how cells are quoted.
        encoding: the encoding of the file.
        block_bytes: unpacked bytes per part.

    Raises:
        DataError: the file cannot be read to its end.
        SchemaError: the file is empty, its bytes are not text, or its rows cannot be told apart; names the line.
    """
    names, num_columns, _ = read_header(
        path, file, separator=separator, header=header, quoting=quoting, encoding=encoding
    )
    splitter = RowSplitter(file, separator, quoting)
    skips_header, num_parts, rest, line = header, 0, b"", 1
    for block in chain(line_blocks(path, file, block_bytes=block_bytes, encoding=encoding), [None]):
        is_end = block is None
        if block is not None:
            line = line if rest else block.first_line
            data = rest + block.data
        else:
            data = rest
        rest = b""
        if skips_header and data:
            row = splitter.first_row(data.decode(), is_end=is_end)
            if row is None:
                rest = data
                continue
            skips_header, line = False, line + row.num_lines
            data = data[len(data.decode()[: row.end].encode()) :]
        if not data:
            continue
        split = splitter.split(data, line, num_columns, is_end=is_end)
        rest, line = data[split.num_bytes :], split.next_line
        if not split.parts:
            continue
        frames, line_numbers = zip(*split.parts, strict=True)
        yield _source_table(file, names, pl.concat(frames, rechunk=False), pl.concat(line_numbers, rechunk=False))
        num_parts += 1
    splitter.check_ambiguous()
    if not num_parts:
        no_rows = read_lines(b"", num_columns, ",")
        yield _source_table(file, names, no_rows, pl.Series("source_row", [], dtype=pl.Int64))


def split_cells(data: bytes, num_columns: int, separator: str) -> pl.DataFrame:
    """Split whole lines without quotes into the string columns "0", "1", ... and `OVERFLOW`.

    Every line becomes a row, including blank lines. Missing and empty cells are null; invalid UTF-8 becomes U+FFFD, and
    the caller must report the rows of `invalid_lines`.
    """
    return read_lines(data, num_columns, separator)


def invalid_lines(block: LineBlock) -> list[int]:
    """Return the positions, from 0, of the lines of a block that are not UTF-8."""
    try:
        block.data.decode()
    except UnicodeDecodeError:
        return [number - block.first_line for number, line in block.lines() if not _is_utf8(line)]
    return []


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _source_table(file: str, names: tuple[str, ...] | None, rows: pl.DataFrame, line_numbers: pl.Series) -> SourceTable:
    cells, num_columns = rows.drop(OVERFLOW), rows.width - 1
    has_extra_cells = rows[OVERFLOW].is_not_null()
    if not has_extra_cells.any():
        return SourceTable(file, names, num_columns, cells, line_numbers)
    # No cell of a row with extra cells is trusted: its columns cannot be told apart.
    trusted = cells.select(pl.when(~has_extra_cells).then(pl.all()))
    return SourceTable(file, names, num_columns, trusted, line_numbers, has_extra_cells)
