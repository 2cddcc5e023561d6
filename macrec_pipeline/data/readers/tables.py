"""Reader `tables`: CSV, TSV or parquet files with a column mapping become raw interactions and raw items.

Every row of a file becomes a row of the result. Cells that cannot be read are null; cleaning moves those rows to
quarantine, with file and line.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_parsing import (
    category_cells,
    compose_texts,
    flag_cells,
    id_cells,
    join_flags,
    number_cells,
    text_cells,
    time_cells,
)
from macrec_pipeline.data.readers.image_files import PLACEHOLDER, existing_images, image_folder
from macrec_pipeline.data.readers.reader import Reader
from macrec_pipeline.data.readers.text_files import (
    SourceTable,
    column_position,
    read_delimited_parts,
    read_header,
    require_file,
)
from macrec_pipeline.datasets import FlagColumns, InteractionsTable, ItemsTable, TableFile, TablesSource
from macrec_pipeline.errors import ConfigError, DataError, SchemaError
from macrec_pipeline.runtime.text_sanitizing import one_line_error
from macrec_pipeline.schemas import RAW_ITEMS

_PARQUET_ROWS = 1_000_000  # read at once
_PARQUET_ENDINGS = (".parquet", ".pq")


@dataclass(frozen=True)
class TablesReader(Reader):
    """Reads one table of interactions and one table of items."""

    source: TablesSource
    data_dir: Path

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the interaction log as parts of `RAW_INTERACTIONS`.

        Raises:
            MissingFileError: the file does not exist.
            SchemaError: a column is missing, or the file cannot be split into rows.
        """
        mapping = self.source.interactions
        return (_interactions(part, mapping) for part in _parts(mapping, _interaction_columns(mapping), self.data_dir))

    def items(self) -> pl.DataFrame:
        """Return the catalogue as `RAW_ITEMS`: title, text composed of the mapped columns, and image if it exists.

        Raises:
            MissingFileError: the file does not exist. A missing image is not an error.
            SchemaError: a column is missing, or the file cannot be split into rows.
        """
        return read_items(self.source.items, self.data_dir)

    def problems(self) -> list[str]:
        """Return the missing files and columns; reads no more than the headers of the files."""
        mapping = self.source.interactions
        problems = _column_problems(mapping, _interaction_columns(mapping), self.data_dir)
        return problems + item_problems(self.source.items, self.data_dir)

    def source_files(self) -> list[Path]:
        """Return the files of interactions and items. Raises `MissingFileError`."""
        return [_path(mapping, self.data_dir) for mapping in (self.source.interactions, self.source.items)]

    def image_template(self) -> str | None:
        """Return `source.items.image` if the items have image addresses.

        Raises:
            ConfigError: the data set names a column of image addresses, but not where the images belong.
        """
        return image_template_of_items(self.source.items)


def read_items(mapping: ItemsTable, data_dir: Path) -> pl.DataFrame:
    """Return a table of items as `RAW_ITEMS`. Errors as in `TablesReader.items`."""
    parts = _parts(mapping, _item_columns(mapping), data_dir)
    frame = pl.concat([RAW_ITEMS.empty(), *(_items(part, mapping, data_dir) for part in parts)])
    return RAW_ITEMS.check(frame, mapping.file)


def item_problems(mapping: ItemsTable, data_dir: Path) -> list[str]:
    """Return what is missing of a table of items: its file, columns, or folder of images."""
    return _column_problems(mapping, _item_columns(mapping), data_dir) + _image_problems(mapping, data_dir)


def image_template_of_items(mapping: ItemsTable) -> str | None:
    """Return where the images of a table of items are fetched to; None if it has no image addresses.

    Raises:
        ConfigError: the data set names a column of image addresses, but not where the images belong.
    """
    if mapping.image_url is not None and mapping.image is None:
        raise ConfigError(
            f"source.items.image_url names the column {mapping.image_url!r} of image addresses, but there is no "
            f"source.items.image. Add it to say where the images belong, for example posters/{PLACEHOLDER}.jpg."
        )
    return None if mapping.image_url is None else mapping.image


def _column_problems(mapping: TableFile, columns: Iterable[str | int], data_dir: Path) -> list[str]:
    problems = []
    try:
        names, num_columns = _header(_path(mapping, data_dir), mapping)
    except DataError as error:
        return [str(error)]
    for column in columns:
        try:
            column_position(column, names, num_columns, mapping.file)
        except SchemaError as error:
            problems.append(str(error))
    return problems


def _path(mapping: TableFile, data_dir: Path) -> Path:
    section = "interactions" if isinstance(mapping, InteractionsTable) else "items"
    return require_file(data_dir, mapping.file, what=f"source.{section}.file")


