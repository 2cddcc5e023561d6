"""The columns of a parquet file, and which of their types can hold an id, a text, a number, a time or a flag.

A field of a struct is a column too, named by a dotted path such as `user.id`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import polars as pl

from macrec_pipeline.errors import SchemaError
from macrec_pipeline.runtime.text_sanitizing import one_line_error

Meaning = Literal["id", "text", "texts", "number", "time", "flag"]
"""What a data set takes a column for; `texts` is a text or a list of them."""

_NAMES: dict[Meaning, str] = {
    "id": "an ID",
    "text": "a text",
    "texts": "a text or a list of texts",
    "number": "a number",
    "time": "a time",
    "flag": "a 0/1 flag",
}


@dataclass(frozen=True)
class ParquetColumn:
    """A column of a parquet file, or a field of a struct: its type, and the expression that reads it."""

    dtype: pl.DataType
    expression: pl.Expr


def parquet_columns(path: Path, file: str) -> dict[str, ParquetColumn]:
    """Return the columns of a file by name: those of the file in their order, then the fields of structs.

    Raises:
        SchemaError: the file is not a parquet file.
    """
    try:
        schema = pl.scan_parquet(path, glob=False).collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable_parquet(file, error) from None
    columns = {name: ParquetColumn(dtype, pl.col(name)) for name, dtype in schema.items()}
    waiting = list(columns.items())
    for name, column in waiting:
        if isinstance(column.dtype, pl.Struct):
            for member in column.dtype.fields:
                expression = column.expression.struct.field(member.name)
                found = ParquetColumn(
                    member.dtype if isinstance(member.dtype, pl.DataType) else member.dtype(), expression
                )
                if f"{name}.{member.name}" not in columns:
                    columns[f"{name}.{member.name}"] = found
                    waiting.append((f"{name}.{member.name}", found))
    return columns


def unreadable_parquet(file: str, error: Exception) -> SchemaError:
    """Return the error about a file that cannot be read as parquet."""
    return SchemaError(
        f"{file} cannot be read as parquet: {one_line_error(error)}. If it is a text file, set `format: csv` or "
        "`format: jsonl`; if it is packed, unpack it; if its download was interrupted, copy it again."
    )


def type_problem(dtype: pl.DataType, meaning: Meaning) -> str | None:
    """Return why a column of this type cannot be what the data set takes it for; None if it can."""
    if isinstance(dtype, pl.Struct):
        fields = ", ".join(member.name for member in dtype.fields)
        remedy = f"Name one of its fields ({fields}) by a dotted path, as in column.field."
    elif isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner if isinstance(dtype.inner, pl.DataType) else dtype.inner()
        if meaning == "texts" and _is_plain(inner, "text"):
            return None
        remedy = "Write one row per entry, or map a column with one value per row."
    elif _is_plain(dtype, meaning):
        return None
    else:
        remedy = "Map another column, or export it as text."
    return f"its type is {dtype}, which cannot be {_NAMES[meaning]}. {remedy}"


def as_plain_cells(column: pl.Series, file: str, first_row: int) -> pl.Series:
    """Return a column whose type every parser reads: dictionaries and bytes as text, fixed-size lists as lists.

    Raises:
        SchemaError: bytes are not UTF-8; names the row.
    """
    dtype = column.dtype
    if isinstance(dtype, pl.Array):
        return as_plain_cells(column.arr.to_list(), file, first_row)
    if isinstance(dtype, pl.List) and dtype.inner == pl.Binary:
        texts = [
            None if cell is None else [_decoded(value, file, row) for value in cell]
            for row, cell in enumerate(column.to_list(), start=first_row)
        ]
        return pl.Series(column.name, texts, dtype=pl.List(pl.String))
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return column.cast(pl.String)
    if dtype == pl.Null:
        return column.cast(pl.String)
    if dtype == pl.Binary:
        text = [_decoded(value, file, row) for row, value in enumerate(column, start=first_row)]
        return pl.Series(column.name, text, dtype=pl.String)
    return column


def _is_plain(dtype: pl.DataType, meaning: Meaning) -> bool:
    is_text = dtype in (pl.String, pl.Binary, pl.Null) or isinstance(dtype, pl.Categorical | pl.Enum)
    is_number = dtype.is_numeric()
    if meaning == "time":
        return is_text or is_number or isinstance(dtype, pl.Datetime | pl.Date)
    if meaning == "id":
        return is_text or is_number
    return is_text or is_number or dtype == pl.Boolean or (meaning in ("text", "texts") and dtype.is_temporal())


def _decoded(value: bytes | None, file: str, row: int) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        raise SchemaError(
            f"{file}: row {row} holds bytes that are not UTF-8: {(value or b'')[:40]!r}. Export the column as text."
        ) from None
