"""Split the text of a CSV or TSV file into rows, and stop wherever it is uncertain what a row is.

Lenient parsers take everything between two odd quotes for one cell, and rows vanish in it. Here a quote that opens a
cell must close it, and nothing but a separator or the end of the line may follow. That alone does not decide every
file: in a file without quoting, `"Fresh start` in one line and `Screen 24"` in the next enclose a line break like a
quoted cell. If a row is as good a table when its quotes are ordinary text, and nothing else in the file says that cells
are quoted, the row is an error that asks for the setting `quote`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from macrec_pipeline.data.readers.quoted_rows import PlainRows, plain_lines, plain_quoted_rows
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.runtime.secret_addresses import without_secrets

OVERFLOW = "overflow"
"""The column that holds the first cell beyond the columns of the file."""

_UNIT_SEPARATOR = b"\x1f"  # polars splits at a single byte only; this one stands for a longer separator
_LONGEST_ROW = 64 << 20
_LONGEST_SHOWN = 4096
_SEARCHED_BYTES = 1 << 20  # searched at once for rows beyond doubt, after the first one in doubt
_WINDOW_BYTES = 1 << 14  # split row by row where one is in doubt, before the next rows are tried at once
_LONE_CARRIAGE_RETURN = re.compile(rb"\r(?!\n)")
_LINE_BREAK = ord("\n")


@dataclass(frozen=True)
class Quoting:
    """How the cells of a text file are quoted.

    Attributes:
        quote: the character around cells that contain separators or line breaks; None if quotes are ordinary text.
        escape: the character that makes the next quote, separator, line break or escape ordinary text; None for none.
        is_declared: whether the data set says how cells are quoted. If not, ambiguous rows are an error.
    """

    quote: str | None = '"'
    escape: str | None = None
    is_declared: bool = False


DOUBLE_QUOTES = Quoting()
"""Cells are in double quotes where that is beyond doubt."""


@dataclass(frozen=True)
class Row:
    """One row of a text file: its first line (from 1), how many lines it spans, its cells, and whether one is quoted.

    `end` is the position after the row in the text that was split.
    """

    line_number: int
    num_lines: int
    cells: list[str]
    has_quoted_cell: bool
    end: int


@dataclass(frozen=True)
class SplitRows:
    """The rows at the beginning of a text.

    Attributes:
        parts: the cells of consecutive rows, in the columns of `read_lines`, with the int64 line that each row begins
            on, from 1.
        num_bytes: how many bytes of the text the rows take.
        next_line: the number of the line after the last row.
    """

    parts: list[tuple[pl.DataFrame, pl.Series]]
    num_bytes: int
    next_line: int


class RowSplitter:
    """Splits the text of one file into rows. `check_ambiguous` must be called after the last row."""

    def __init__(self, file: str, separator: str, quoting: Quoting) -> None:
        self._file, self._separator, self._quoting = file, separator, quoting
        self._is_quoting_certain = quoting.is_declared or quoting.quote is None
        self._ambiguous_lines: tuple[int, int] | None = None
        quote, escape = (None if text is None else re.escape(text) for text in (quoting.quote, quoting.escape))
        self._escape_pattern = None if escape is None else re.compile(f"{escape}(.)", re.DOTALL)
        delimiter = re.escape(separator)
        escaped = "" if escape is None else f"|{escape}."
        ordinary = f"[^{delimiter}\n{escape or ''}]++" if len(separator) == 1 else f"(?!{delimiter})[^\n{escape or ''}]"
        self._unquoted = re.compile(f"(?:{ordinary}{escaped})*+", re.DOTALL)
        self._quoted = re.compile(
            f"{quote}((?:[^{quote}{escape or ''}]++|{quote}{quote}{escaped})*+){quote}", re.DOTALL
        )

    def first_row(self, text: str, *, is_end: bool) -> Row | None:
        """Return the first row; None if it is not complete. Quotes around a column's name prove that quotes count."""
        row = next(self._rows(text, 1, is_end=is_end), None)
        if row is not None and row.has_quoted_cell and len(row.cells) > 1:
            self._is_quoting_certain = True
        return row

    def split(self, data: bytes, first_line: int, num_columns: int, *, is_end: bool) -> SplitRows:
        """Split the complete rows at the beginning of `data`, which consists of whole lines.

        Rows beyond doubt are split at once. Where a row is in doubt, for example because of a quote inside a cell, rows
        are split one by one until they are beyond doubt again.
        """
        parts: list[tuple[pl.DataFrame, pl.Series]] = []
        position, line, window, searched = 0, first_line, _WINDOW_BYTES, len(data)
        while position < len(data):
            searched_end = _end_of_line(data, position + searched)
            plain = self._plain_rows(data[position:searched_end])
            # Short runs of such rows are not worth a call of the parser.
            is_run = plain.num_bytes >= min(window, len(data) - position)
            plain_data = data[position : position + plain.num_bytes]
            rows = self._split_at_once(plain_data, plain, num_columns) if is_run else None
            if rows is not None:
                parts.append((rows, _row_lines(plain, line)))
                position, line = position + plain.num_bytes, line + plain.num_lines
                window, searched = max(_WINDOW_BYTES, window // 2), _SEARCHED_BYTES
                continue
            stop = _end_of_line(data, position + window)
            text, was_certain = data[position:stop].decode(), self._is_quoting_certain
            found = self._split_row_by_row(text, line, num_columns, is_end=is_end and stop == len(data))
            window *= 2
            searched = _SEARCHED_BYTES if was_certain == self._is_quoting_certain else len(data)
            if found:
                parts.append(_frame_of_rows(found, num_columns))
                position += len(text[: found[-1].end].encode())
                line = found[-1].line_number + found[-1].num_lines
            elif stop == len(data):
                break
        return SplitRows(parts, position, line)

    def _plain_rows(self, data: bytes) -> PlainRows:
        """Return the whole rows at the beginning of `data` that are rows beyond doubt."""
        quote, separator, escape = (self._quoting.quote or "").encode(), self._separator.encode(), self._quoting.escape
        end = len(data)
        if escape is not None and (found := data.find(escape.encode())) >= 0:
            end = data.rfind(b"\n", 0, found) + 1
        if quote and (len(quote) > 1 or len(separator) > 1) and (found := data.find(quote, 0, end)) >= 0:
            end = data.rfind(b"\n", 0, found) + 1
        if quote and data.find(quote, 0, end) >= 0:
            return plain_quoted_rows(data[:end], quote[0], separator[0], allow_breaks=self._is_quoting_certain)
        # polars leaves out some of the carriage returns inside of lines.
        if data.find(b"\r", 0, end) >= 0 and (lone := _LONE_CARRIAGE_RETURN.search(data, 0, end)) is not None:
            end = data.rfind(b"\n", 0, lone.start()) + 1
        return plain_lines(data[:end])

    def _split_at_once(self, data: bytes, plain: PlainRows, num_columns: int) -> pl.DataFrame | None:
        """Split rows beyond doubt at once; return None if the parser finds others, or if quotes may be ordinary."""
        quote, separator = self._quoting.quote, self._separator.encode()
        is_quoted = quote is not None and quote.encode() in data
        if len(separator) > 1:
            if _UNIT_SEPARATOR in data:
                return None
            data, separator = data.replace(separator, _UNIT_SEPARATOR), _UNIT_SEPARATOR
        rows = read_lines(data, num_columns, separator.decode(), quote=quote if is_quoted else None)
        if rows.height != plain.num_rows:
            return None
        if is_quoted and not self._is_quoting_certain and rows[str(num_columns - 1)].null_count() > 0:
            # The quotes of a row that is too short may be ordinary text.
            return None if self._may_be_unquoted(data, num_columns) else rows
        return rows

    def _may_be_unquoted(self, data: bytes, num_columns: int) -> bool:
        """Return whether a line has a separator in a quoted cell, and is a full row if quotes are ordinary text."""
        text = np.frombuffer(data, dtype=np.uint8)
        quote, separator = ord(self._quoting.quote or "\0"), self._separator.encode()[0]
        found = text[(text == quote) | (text == _LINE_BREAK) | (text == separator)]
        is_quote, is_break = found == quote, found == _LINE_BREAK
        is_inside = np.cumsum(is_quote) % 2 == 1
        is_separator = ~is_quote & ~is_break
        line_of = np.cumsum(is_break)[is_separator]
        inside = np.bincount(line_of[is_inside[is_separator]], minlength=1)
        separators = np.bincount(line_of, minlength=len(inside))[: len(inside)]
        return bool(((inside > 0) & (separators == num_columns - 1)).any())

    def _split_row_by_row(self, text: str, first_line: int, num_columns: int, *, is_end: bool) -> list[Row]:
        """Return the complete rows of a text; what follows the end of the last one belongs to the next text."""
        rows = list(self._rows(text, first_line, is_end=is_end))
        if self._is_quoting_certain:
            return rows
        start = 0
        for row in rows:
            if row.has_quoted_cell:
                lines = [line.count(self._separator) + 1 for line in text[start : row.end].rstrip("\r\n").split("\n")]
                self._weigh(row, lines, num_columns)
            start = row.end
        return rows

    def check_ambiguous(self) -> None:
        """Raise `SchemaError` if rows can be read in two ways and nothing in the file says which is right."""
        if self._ambiguous_lines is None or self._is_quoting_certain:
            return
        first, last = self._ambiguous_lines
        where = f"line {first}" if first == last else f"lines {first} to {last}"
        plain = "a row" if first == last else f"{last - first + 1} rows"
        raise SchemaError(
            f"{self._file}: {where} can be read in two ways: as one row with a quoted cell, or as {plain} in which "
            "quotes are ordinary text. Set `quote: none` if quotes are ordinary text in this file, or "
            f"`quote: '{self._quoting.quote}'` if they enclose cells."
        )

    def _weigh(self, row: Row, cells_per_line: list[int], num_columns: int) -> None:
        """Note whether a row with a quoted cell is as good a table without quoting, or can only be a quoted one."""
        fits = [number == num_columns for number in cells_per_line]
        fits_unquoted = fits[0] and fits[-1] and 2 * sum(fits) > len(fits)
        is_same_row = row.num_lines == 1 and len(row.cells) == num_columns
        if fits_unquoted and not is_same_row:
            self._ambiguous_lines = self._ambiguous_lines or (row.line_number, row.line_number + row.num_lines - 1)
        elif row.num_lines > 1 and len(row.cells) == num_columns and not fits_unquoted:
            self._is_quoting_certain = True

    def _rows(self, text: str, line: int, *, is_end: bool) -> Iterator[Row]:
        position, separator = 0, self._separator
        while position < len(text):
            start, cells, has_quoted_cell = position, [], False
            while True:
                quote = self._quoting.quote
                if quote is not None and text.startswith(quote, position):
                    match = self._quoted.match(text, position)
                    if match is None:
                        if is_end or len(text) - start > _LONGEST_ROW:
                            raise self._unsplittable(line, text[start:], "a quote never closes")
                        return
                    cell, has_quoted_cell = self._unescape(match[1].replace(quote * 2, quote)), True
                    position = match.end()
                    position += text[position : position + 1] == "\r" and text[position + 1 : position + 2] in (
                        "\n",
                        "",
                    )
                    if position < len(text) and text[position] != "\n" and not text.startswith(separator, position):
                        raise self._unsplittable(line, text[start:], "text follows a closing quote")
                else:
                    match = self._unquoted.match(text, position)
                    assert match is not None
                    cell, position = match[0], match.end()
                    if not text.startswith(separator, position):
                        cell = cell.removesuffix("\r")
                    cell = self._unescape(cell)
                cells.append(cell)
                if not text.startswith(separator, position):
                    break
                position += len(separator)
            if position == len(text) and not is_end:
                return
            num_lines = text.count("\n", start, position) + 1
            position += 1
            yield Row(line, num_lines, cells, has_quoted_cell, min(position, len(text)))
            line += num_lines

    def _unescape(self, cell: str) -> str:
        """Remove the escape before what it makes ordinary. Before other characters, as in `\\N`, it stays."""
        if self._escape_pattern is None:
            return cell
        ordinary = (self._quoting.quote, self._quoting.escape, self._separator[0], "\n", "\r")
        return self._escape_pattern.sub(lambda match: match[1] if match[1] in ordinary else match[0], cell)

    def _unsplittable(self, line: int, text: str, problem: str) -> SchemaError:
        shown = repr(without_secrets(text[:_LONGEST_SHOWN].partition("\n")[0])[:80])
        remedy = (
            "Set `escape: '\\'`, because this line has a quote after a backslash."
            if self._quoting.escape is None and "\\" + (self._quoting.quote or "") in text[:10_000]
            else "Correct the line, or set `quote: none` if quotes are ordinary text in this file."
        )
        return SchemaError(
            f"{self._file}: the row that begins in line {line} cannot be split into cells, because {problem}: {shown}. "
            'A cell that begins with a quote must end with one, and quotes inside it must be doubled ("") or escaped. '
            f"{remedy}"
        )


def read_lines(data: bytes, num_columns: int, separator: str, *, quote: str | None = None) -> pl.DataFrame:
    """Split lines into the string columns "0", "1", ... and `OVERFLOW`; missing and empty cells are null."""
    schema = dict.fromkeys([*map(str, range(num_columns)), OVERFLOW], pl.String)
    if not data:
        return pl.DataFrame(schema=schema)
    return pl.read_csv(
        data,
        has_header=False,
        schema=schema,
        separator=separator,
        quote_char=quote,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        missing_columns="insert",
        extra_columns="ignore",
    )


def _frame_of_rows(rows: list[Row], num_columns: int) -> tuple[pl.DataFrame, pl.Series]:
    """Return rows in the columns of `read_lines`, and the line that each begins on."""
    width = num_columns + 1
    padded = [[*row.cells[:width], *[None] * (width - len(row.cells))] for row in rows]
    schema = dict.fromkeys([*map(str, range(num_columns)), OVERFLOW], pl.String)
    frame = pl.DataFrame(padded, schema=schema, orient="row")
    frame = frame.with_columns(pl.when(pl.col(OVERFLOW) != "").then(pl.col(OVERFLOW)).alias(OVERFLOW))
    return frame, pl.Series("source_row", [row.line_number for row in rows], dtype=pl.Int64)


def _row_lines(rows: PlainRows, first_line: int) -> pl.Series:
    """Return the line that each row begins on: int64."""
    if rows.lines is not None:
        return pl.Series("source_row", rows.lines + first_line)
    return pl.int_range(first_line, first_line + rows.num_rows, dtype=pl.Int64, eager=True).alias("source_row")


def _end_of_line(data: bytes, position: int) -> int:
    """Return the position after the line that `position` is in, or the end."""
    return data.find(b"\n", position) + 1 or len(data)
