"""Open the files of a mapped table part by part: CSV, TSV, parquet or JSON lines, and the columns that folders hold.

A mapping (`TableFile`) names one file, a folder or a pattern. Each file is opened in the format that its name or the
data set states, and its parts hold the mapped columns. Nothing is interpreted here: cells stay as they are in the file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.json_tables import JsonTable, json_table_parts, missing_fields
from macrec_pipeline.data.readers.parquet_columns import (
    Meaning,
    as_plain_cells,
    parquet_columns,
    type_problem,
    unreadable_parquet,
)
from macrec_pipeline.data.readers.row_splitting import Quoting
from macrec_pipeline.data.readers.several_files import format_of, matching_files, partition_columns
from macrec_pipeline.data.readers.text_files import (
    BLOCK_BYTES,
    SourceTable,
    column_position,
    read_delimited_parts,
    read_header,
)
from macrec_pipeline.datasets import (
    FlagColumns,
    InteractionsTable,
    ItemsTable,
    RulesTable,
    StockTable,
    TableFile,
)
from macrec_pipeline.errors import DataError, SchemaError

_PARQUET_ROWS = 1_000_000  # read at once
_SAMPLE_BYTES = 1 << 18  # of the log, read by `macrec datasets validate`
_SECTIONS: dict[type[TableFile], str] = {
    InteractionsTable: "source.interactions",
    ItemsTable: "source.items",
    StockTable: "recommendations.stock",
    RulesTable: "recommendations.rules",
}
"""Where a data set's file maps the columns of each kind of table."""


def table_parts(
    mapping: TableFile,
    columns: Iterable[str | int],
    data_dir: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    parquet_rows: int | None = None,
) -> Iterator[SourceTable]:
    """Yield the rows of a table's files in parts, with at least the columns that are named.

    Args:
        mapping: the table.
        columns: the columns.
        data_dir: the data folder.
        block_bytes: unpacked bytes of a text file per part.
        parquet_rows: rows of a parquet file per part; None for a million.

    Raises:
        MissingFileError: a file does not exist.
        SchemaError: a column is missing or has a wrong type, or a file cannot be split into rows.
    """
    columns, parquet_rows = list(columns), parquet_rows or _PARQUET_ROWS
    for each in single_files(mapping, data_dir):
        if _format(each) == "jsonl":
            partitions = partition_columns(each.file)
            fields = [column for column in columns if column not in partitions]
            parts: Iterator[SourceTable] = json_table_parts(
                data_dir / each.file,
                each.file,
                fields,
                _lists(each, fields),
                ids=[ref for ref, meaning in _meanings(each) if meaning == "id"],
                block_bytes=block_bytes,
                encoding=each.encoding,
            )
        else:
            partitions = _partitions(each.file, _header(data_dir / each.file, each)[0])
            own_columns = [column for column in columns if column not in partitions]
            parts = _parts_of_file(
                each, own_columns, data_dir, block_bytes=block_bytes, parquet_rows=parquet_rows or _PARQUET_ROWS
            )
        for part in parts:
            yield _with_partitions(part, partitions) if partitions else part


def first_parts(
    mapping: TableFile, columns: Iterable[str | int], data_dir: Path, num_rows: int
) -> Iterator[list[SourceTable]]:
    """Yield the first rows of each file, as parts."""
    columns = list(columns)
    for each in single_files(mapping, data_dir):
        found: list[SourceTable] = []
        left = num_rows
        for part in table_parts(each, columns, data_dir, block_bytes=_SAMPLE_BYTES, parquet_rows=num_rows):
            found.append(_first_rows(part, left))
            left -= len(part.line_numbers)
            if left <= 0:
                break
        yield found


def files_of(mapping: TableFile, data_dir: Path) -> list[Path]:
    """Return the files of a table in the order in which they are read.

    Raises:
        MissingFileError: a file does not exist.
        SchemaError: a folder holds files of several formats.
    """
    return [data_dir / each.file for each in single_files(mapping, data_dir)]


def single_files(mapping: TableFile, data_dir: Path) -> list[TableFile]:
    """Return the mapping of each file of a table, in the order of their paths."""
    section = next(name for kind, name in _SECTIONS.items() if isinstance(mapping, kind))
    files = matching_files(data_dir, mapping.file, file_format=mapping.format, what=f"{section}.file")
    return [mapping.model_copy(update={"file": file}) for file in files]