def _parts(mapping: TableFile, columns: Iterable[str | int], data_dir: Path) -> Iterator[SourceTable]:
    path = _path(mapping, data_dir)
    if not _is_parquet(mapping):
        yield from read_delimited_parts(path, mapping.file, separator=_separator(mapping), header=mapping.header)
        return
    names, num_columns = _header(path, mapping)
    positions = sorted({column_position(column, names, num_columns, mapping.file) for column in columns})
    try:
        source = pl.scan_parquet(path)
        num_rows = int(source.select(pl.len()).collect().item())
        for start in range(0, num_rows, _PARQUET_ROWS):
            frame = source.select(pl.nth(positions)).slice(start, _PARQUET_ROWS).collect()
            frame.columns = [str(position) for position in positions]
            row_numbers = pl.int_range(start + 1, start + 1 + frame.height, dtype=pl.Int64, eager=True)
            yield SourceTable(mapping.file, names, num_columns, frame, row_numbers)
    except pl.exceptions.PolarsError as error:
        raise _unreadable_parquet(mapping.file, error) from None


def _interactions(part: SourceTable, mapping: InteractionsTable) -> pl.DataFrame:
    num_rows = len(part.line_numbers)
    no_ratings = pl.repeat(None, num_rows, dtype=pl.Float64, eager=True)
    return pl.DataFrame(
        {
            "user_id": id_cells(part.column(mapping.user_id)),
            "item_id": id_cells(part.column(mapping.item_id)),
            "rating": no_ratings if mapping.rating is None else number_cells(part.column(mapping.rating)),
            "timestamp": time_cells(part.column(mapping.timestamp), mapping.timestamp_unit),
            "source_file": pl.repeat(part.file, num_rows, eager=True),
            "source_row": part.line_numbers,
            "problem": part.problems(),
        }
    )


def _items(part: SourceTable, mapping: ItemsTable, data_dir: Path) -> pl.DataFrame:
    item_ids, titles = id_cells(part.column(mapping.item_id)), text_cells(part.column(mapping.title))
    nulls = pl.repeat(None, len(item_ids), dtype=pl.String, eager=True)
    return pl.DataFrame(
        {
            "item_id": item_ids,
            "title": titles,
            "text": compose_texts(titles, _text_parts(part, mapping)),
            "image_path": nulls if mapping.image is None else existing_images(item_ids, mapping.image, data_dir),
            "image_url": nulls if mapping.image_url is None else text_cells(part.column(mapping.image_url)),
            "categories": _categories(part, mapping),
            "source_file": pl.repeat(part.file, len(item_ids), eager=True),
            "source_row": part.line_numbers,
            "problem": part.problems(),
        }
    )


def _image_problems(mapping: ItemsTable, data_dir: Path) -> list[str]:
    template = mapping.image
    if template is None:
        return []
    if PLACEHOLDER not in template:
        return [
            f"source.items.image is {template!r}, but it must contain {PLACEHOLDER}, as in posters/{PLACEHOLDER}.jpg."
        ]
    folder = data_dir / image_folder(template)
    if folder.is_dir() or mapping.image_url is not None:  # images with an address can still be fetched
        return []
    return [
        f"The folder {folder} for the images does not exist (source.items.image). Put it there, set MACREC_DATA to the "
        "folder that contains it, or remove source.items.image: items without an image get an imputed embedding."
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
    columns = mapping.categories
    if columns is None:
        return pl.repeat(None, len(table.line_numbers), dtype=pl.List(pl.String), eager=True)
    if not isinstance(columns, FlagColumns):
        return category_cells(table.column(columns), separator=mapping.categories_separator)
    names = [pl.when(flag_cells(table.column(flag))).then(pl.lit(flag)) for flag in columns.flags]
    return category_cells(pl.select(pl.concat_list(names)).to_series())


def _header(path: Path, mapping: TableFile) -> tuple[tuple[str, ...] | None, int]:
    """Return the column names, None without header, and the number of columns."""
    if not _is_parquet(mapping):
        names, num_columns, _ = read_header(path, mapping.file, separator=_separator(mapping), header=mapping.header)
        return names, num_columns
    try:
        columns = tuple(pl.read_parquet_schema(path))
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _unreadable_parquet(mapping.file, error) from None
    return columns, len(columns)


def _unreadable_parquet(file: str, error: Exception) -> SchemaError:
    return SchemaError(f"{file} cannot be read as parquet: {one_line_error(error)}")


def _is_parquet(mapping: TableFile) -> bool:
    if mapping.format is not None:
        return mapping.format == "parquet"
    return mapping.file.lower().endswith(_PARQUET_ENDINGS)


def _separator(mapping: TableFile) -> str:
    """Return the separator: a tab for a file named `.tsv`, unless the data set sets one."""
    is_tsv = mapping.file.lower().removesuffix(".gz").endswith(".tsv")
    return "\t" if is_tsv and "separator" not in mapping.model_fields_set else mapping.separator
