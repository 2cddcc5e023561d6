"""Read the cells of one table column by column, and count what could not be read.

`ColumnReader` is made once per table. It turns the cells of each part into ids, texts, numbers or times, and counts per
column how many cells are filled, unreadable, or a word for a missing value. A filled column of which no cell can be
read stops the run; a partly unreadable one is reported.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from macrec_pipeline.data.readers.column_parsing import (
    has_inexact_ids,
    has_whole_decimal_ids,
    id_cells,
    number_cells,
    time_cells,
    without_null_words,
)
from macrec_pipeline.data.readers.text_files import SourceTable
from macrec_pipeline.datasets import TimestampUnit
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.runtime.text_sanitizing import shown_cell

_log = logging.getLogger(__name__)
_NUM_EXAMPLES = 3
_MAX_CHARACTERS = 40
_QUOTED = r"""^\s*(?:'.*'|".*")\s*$"""
_ACCEPTED_TIMES = {
    "iso": "Accepted are texts such as 2018-01-31, 2018-01-31 10:00:00 UTC and 2018-01-31T10:00:00+02:00. For others, "
    "set `timestamp_format`, such as %Y%m%d or %d.%m.%Y %H:%M; for numbers, set `timestamp_unit` to s, ms or us.",
    "s": "Accepted are numbers of seconds since 1970. For dates, set `timestamp_unit: iso` or a `timestamp_format`.",
    "ms": "Accepted are numbers of milliseconds since 1970. For dates, set `timestamp_unit: iso` or a "
    "`timestamp_format`.",
    "us": "Accepted are numbers of microseconds since 1970. For dates, set `timestamp_unit: iso` or a "
    "`timestamp_format`.",
}


@dataclass
class _Counts:
    what: str
    accepted: str
    num_filled: int = 0
    num_unreadable: int = 0
    num_null_words: int = 0
    num_quoted: int = 0
    examples: list[str] = field(default_factory=list)
    drops_zero_fraction: dict[str, bool] = field(default_factory=dict)
    has_inexact_ids: bool = False


@dataclass(frozen=True)
class LostCells:
    """Cells of one column that a reading turned into missing values.

    Attributes:
        file: the file, folder or pattern of the table, below the data folder.
        column: the name or position of the column.
        reason: `unreadable`, or `null_word` for a word that stands for a missing value.
        num_cells: the number of such cells.
        num_filled: the filled cells of the column; None where they were not counted.
    """

    file: str
    column: str
    reason: str
    num_cells: int
    num_filled: int | None


@dataclass
class ColumnReader:
    """Reads the columns of one table and counts its cells. `check` must be called after the last part."""

    file: str
    null_words: Sequence[str]
    _counts: dict[str | int, _Counts] = field(default_factory=dict)

    def cells(self, part: SourceTable, ref: str | int) -> pl.Series:
        """Return the cells of a column as they are in the file, with null for words that stand for a missing value."""
        column = part.column(ref)
        found = without_null_words(column, self.null_words)
        self._of(ref, "text", "").num_null_words += found.null_count() - column.null_count()
        return found

    def ids(self, part: SourceTable, ref: str | int) -> pl.Series:
        """Return ids. If all ids of a file's first part are like `18.0`, all ids of that file lose the fraction."""
        column = self.cells(part, ref)
        counts = self._of(ref, "text", "")
        if part.file not in counts.drops_zero_fraction and column.null_count() < len(column):
            counts.drops_zero_fraction[part.file] = has_whole_decimal_ids(column)
        counts.has_inexact_ids |= has_inexact_ids(column)
        return id_cells(column, drop_zero_fraction=counts.drops_zero_fraction.get(part.file, False))

    def numbers(self, part: SourceTable, ref: str | int, *, decimal: str) -> pl.Series:
        """Return numbers; unreadable cells are null and counted."""
        column = self.cells(part, ref)
        other = '4,5, set `decimal: ","`' if decimal == "." else "4.5, remove `decimal`"
        accepted = f"Accepted are numbers such as {'4.5' if decimal == '.' else '4,5'}. For numbers such as {other}."
        return self._counted(part, ref, column, number_cells(column, decimal=decimal), "number", accepted)

    def times(self, part: SourceTable, ref: str | int, unit: TimestampUnit, time_format: str | None) -> pl.Series:
        """Return times as int64 milliseconds since the epoch; unreadable cells are null and counted."""
        column = self.cells(part, ref)
        accepted = _ACCEPTED_TIMES[unit] if time_format is None else f"Accepted is the format {time_format}."
        return self._counted(part, ref, column, time_cells(column, unit, time_format=time_format), "time", accepted)

    def check(self) -> list[LostCells]:
        """Log what could not be read, and return it per column. Raises `SchemaError` as `require_readable` does."""
        self.require_readable()
        for note in self.notes():
            _log.warning("%s", note)
        return self.lost()

    def require_readable(self) -> None:
        """Raise `SchemaError` if a filled column is unreadable in every row that was read."""
        for ref, counts in self._counts.items():
            if counts.num_filled and counts.num_unreadable == counts.num_filled:
                raise SchemaError(self._unreadable(ref, counts))

    def lost(self) -> list[LostCells]:
        """Return what became missing, per column: unreadable cells first, then words for a missing value."""
        lost = []
        for ref, counts in self._counts.items():
            if counts.num_unreadable:
                lost.append(LostCells(self.file, str(ref), "unreadable", counts.num_unreadable, counts.num_filled))
            if counts.num_null_words:
                lost.append(LostCells(self.file, str(ref), "null_word", counts.num_null_words, None))
        return lost

    def notes(self) -> list[str]:
        """Return one sentence per column with unreadable cells, words for a missing value, or ids like `18.0`."""
        notes = []
        for ref, counts in self._counts.items():
            if counts.num_unreadable:
                notes.append(self._unreadable(ref, counts))
            if counts.num_null_words:
                notes.append(f"{self.file}, column {ref!r}: {counts.num_null_words:,} cells are `null_words`: missing.")
            if any(counts.drops_zero_fraction.values()):
                notes.append(f"{self.file}, column {ref!r}: ids such as 18.0 are read as 18.")
            if counts.has_inexact_ids:
                notes.append(
                    f"{self.file}, column {ref!r}: some ids are fractional numbers too large to be exact (2^53 and "
                    "more; 2^24 for 32 bits), so different ids may have become one. Export the ids as whole numbers "
                    "or as text."
                )
        return notes

    def _counted(
        self, part: SourceTable, ref: str | int, column: pl.Series, found: pl.Series, what: str, accepted: str
    ) -> pl.Series:
        is_filled = column.is_not_null()
        if column.dtype == pl.String:
            is_filled = is_filled & (column.str.strip_chars() != "").fill_null(False)
        counts = self._of(ref, what, accepted)
        counts.num_filled += int(is_filled.sum())
        is_unreadable = is_filled & found.is_null()
        counts.num_unreadable += int(is_unreadable.sum())
        if column.dtype == pl.String and is_unreadable.any():
            counts.num_quoted += int(column.filter(is_unreadable).str.contains(_QUOTED).sum())
        if len(counts.examples) < _NUM_EXAMPLES and is_unreadable.any():
            lines, cells = part.line_numbers.filter(is_unreadable), column.filter(is_unreadable)
            place = "" if part.file == self.file else f" of {part.file}"
            counts.examples.extend(
                f"{shown_cell(cell, _MAX_CHARACTERS)!r} in row {line}{place}"
                for line, cell in zip(lines.head(_NUM_EXAMPLES), cells.head(_NUM_EXAMPLES), strict=True)
            )
        return found

    def _of(self, ref: str | int, what: str, accepted: str) -> _Counts:
        counts = self._counts.setdefault(ref, _Counts(what, accepted))
        if what != "text":
            counts.what, counts.accepted = what, accepted
        return counts

    def _unreadable(self, ref: str | int, counts: _Counts) -> str:
        examples = ", ".join(counts.examples[:_NUM_EXAMPLES])
        if counts.num_unreadable == counts.num_quoted:
            accepted = f"The cells are in quotes: set `quote` to their sign. {counts.accepted}"
        else:
            accepted = counts.accepted
        return (
            f"{self.file}, column {ref!r}: {counts.num_unreadable:,} of {counts.num_filled:,} filled cells cannot be "
            f"read as a {counts.what}: {examples}. {accepted}"
        )