def table_problems(mapping: TableFile, columns: Iterable[str | int], data_dir: Path) -> list[str]:
    """Return what is missing of a table: files, columns, or columns of a usable type."""
    columns = list(columns)
    try:
        files = single_files(mapping, data_dir)
    except DataError as error:
        return [str(error)]
    return [problem for each in files for problem in _column_problems_of_file(each, columns, data_dir)]


def _first_rows(part: SourceTable, num_rows: int) -> SourceTable:
    first = {
        name: value.head(num_rows)
        for name in ("cells", "line_numbers", "has_extra_cells", "row_problems")
        if (value := getattr(part, name, None)) is not None
    }
    return replace(part, **first)


def _column_problems_of_file(mapping: TableFile, columns: list[str | int], data_dir: Path) -> list[str]:
    path = data_dir / mapping.file
    problems = []
    try:
        if _format(mapping) == "jsonl":
            return missing_fields(
                path,
                mapping.file,
                [each for each in columns if each not in partition_columns(mapping.file)],
                encoding=mapping.encoding,
            )
        names, num_columns = _header(path, mapping)
    except DataError as error:
        return [str(error)]
    partitions = _partitions(mapping.file, names)
    for column in columns:
        try:
            if column not in partitions:
                column_position(column, names, num_columns, mapping.file)
        except SchemaError as error:
            problems.append(str(error))
    return problems + _type_problems(mapping, path)


def _type_problems(mapping: TableFile, path: Path) -> list[str]:
    """Return one sentence per parquet column whose type cannot hold what the data set maps it to."""
    if not _is_parquet(mapping):
        return []
    types = parquet_columns(path, mapping.file)
    names = tuple(types)
    problems = []
    for ref, meaning in _meanings(mapping):
        try:
            position = column_position(ref, names, len(names), mapping.file)
        except SchemaError:
            continue  # reported as a missing column, or held by the folders of the file
        found = type_problem(types[names[position]].dtype, meaning)
        if found is not None:
            problems.append(f"{mapping.file}, column {names[position]!r}: {found}")
    return problems


def _meanings(mapping: TableFile) -> list[tuple[str | int, Meaning]]:
    """Return each mapped column, and what the data set takes its cells for."""
    meanings: list[tuple[str | int, Meaning]]
    if isinstance(mapping, InteractionsTable):
        meanings = [(mapping.user_id, "id"), (mapping.item_id, "id")]
        meanings.append((mapping.timestamp, "time"))
        if mapping.event is not None:
            meanings.append((mapping.event, "text"))
        return meanings if mapping.rating is None else [*meanings, (mapping.rating, "number")]
    if isinstance(mapping, StockTable):
        meanings = [(mapping.item_id, "id")]
        return meanings if mapping.quantity is None else [*meanings, (mapping.quantity, "number")]
    if isinstance(mapping, RulesTable):
        return [(mapping.user_id, "id"), *((column, "texts") for column in mapping.rule_columns.values())]
    if not isinstance(mapping, ItemsTable):
        return []
    meanings = [(mapping.item_id, "id"), (mapping.title, "text")]
    if mapping.image_url is not None:
        meanings.append((mapping.image_url, "texts"))
    if mapping.image_file is not None:
        meanings.append((mapping.image_file, "text"))
    for part in (*mapping.texts, *([] if mapping.categories is None else [mapping.categories])):
        if isinstance(part, FlagColumns):
            meanings.extend((flag, "flag") for flag in part.flags)
        else:
            meanings.append((part, "texts"))
    return meanings


def _partitions(file: str, names: tuple[str, ...] | None) -> dict[str, str | None]:
    """Return the columns that the folders of a file hold, without those that the file has itself."""
    return {name: value for name, value in partition_columns(file).items() if name not in (names or ())}


