"""Read JSON lines as a table with mapped columns, for the reader `tables`.

A column is the name of a field, or a path with dots to a nested field: `item.id`, or `items.0.item_id` for the first
element of a list. A field whose own name contains the dots takes precedence.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.json_lines import Cells, JsonFields, json_line_tables
from macrec_pipeline.data.readers.text_files import BLOCK_BYTES, SourceTable, line_blocks
from macrec_pipeline.errors import SchemaError

_UTF_8 = "utf-8"
_LINES_TO_CHECK = 1_000
_BYTES_TO_CHECK = 1 << 20


@dataclass(frozen=True)
class JsonTable(SourceTable):
    """Rows of a file of JSON lines; the columns of `cells` have the names of the mapping.

    Attributes:
        row_problems: why a row cannot be used, null for usable rows.
    """

    row_problems: pl.Series | None = None

    def column(self, ref: str | int) -> pl.Series:
        """Return the cells of one mapped column."""
        return self.cells[str(ref)]

    def problems(self) -> pl.Series:
        """Return the `problem` column of the raw tables."""
        return super().problems() if self.row_problems is None else self.row_problems


def json_table_parts(
    path: Path,
    file: str,
    columns: Sequence[str | int],
    lists: Mapping[str | int, str | None],
    *,
    ids: Collection[str | int] = (),
    block_bytes: int = BLOCK_BYTES,
    encoding: str = _UTF_8,
) -> Iterator[JsonTable]:
    """Read a file block by block.

    Args:
        path: the file.
        file: its path below the data folder.
        columns: fields that hold one value; a list or an object is a problem of the row.
        lists: fields that may hold a list, with the text at which a single text is split; None: it is not split.
        ids: those of `columns` that are ids; a text that is not valid Unicode is a problem of the row.
        block_bytes: number of unpacked bytes to read at once.
        encoding: the encoding of the file.

    Raises:
        DataError: the file cannot be read to its end.
        SchemaError: a column is given by position.
    """
    scalars = [_field_name(column, file) for column in dict.fromkeys(columns) if column not in lists]
    separators = {_field_name(column, file): separator for column, separator in lists.items()}
    schema: dict[str, Any] = dict.fromkeys(scalars, pl.String) | dict.fromkeys(separators, pl.List(pl.String))
    parse = partial(_cells, scalars=scalars, separators=separators, ids=frozenset(ids))
    for table in json_line_tables(
        path, file, parse, schema, block_bytes=block_bytes, encoding=_other_encoding(encoding)
    ):
        yield JsonTable(
            file, None, len(schema), table.select(*schema), table["source_row"], row_problems=table["problem"]
        )


def missing_fields(path: Path, file: str, columns: Sequence[str | int], *, encoding: str = _UTF_8) -> list[str]:
    """Return one sentence per mapped field that no line at the beginning of the file has.

    Raises:
        DataError: the file cannot be read.
        SchemaError: a column is given by position, or no line holds a JSON object.
    """
    names = [_field_name(column, file) for column in dict.fromkeys(columns)]
    found: set[str] = set()
    fields: dict[str, None] = {}
    start = b""
    for block in islice(line_blocks(path, file, block_bytes=_BYTES_TO_CHECK, encoding=_other_encoding(encoding)), 1):
        start = block.data[:16].lstrip()
        for _, line in islice(block.lines(), _LINES_TO_CHECK):
            record = JsonFields.parse(line)
            if record is not None:
                fields |= dict.fromkeys(record.paths())
                found |= {name for name in names if record.value(name) is not None}
    if not fields:
        raise SchemaError(
            f"{file}: none of the first {_LINES_TO_CHECK:,} lines holds a JSON object. The format jsonl expects one "
            f"object per line.{_remedy(start)}"
        )
    return [
        f"{file}: none of the first {_LINES_TO_CHECK:,} lines has the field {name!r}. The fields are: "
        f"{', '.join(fields)}."
        for name in names
        if name not in found
    ]


def _other_encoding(encoding: str) -> str | None:
    return None if encoding == _UTF_8 else encoding


def _remedy(start: bytes) -> str:
    """Return what to do with a file that begins with these bytes and has no JSON object in a line."""
    if b"\0" in start:
        return " The file is probably UTF-16. Set `encoding: utf-16`."
    if start.startswith(b"["):
        return " The file is one JSON list: write one object per line, for example by `jq -c '.[]'`."
    if start.startswith(b"{"):
        return " An object over several lines must be written in one line, for example by `jq -c .`."
    return ""


def _cells(
    fields: JsonFields, *, scalars: Sequence[str], separators: Mapping[str, str | None], ids: Collection[str | int]
) -> Cells:
    return (
        *(fields.single_text(name, is_id=name in ids) for name in scalars),
        *(fields.several_texts(name, separator) for name, separator in separators.items()),
    )


def _field_name(column: str | int, file: str) -> str:
    if isinstance(column, int):
        raise SchemaError(
            f"{file}: column {column} is given by position, but JSON lines have no positions. Use the name of a field, "
            "with dots for nested fields, as in item.id."
        )
    return column
