"""Files with one JSON object a line, plain or gzip -> polars columns, block by block.

Only the objects of one block exist in Python at a time. A line that cannot be used keeps its row, with the cells that
could be read, and says why in `problem`: `invalid_json` or `wrong_type`. Blank lines are no rows.
"""

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.line_blocks import BLOCK_BYTES, LineBlock, line_blocks

Cells = tuple[Any, ...]

# Numbers beyond this are no times; polars could not hold much larger ones.
_LARGEST = 2**53
_SHOWN = 40
_NAMES = {dict: "an object", list: "a list", str: "a text", bool: "true or false", int: "a number", float: "a number"}


class JsonFields:
    """The fields of one JSON object, read as what they should be; a missing or null one is None or empty.

    Attributes:
        problem: the first field that held something else, None as long as there was none.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self._record = record
        self.problem: str | None = None

    def identifier(self, name: str) -> str | None:
        """An id: a text, or a whole number as text."""
        value = self._record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is None or (isinstance(value, str) and _is_unicode(value)):
            return value
        self._wrong(name, value, "valid Unicode" if isinstance(value, str) else "a text")
        return None

    def number(self, name: str) -> float | None:
        """A number as float; infinite where it is too large for one."""
        value = self._record.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value) if abs(value) < _LARGEST else math.inf if value > 0 else -math.inf
        if value is None or isinstance(value, float):
            return value
        self._wrong(name, value, "a number")
        return None

    def whole(self, name: str) -> int | None:
        """A whole number, cut to what an int64 holds with room to spare."""
        value = self._record.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return max(-_LARGEST, min(_LARGEST, value))
        if value is not None:
            self._wrong(name, value, "a whole number")
        return None

    def texts(self, name: str) -> list[str]:
        """A text or a list of texts, numbers and nulls; blank ones are left out."""
        value = self._record.get(name)
        parts = [] if value is None else value if isinstance(value, list) else [value]
        if any(isinstance(part, dict | list) for part in parts):
            self._wrong(name, value, "a text or a list of texts")
            return []
        found = [_as_unicode(str(part)) for part in parts if part is not None]
        return [part for part in found if part.strip()]

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A list of objects."""
        value = self._record.get(name)
        if value is None or value == "":  # empty lists are written so as well
            return []
        if isinstance(value, list) and all(isinstance(part, dict) for part in value):
            return value
        self._wrong(name, value, "a list of objects")
        return []

    def _wrong(self, name: str, value: Any, expected: str) -> None:
        shown = json.dumps(value, ensure_ascii=True)[:_SHOWN]
        self.problem = self.problem or f"wrong_type: {name} is {shown}, expected {expected}"


def json_line_tables(
    path: Path,
    file: str,
    parse: Callable[[JsonFields], Cells],
    schema: dict[str, Any],
    *,
    block_bytes: int = BLOCK_BYTES,
) -> Iterator[pl.DataFrame]:
    """Read a file, one table a block.

    Args:
        path: the file.
        file: its path below the data folder, for messages and `source_file`.
        parse: gives the cells of one object, in the order of `schema`.
        schema: name -> polars dtype of what `parse` gives.
        block_bytes: unpacked bytes read at once.

    Yields:
        The columns of `schema`, then source_file, source_row (the line, from 1) and problem.

    Raises:
        DataError: the file cannot be read to its end.
    """
    full = {**schema, "source_row": pl.Int64, "problem": pl.String}
    nothing = (None,) * len(schema)
    for block in line_blocks(path, file, block_bytes=block_bytes):
        table = pl.DataFrame(list(_rows(block, parse, nothing)), schema=full, orient="row")
        yield table.select(*schema, pl.lit(file).alias("source_file"), "source_row", "problem")


def _rows(block: LineBlock, parse: Callable[[JsonFields], Cells], nothing: Cells) -> Iterator[Cells]:
    for number, line in block.lines():
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        # More digits than Python converts are a ValueError too, and so are bytes that are no UTF-8.
        except (ValueError, RecursionError) as error:
            yield (*nothing, number, f"invalid_json: {' '.join(str(error).split())}")
            continue
        if not isinstance(record, dict):
            kind = _NAMES.get(type(record), "null")
            yield (*nothing, number, f"invalid_json: {kind}, expected an object")
            continue
        fields = JsonFields(record)
        cells = parse(fields)
        yield (*cells, number, fields.problem)


def _is_unicode(text: str) -> bool:
    """Whether there is no half of a surrogate pair in it, which JSON can write but no UTF-8 holds."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _as_unicode(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")