def _with_partitions(part: SourceTable, partitions: dict[str, str | None]) -> SourceTable:
    """Add the columns that the folders of a file hold."""
    if isinstance(part, JsonTable):
        values = [pl.lit(value, dtype=pl.String).alias(name) for name, value in partitions.items()]
        return replace(part, cells=part.cells.with_columns(values))
    names = part.column_names or tuple(map(str, range(part.num_columns)))
    positions = range(part.num_columns, part.num_columns + len(partitions))
    values = [
        pl.lit(value, dtype=pl.String).alias(str(position))
        for position, value in zip(positions, partitions.values(), strict=True)
    ]
    return replace(
        part,
        column_names=(*names, *partitions),
        num_columns=part.num_columns + len(partitions),
        cells=part.cells.with_columns(values),
    )


def _lists(mapping: TableFile, wanted: Sequence[str | int]) -> dict[str | int, str | None]:
    """Return the wanted columns that may hold lists, and the text at which a single text of the column is split."""
    if isinstance(mapping, RulesTable):
        return dict.fromkeys(mapping.rule_columns.values(), mapping.list_separator)
    if not isinstance(mapping, ItemsTable):
        return {}
    columns: dict[str | int, str | None] = {part: None for part in mapping.texts if not isinstance(part, FlagColumns)}
    if mapping.image_url is not None:
        columns[mapping.image_url] = None
    if mapping.categories is not None and not isinstance(mapping.categories, FlagColumns):
        columns[mapping.categories] = mapping.categories_separator
    return {column: separator for column, separator in columns.items() if column in wanted}


def _parts_of_file(
    mapping: TableFile, columns: Iterable[str | int], data_dir: Path, *, block_bytes: int, parquet_rows: int
) -> Iterator[SourceTable]:
    path = data_dir / mapping.file
    if not _is_parquet(mapping):
        yield from read_delimited_parts(path, mapping.file, **_text_format(mapping), block_bytes=block_bytes)
        return
    problems = _type_problems(mapping, path)
    if problems:
        raise SchemaError(" ".join(problems))
    types = parquet_columns(path, mapping.file)
    names = tuple(types)
    positions = sorted({column_position(column, names, len(names), mapping.file) for column in columns})
    wanted = [types[names[position]].expression.alias(str(position)) for position in positions]
    try:
        source = pl.scan_parquet(path, glob=False)
        num_rows = int(source.select(pl.len()).collect().item())
        for start in range(0, num_rows, parquet_rows):
            frame = source.slice(start, parquet_rows).select(wanted).collect()
            frame = frame.select(as_plain_cells(column, mapping.file, start + 1) for column in frame)
            row_numbers = pl.int_range(start + 1, start + 1 + frame.height, dtype=pl.Int64, eager=True)
            yield SourceTable(mapping.file, names, len(names), frame, row_numbers)
    except pl.exceptions.PolarsError as error:
        raise unreadable_parquet(mapping.file, error) from None


def _text_format(mapping: TableFile) -> dict[str, Any]:
    """Return how a delimited file is to be understood, as the functions that open one take it."""
    return {
        "separator": _separator(mapping),
        "header": mapping.header,
        "quoting": _quoting(mapping),
        "encoding": mapping.encoding,
    }


def _header(path: Path, mapping: TableFile) -> tuple[tuple[str, ...] | None, int]:
    """Return the column names, None without header, and the number of columns."""
    if not _is_parquet(mapping):
        names, num_columns, _ = read_header(path, mapping.file, **_text_format(mapping))
        return names, num_columns
    columns = tuple(parquet_columns(path, mapping.file))
    return columns, len(columns)


def _is_parquet(mapping: TableFile) -> bool:
    return _format(mapping) == "parquet"


def _format(mapping: TableFile) -> str:
    """Return the format of one file: csv, parquet or jsonl."""
    return mapping.format or format_of(mapping.file) or "csv"


def _separator(mapping: TableFile) -> str:
    """Return the separator: a tab for a file named `.tsv`, unless the data set sets one."""
    is_tsv = mapping.file.lower().removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
    return "\t" if is_tsv and "separator" not in mapping.model_fields_set else mapping.separator


def _quoting(mapping: TableFile) -> Quoting:
    if mapping.quote == "none":
        return Quoting(None, mapping.escape, is_declared=True)
    return Quoting(
        '"' if mapping.quote == "auto" else mapping.quote, mapping.escape, is_declared=mapping.quote != "auto"
    )
