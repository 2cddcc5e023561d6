"""Read files with one JSON object per line, plain or gzip, as polars columns, block by block.

Only the objects of one block exist in Python at a time. A line that cannot be used keeps its row and the cells that
could be read; its `problem` says why: `invalid_json` or `wrong_type`. Blank lines give no row.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import polars as pl

from macrec_pipeline.data.readers.text_files import BLOCK_BYTES, LineBlock, line_blocks
from macrec_pipeline.runtime.text_sanitizing import one_line_error

Cells = tuple[Any, ...]

# Numbers beyond this are not times, and much larger ones do not fit into a polars column.
_LARGEST = 2**53
_MAX_QUOTED_CHARACTERS = 40
_TYPE_NAMES = {
    dict: "an object",
    list: "a list",
    str: "a text",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


class JsonFields:
    """The fields of one JSON object, each read as an expected type; a missing or null field is None or empty.

    Attributes:
        problem: describes the first field of another type; None if there was none so far.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record
        self.problem: str | None = None

    def identifier(self, name: str) -> str | None:
        """Return an id: a text, or a whole number as text."""
        value = self._record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or (isinstance(value, str) and _is_unicode(value)):
            return value
        self._report(name, value, "valid Unicode" if isinstance(value, str) else "a text")
        return None

    def number(self, name: str) -> float | None:
        """Return a number as float; infinity if it is too large for a float."""
        value = self._record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value) if abs(value) < _LARGEST else math.inf if value > 0 else -math.inf
        if value is None or isinstance(value, float):
            return value
        self._report(name, value, "a number")
        return None

    def whole_number(self, name: str) -> int | None:
        """Return a whole number, clipped to a range that fits well into an int64."""
        value = self._record.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return max(-_LARGEST, min(_LARGEST, value))
        if value is not None:
            self._report(name, value, "a whole number")
        return None

    def texts(self, name: str) -> list[str]:
        """Return a text, or a list of texts, numbers and nulls, as a list of non-blank texts."""
        value = self._record.get(name)
        parts = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(part, dict | list) for part in parts):
            self._report(name, value, "a text or a list of texts")
            return []
        texts = [_as_unicode(str(part)) for part in parts if part is not None]
        return [text for text in texts if text.strip()]

    def objects(self, name: str) -> list[dict[str, Any]]:
        """Return a list of objects."""
        value = self._record.get(name)
        if value is None or value == "":  # some files write an empty list as an empty text
            return []
        if isinstance(value, list) and all(isinstance(part, dict) for part in value):
            return value
        self._report(name, value, "a list of objects")
        return []

    @classmethod
    def parse(cls, line: bytes) -> Self | None:
        """Return the fields of one line; None if it holds no JSON object."""
        try:
            record = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            return None
        return cls(record) if isinstance(record, dict) else None

    def paths(self) -> list[str]:
        """Return the names of all fields, with dots for those of nested objects."""

        def walk(record: dict[str, Any], prefix: str) -> Iterator[str]:
            for name, value in record.items():
                if isinstance(value, dict):
                    yield from walk(value, f"{prefix}{name}.")
                else:
                    yield f"{prefix}{name}"

        return list(walk(self._record, ""))

    def value(self, path: str) -> Any:
        """Return the value of a field by its name or by a path such as `item.id` or `items.0.id`; None without one."""
        if path in self._record:
            return self._record[path]
        value: Any = self._record
        for name in path.split("."):
            if isinstance(value, dict):
                value = value.get(name)
            elif isinstance(value, list) and name.isdecimal():
                value = value[int(name)] if int(name) < len(value) else None
            else:
                return None
        return value

    def single_text(self, path: str, *, is_id: bool = False) -> str | None:
        """Return a text, a number or a truth value as text. In an id, no character may be replaced."""
        value = self.value(path)
        if is_id and isinstance(value, str) and not _is_unicode(value):
            self._report(path, value, "valid Unicode")
            return None
        if isinstance(value, dict | list):
            self._report(path, value, "a single value")
            return None
        return None if value is None else _value_as_text(value)

    def several_texts(self, path: str, separator: str | None) -> list[str] | None:
        """Return the texts of a list, or those of a single text that is split at `separator`."""
        value = self.value(path)
        parts = value if isinstance(value, list) else [value]
        if any(isinstance(part, dict | list) for part in parts):
            self._report(path, value, "a text or a list of texts")
            return None
        texts = [_value_as_text(part) for part in parts if part is not None]
        if not isinstance(value, list) and separator is not None:
            texts = [piece for text in texts for piece in text.split(separator)]
        return texts or None

    def _report(self, name: str, value: Any, expected: str) -> None:
        quoted = json.dumps(value, ensure_ascii=True)[:_MAX_QUOTED_CHARACTERS]
        self.problem = self.problem or f"wrong_type: {name} is {quoted}, expected {expected}"


def json_line_tables(
    path: Path,
    file: str,
    parse: Callable[[JsonFields], Cells],
    schema: dict[str, Any],
    *,
    block_bytes: int = BLOCK_BYTES,
    encoding: str | None = None,
) -> Iterator[pl.DataFrame]:
    """Read a file as one table per block.

    Args:
        path: the file.
        file: its path below the data folder, for error messages and `source_file`.
        parse: returns the cells of one object, in the order of `schema`.
        schema: name -> polars dtype of the cells that `parse` returns.
        block_bytes: number of unpacked bytes to read at once.
        encoding: the encoding of the file; None for UTF-8, in which a line that is no text is a row with a problem.

    Yields:
        The columns of `schema`, then source_file, source_row (the line, from 1) and problem.

    Raises:
        DataError: the file cannot be read to its end.
    """
    full_schema = {**schema, "source_row": pl.Int64, "problem": pl.String}
    empty_cells = (None,) * len(schema)
    for block in line_blocks(path, file, block_bytes=block_bytes, encoding=encoding):
        table = pl.DataFrame(list(_rows(block, parse, empty_cells)), schema=full_schema, orient="row")
        yield table.select(*schema, pl.lit(file).alias("source_file"), "source_row", "problem")


def _rows(block: LineBlock, parse: Callable[[JsonFields], Cells], empty_cells: Cells) -> Iterator[Cells]:
    for number, line in block.lines():
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        # ValueError also covers numbers with more digits than Python converts, and bytes that are not UTF-8.
        except (ValueError, RecursionError) as error:
            yield (*empty_cells, number, f"invalid_json: {one_line_error(error)}")
            continue
        if not isinstance(record, dict):
            type_name = _TYPE_NAMES.get(type(record), "null")
            yield (*empty_cells, number, f"invalid_json: {type_name}, expected an object")
            continue
        fields = JsonFields(record)
        cells = parse(fields)
        yield (*cells, number, fields.problem)


def _value_as_text(value: str | float) -> str:
    """Return a JSON value as text; whole numbers have no `.0`, and truth values are spelled as in JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return _as_unicode(str(value))


def _is_unicode(text: str) -> bool:
    """Return whether the text has no lone surrogate, which JSON can contain but UTF-8 cannot encode."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _as_unicode(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")
