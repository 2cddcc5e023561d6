"""Reader `tables`: CSV, TSV or parquet files with a column mapping -> raw interactions and raw items.

Every row of the file is a row of the result. Cells that cannot be read are null; cleaning puts those rows into
quarantine with file and line.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_parsing import (
    category_cells,
    flag_cells,
    id_cells,
    number_cells,
    text_cells,
    time_cells,
)
from macrec_pipeline.data.readers.delimited import SourceTable, column_position, read_delimited_parts, read_header
from macrec_pipeline.data.readers.image_files import PLACEHOLDER, existing_images, image_folder
from macrec_pipeline.data.readers.input_files import require_file
from macrec_pipeline.data.readers.item_texts import compose_texts, join_flags
from macrec_pipeline.datasets import FlagColumns, InteractionsTable, ItemsTable, TableFile, TablesSource
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_PARQUET_ROWS = 1_000_000  # read at once
_PARQUET_ENDINGS = (".parquet", ".pq")


def interactions_table_parts(mapping: InteractionsTable, data_dir: Path) -> Iterator[pl.DataFrame]:
    """Read the interaction log as parts of `RAW_INTERACTIONS`, one after the other.

    Raises:
        MissingFileError: the file is not there.
        SchemaError: a column is not there, or the file cannot be split into rows.
    """
    parts = _read(mapping, data_dir, what="source.interactions.file", columns=_interaction_columns(mapping))
    return (_interactions(part, mapping) for part in parts)


def read_interactions_table(mapping: InteractionsTable, data_dir: Path) -> pl.DataFrame:
    """The parts as one `RAW_INTERACTIONS`; errors as there."""
    frame = pl.concat([RAW_INTERACTIONS.empty(), *interactions_table_parts(mapping, data_dir)])
    return RAW_INTERACTIONS.check(frame, mapping.file)


def read_items_table(mapping: ItemsTable, data_dir: Path) -> pl.DataFrame:
    """Read the catalogue as `RAW_ITEMS`: title, the text made of the mapped columns, and the picture if it exists.

    Raises:
        MissingFileError: the file is not there. A picture that is not there is no error.
        SchemaError: a column is not there, or the file cannot be split into rows.
    """
    parts = _read(mapping, data_dir, what="source.items.file", columns=_item_columns(mapping))
    frame = pl.concat([RAW_ITEMS.empty(), *(_items(part, mapping, data_dir) for part in parts)])
    return RAW_ITEMS.check(frame, mapping.file)


def _interactions(part: SourceTable, mapping: InteractionsTable) -> pl.DataFrame:
    nothing = pl.repeat(None, len(part.lines), dtype=pl.Float64, eager=True)
    return pl.DataFrame(
        {
            "user_id": id_cells(part.column(mapping.user_id)),
            "item_id": id_cells(part.column(mapping.item_id)),
            "rating": nothing if mapping.rating is None else number_cells(part.column(mapping.rating)),
            "timestamp": time_cells(part.column(mapping.timestamp), mapping.timestamp_unit),
            "source_file": pl.repeat(part.file, len(part.lines), eager=True),
            "source_row": part.lines,
            "problem": part.problems(),
        }
    )


def _items(part: SourceTable, mapping: ItemsTable, data_dir: Path) -> pl.DataFrame:
    item_ids, titles = id_cells(part.column(mapping.item_id)), text_cells(part.column(mapping.title))
    nothing = pl.repeat(None, len(item_ids), dtype=pl.String, eager=True)
    return pl.DataFrame(
        {
            "item_id": item_ids,
            "title": titles,
            "text": compose_texts(titles, _text_parts(part, mapping)),
            "image_path": nothing if mapping.image is None else existing_images(item_ids, mapping.image, data_dir),
            "image_url": nothing if mapping.image_url is None else text_cells(part.column(mapping.image_url)),
            "categories": _categories(part, mapping),
            "source_file": pl.repeat(part.file, len(part.lines), eager=True),
            "source_row": part.lines,
            "problem": part.problems(),
        }
    )


def tables_files(source: TablesSource, data_dir: Path) -> list[Path]:
    """The files of interactions and items. Raises `MissingFileError`."""
    named = {"source.interactions.file": source.interactions.file, "source.items.file": source.items.file}
    return [require_file(data_dir, file, what=what) for what, file in named.items()]


def tables_problems(source: TablesSource, data_dir: Path) -> list[str]:
    """What keeps these tables from being read, each in a line; reads no more than the files' headers."""
    problems = []
    wanted: list[tuple[TableFile, str, list[str | int]]] = [
        (source.interactions, "source.interactions.file", _interaction_columns(source.interactions)),
        (source.items, "source.items.file", _item_columns(source.items)),
    ]
    for mapping, what, columns in wanted:
        try:
            path = require_file(data_dir, mapping.file, what=what)
            names, width = _header(path, mapping)
        except DataError as error:
            problems.append(str(error))
            continue
        for column in columns:
            try:
                column_position(column, names, width, mapping.file)
            except SchemaError as error:
                problems.append(str(error))
    return problems + _picture_problems(source.items, data_dir)


