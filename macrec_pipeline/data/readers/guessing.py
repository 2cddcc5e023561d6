"""Guess a first data set file from the files of a shop, for a person to correct.

The beginning of each file is read. The file with users and times is the log, the one with titles the catalogue. Columns
are guessed by their names, and the unit of the times by the values. Each guess has a comment with the reason and the
first values.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from macrec_pipeline.data.readers.column_parsing import time_cells
from macrec_pipeline.data.readers.json_lines import JsonFields
from macrec_pipeline.data.readers.several_files import format_of
from macrec_pipeline.data.readers.text_files import line_blocks, read_delimited_parts, read_header
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.runtime.text_sanitizing import one_line, shown_cell

_ROWS = 1_000
_BYTES = 1 << 20
_SEPARATORS = (",", ";", "\t", "|")
_NUM_EXAMPLES = 3
_MAX_CHARACTERS = 24
_NOT_FOUND = "COLUMN"
_ID = "(id|ids|pseudoid|key|no|number|code|hash|sku)?"
# The names of columns, in lower case and without anything but letters and digits; earlier patterns win.
_NAMES = {
    "user_id": [rf"(user|customer|client|visitor|reviewer|member|buyer|shopper|account|person){_ID}", "u", "uid"],
    "item_id": [
        rf"(item|product|article|parentasin|asin|sku|movie|book|song|track|news|offer|goods){_ID}",
        "handle",
        "i",
        "iid",
        "id",
    ],
    "timestamp": [
        "(event|unix|unixreview)?(timestamp|time)",
        "ts",
        "t",
        r"\w*(date|time|datetime)",
        r"\w+edat",
        "tdat",
        "day",
    ],
    "rating": ["rating", "stars", "score", "overall", "r"],
    "event": ["event", "eventtype", "eventname", "action", "behavior", "behaviortype"],
    "title": [r"(item|product|prod|movie|book|article)?(title|name)"],
    "categories": [r"categor(y|ies)", "maincategory", "genres?", "tags", "producttype", "department"],
    "image_url": [r"\w*(image|img|photo|picture|imgsrc|imagesrc)\w*"],
}
_TEXTS = r"\w*(desc|descr|description|body|bodyhtml|about|overview|features|brand|vendor|material|detaildesc|summary)"


@dataclass(frozen=True)
class SampledTable:
    """The first rows of a file.

    Attributes:
        file: its path below the data folder.
        file_format: csv, parquet or jsonl.
        separator: the text between cells; only for csv.
        rows: the columns by their names.
    """

    file: str
    file_format: str
    separator: str
    rows: pl.DataFrame


def sample_table(file: Path, data_dir: Path) -> SampledTable:
    """Read the first rows of a file, which must be below the data folder.

    Raises:
        MissingFileError: the file does not exist, or is not below the data folder.
        DataError: the file cannot be read.
    """
    path = data_dir / file if (data_dir / file).is_file() else file
    if not path.is_file():
        raise MissingFileError(f"{file} does not exist, neither below {data_dir} nor as a path of its own.")
    if not path.absolute().is_relative_to(data_dir.absolute()):
        raise MissingFileError(
            f"{path} is not below the data folder {data_dir}. Put it there, or set MACREC_DATA (or --data) to a folder "
            "that contains it."
        )
    name = path.absolute().relative_to(data_dir.absolute()).as_posix()
    file_format = format_of(name) or "csv"
    if file_format == "parquet":
        try:
            return SampledTable(name, file_format, ",", pl.scan_parquet(path, glob=False).head(_ROWS).collect())
        except pl.exceptions.PolarsError:
            raise SchemaError(f"{name} cannot be read as parquet.") from None
    if file_format == "jsonl":
        return SampledTable(name, file_format, ",", _json_rows(path, name))
    separator = _guess_separator(path, name)
    names, _, _ = read_header(path, name, separator=separator, header=True)
    part = next(read_delimited_parts(path, name, separator=separator, header=True, block_bytes=_BYTES))
    columns = [part.cells[str(position)].head(_ROWS).alias(column) for position, column in enumerate(names or ())]
    if len({column.name for column in columns}) < len(columns):
        raise SchemaError(f"{name} has two columns of one name. Give each column its own name.")
    return SampledTable(name, file_format, separator, pl.DataFrame(columns))


def guess_dataset(name: str, tables: Sequence[SampledTable]) -> str:
    """Return the text of a data set file, with a comment for each guess.

    Raises:
        SchemaError: no file looks like a log of interactions.
    """
    log = max(tables, key=lambda table: sum(_find(table, role) is not None for role in ("user_id", "timestamp")))
    if _find(log, "user_id") is None and _find(log, "timestamp") is None:
        columns = "; ".join(f"{table.file}: {', '.join(table.rows.columns)}" for table in tables)
        raise SchemaError(
            f"None of the files has a column that looks like a user or a time, so there is no log. Columns: {columns}. "
            "Write the file by hand (docs/data.md), or name the columns user_id, item_id and timestamp."
        )
    others = [table for table in tables if table is not log]
    lines = [
        "# A first guess by `macrec datasets new`. Read each comment and correct what is wrong; then run",
        f"# `macrec datasets validate {name}`. docs/data.md explains the settings.",
        f"name: {name}",
        f"title: {name}",
        "preset: demo                     # trains in minutes; default has the published sizes",
        "source:",
        "  reader: tables",
        "  interactions:",
        *_table_lines(log),
        *(_column_line(log, role, role) for role in ("user_id", "item_id", "timestamp")),
        *_unit_lines(log),
        *(_column_line(log, role, role) for role in ("rating",) if _find(log, role) is not None),
        *_event_lines(log),
        "  items:",
    ]
    if not others:
        item_id = _find(log, "item_id") or _NOT_FOUND
        lines += [
            "    # No catalogue was given: the ids of the log are the titles. Texts or images are needed from the",
            "    # embeddings on.",
            *_table_lines(log),
            f"    item_id: {_quoted(item_id)}",
            f"    title: {_quoted(_find(log, 'title') or item_id)}",
        ]
        return "\n".join(lines) + "\n"
    items = max(others, key=lambda table: sum(_find(table, role) is not None for role in ("item_id", "title")))
    lines += [*_table_lines(items), *(_column_line(items, role, role) for role in ("item_id", "title"))]
    texts = [column for column in items.rows.columns if re.fullmatch(_TEXTS, _normal(column))]
    if texts:
        lines.append(f"    texts: [{', '.join(map(_quoted, texts))}]  # by their names; they follow the title")
    if _find(items, "categories") is not None:
        lines.append(_column_line(items, "categories", "categories"))
    addresses = _find(items, "image_url")
    if addresses is not None and any("://" in value for value in _examples(items, addresses)):
        folder = Path(items.file).parent.as_posix()
        lines.append(_column_line(items, "image_url", "image_url"))
        lines.append(
            f"    image: {_quoted(f'{folder}/images/{{item_id}}.jpg')}  # where `macrec fetch images` puts them"
        )
    unused = [table.file for table in others if table is not items]
    lines += [f"# {file} is not used." for file in unused]
    return "\n".join(lines) + "\n"


def _json_rows(path: Path, name: str) -> pl.DataFrame:
    columns: dict[str, list[str | None]] = {}
    for block in islice(line_blocks(path, name, block_bytes=_BYTES), 1):
        for number, (_, line) in enumerate(islice(block.lines(), _ROWS)):
            record = JsonFields.parse(line)
            for field in () if record is None else record.paths():
                value = None if record is None else record.several_texts(field, None)
                column = columns.setdefault(field, [None] * number)
                column.extend([None] * (number - len(column)))
                column.append(None if value is None else ", ".join(value))
    if not columns:
        raise SchemaError(f"{name} holds no JSON object. The format jsonl expects one object per line.")
    length = max(map(len, columns.values()))
    padded = {field: values + [None] * (length - len(values)) for field, values in columns.items()}
    return pl.DataFrame(padded, schema=dict.fromkeys(padded, pl.String))


def _guess_separator(path: Path, name: str) -> str:
    block = next(line_blocks(path, name, block_bytes=_BYTES), None)
    if block is None:
        raise SchemaError(f"{name} is empty.")
    header = block.data.partition(b"\n")[0].decode("utf-8", errors="replace")
    return max(_SEPARATORS, key=header.count)


def _normal(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _find(table: SampledTable, role: str) -> str | None:
    """Return the column of a role by its name, also the last part of a nested field."""
    for pattern in _NAMES[role]:
        for column in table.rows.columns:
            last = column.rpartition(".")[2] if table.file_format == "jsonl" else column
            if re.fullmatch(pattern, _normal(column)) or re.fullmatch(pattern, _normal(last)):
                return column
    return None


def _examples(table: SampledTable, column: str) -> list[str]:
    values = table.rows[column].drop_nulls().head(_NUM_EXAMPLES).to_list()
    return [shown_cell(value, _MAX_CHARACTERS) for value in values]


def _column_line(table: SampledTable, role: str, setting: str) -> str:
    column = _find(table, role)
    if column is None:
        return f"    {setting}: {_NOT_FOUND}  # no guess; the columns are: {one_line(', '.join(table.rows.columns))}"
    examples = ", ".join(_examples(table, column)) or "none"
    return f"    {setting}: {_quoted(column)}  # by its name; first values: {examples}"


def _table_lines(table: SampledTable) -> list[str]:
    lines = [f"    file: {_quoted(table.file)}"]
    if table.file_format == "csv" and table.separator != ",":
        separator = r"\t" if table.separator == "\t" else table.separator
        lines.append(f'    separator: "{separator}"  # by the first line')
    return lines


def _unit_lines(table: SampledTable) -> list[str]:
    column = _find(table, "timestamp")
    if column is None:
        return ["    timestamp_unit: s            # no guess; s, ms, us or iso"]
    values = table.rows[column].drop_nulls()
    if values.dtype in (pl.Date, pl.Datetime):
        return []
    numbers = values.cast(pl.Float64, strict=False).drop_nulls()
    if len(numbers) and len(numbers) == len(values):
        largest = float(numbers.max())  # type: ignore[arg-type]
        unit = "s" if largest < 1e11 else "ms" if largest < 1e14 else "us"
        return [f"    timestamp_unit: {unit}            # by the size of the numbers"]
    if len(values) and time_cells(values, "iso").null_count() == 0:
        return ["    timestamp_unit: iso          # all of the first values can be read"]
    return ["    timestamp_unit: iso          # no guess: the first values are neither numbers nor ISO times"]


def _event_lines(table: SampledTable) -> list[str]:
    column = _find(table, "event")
    if column is None:
        return []
    kinds: list[Any] = table.rows[column].drop_nulls().unique(maintain_order=True).head(10).to_list()
    listed = ", ".join(_quoted(str(kind)) for kind in kinds)
    return [
        _column_line(table, "event", "event"),
        f"    events: [{listed}]  # all kinds that were seen; keep those that count",
    ]


def _quoted(value: str) -> str:
    """Return a text as a YAML scalar that also fits into a list."""
    return str(yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True)).strip()[1:-1]