def _picture_problems(mapping: ItemsTable, data_dir: Path) -> list[str]:
    template = mapping.image
    if template is None:
        return []
    if PLACEHOLDER not in template:
        return [f"source.items.image is {template!r}, but it must hold {PLACEHOLDER}, as in posters/{PLACEHOLDER}.jpg."]
    folder = data_dir / image_folder(template)
    if folder.is_dir() or mapping.image_url is not None:  # pictures with an address can still be fetched
        return []
    return [
        f"There is no folder {folder} for the pictures (source.items.image). Put it there, set MACREC_DATA to the "
        "folder that holds it, or leave source.items.image out: items without a picture get an imputed embedding."
    ]


def _interaction_columns(mapping: InteractionsTable) -> list[str | int]:
    columns = [mapping.user_id, mapping.item_id, mapping.timestamp]
    return columns if mapping.rating is None else [*columns, mapping.rating]


def _item_columns(mapping: ItemsTable) -> list[str | int]:
    columns = [mapping.item_id, mapping.title]
    if mapping.image_url is not None:
        columns.append(mapping.image_url)
    for part in (*mapping.texts, *([] if mapping.categories is None else [mapping.categories])):
        columns.extend(part.flags if isinstance(part, FlagColumns) else [part])
    return columns


def _text_parts(table: SourceTable, mapping: ItemsTable) -> list[pl.Series]:
    return [
        join_flags(part.label, {flag: flag_cells(table.column(flag)) for flag in part.flags})
        if isinstance(part, FlagColumns)
        else text_cells(table.column(part))
        for part in mapping.texts
    ]


def _categories(table: SourceTable, mapping: ItemsTable) -> pl.Series:
    wanted = mapping.categories
    if wanted is None:
        return pl.repeat(None, len(table.lines), dtype=pl.List(pl.String), eager=True)
    if not isinstance(wanted, FlagColumns):
        return category_cells(table.column(wanted), separator=mapping.categories_separator)
    names = [pl.when(flag_cells(table.column(flag))).then(pl.lit(flag)) for flag in wanted.flags]
    return category_cells(pl.select(pl.concat_list(names)).to_series())


def _read(mapping: TableFile, data_dir: Path, *, what: str, columns: Iterable[str | int]) -> Iterator[SourceTable]:
    path = require_file(data_dir, mapping.file, what=what)
    if not _is_parquet(mapping):
        yield from read_delimited_parts(path, mapping.file, separator=_separator(mapping), header=mapping.header)
        return
    names, width = _header(path, mapping)
    positions = sorted({column_position(column, names, width, mapping.file) for column in columns})
    try:
        source = pl.scan_parquet(path)
        height = int(source.select(pl.len()).collect().item())
        for begin in range(0, height, _PARQUET_ROWS):
            frame = source.select(pl.nth(positions)).slice(begin, _PARQUET_ROWS).collect()
            frame.columns = [str(position) for position in positions]
            rows = pl.int_range(begin + 1, begin + 1 + frame.height, dtype=pl.Int64, eager=True)
            yield SourceTable(mapping.file, names, width, frame, rows)
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"{mapping.file} is not readable as parquet: {_one_line(error)}") from None


def _header(path: Path, mapping: TableFile) -> tuple[tuple[str, ...] | None, int]:
    if not _is_parquet(mapping):
        names, width, _ = read_header(path, mapping.file, separator=_separator(mapping), header=mapping.header)
        return names, width
    try:
        columns = tuple(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise SchemaError(f"{mapping.file} is not readable as parquet: {_one_line(error)}") from None
    return columns, len(columns)


def _is_parquet(mapping: TableFile) -> bool:
    if mapping.format is not None:
        return mapping.format == "parquet"
    return mapping.file.lower().endswith(_PARQUET_ENDINGS)


def _separator(mapping: TableFile) -> str:
    """The separator as set; a file that calls itself TSV has tabs unless the data set says otherwise."""
    names_itself_tsv = mapping.file.lower().removesuffix(".gz").endswith(".tsv")
    return "\t" if names_itself_tsv and "separator" not in mapping.model_fields_set else mapping.separator


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
