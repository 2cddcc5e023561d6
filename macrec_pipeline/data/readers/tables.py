"""Reader `tables`: CSV, TSV or parquet files with a column mapping become raw interactions and raw items.

Every row of a file becomes a row of the result. Cells that cannot be read are null; cleaning moves those rows to
quarantine, with file and line.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_checks import ColumnReader
from macrec_pipeline.data.readers.column_parsing import (
    category_cells,
    compose_texts,
    flag_cells,
    join_flags,
    text_cells,
)
from macrec_pipeline.data.readers.image_files import PLACEHOLDER, existing_images, image_folder
from macrec_pipeline.data.readers.parquet_columns import (
    Meaning,
    as_plain_cells,
    parquet_columns,
    type_problem,
    unreadable_parquet,
)
from macrec_pipeline.data.readers.reader import Reader
from macrec_pipeline.data.readers.row_splitting import Quoting
from macrec_pipeline.data.readers.text_files import (
    SourceTable,
    column_position,
    read_delimited_parts,
    read_header,
    require_file,
)
from macrec_pipeline.datasets import FlagColumns, InteractionsTable, ItemsTable, TableFile, TablesSource
from macrec_pipeline.errors import ConfigError, DataError, SchemaError
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
            SchemaError: a column is missing or filled but unreadable, or the file cannot be split into rows.
        """
        mapping = self.source.interactions
        columns = ColumnReader(mapping.file, mapping.null_words)
        for part in self._parts(mapping, _interaction_columns(mapping)):
            yield _interactions(part, mapping, columns)
        columns.check()

    def items(self) -> pl.DataFrame:
        """Return the catalogue as `RAW_ITEMS`: title, text composed of the mapped columns, and image if it exists.

        Raises:
            MissingFileError: the file does not exist. A missing image is not an error.
            SchemaError: a column is missing, or the file cannot be split into rows.
        """
        mapping = self.source.items
        parts = self._parts(mapping, _item_columns(mapping))
        columns = ColumnReader(mapping.file, mapping.null_words)
        frame = pl.concat([RAW_ITEMS.empty(), *(_items(part, mapping, self.data_dir, columns) for part in parts)])
        columns.check()
        return RAW_ITEMS.check(frame, mapping.file)

    def problems(self) -> list[str]:
        """Return the missing files and columns; reads no more than the headers of the files."""
        problems = []
        for mapping, columns in (
            (self.source.interactions, _interaction_columns(self.source.interactions)),
            (self.source.items, _item_columns(self.source.items)),
        ):
            try:
                names, num_columns = _header(self._path(mapping), mapping)
            except DataError as error:
                problems.append(str(error))
                continue
            for column in columns:
                try:
                    column_position(column, names, num_columns, mapping.file)
                except SchemaError as error:
                    problems.append(str(error))
            problems += self._type_problems(mapping)
        return problems + _image_problems(self.source.items, self.data_dir)

    def source_files(self) -> list[Path]:
        """Return the files of interactions and items. Raise `MissingFileError`."""
        return [self._path(mapping) for mapping in (self.source.interactions, self.source.items)]

    def image_template(self) -> str | None:
        """Return `source.items.image` if the items have image addresses.

        Raises:
            ConfigError: the data set names a column of image addresses, but not where the images belong.
        """
        mapping = self.source.items
        if mapping.image_url is not None and mapping.image is None:
            raise ConfigError(
                f"source.items.image_url names the column {mapping.image_url!r} of image addresses, but there is no "
                f"source.items.image. Add it to say where the images belong, for example posters/{PLACEHOLDER}.jpg."
            )
        return None if mapping.image_url is None else mapping.image

    def _type_problems(self, mapping: TableFile) -> list[str]:
        """Return one sentence per parquet column whose type cannot hold what the data set maps it to."""
        if not _is_parquet(mapping):
            return []
        types = parquet_columns(self._path(mapping), mapping.file)
        names = tuple(types)
        problems = []
        for ref, meaning in _meanings(mapping):
            try:
                position = column_position(ref, names, len(names), mapping.file)
            except SchemaError:
                continue  # reported as a missing column
            found = type_problem(types[names[position]].dtype, meaning)
            if found is not None:
                problems.append(f"{mapping.file}, column {names[position]!r}: {found}")
        return problems

    def _path(self, mapping: TableFile) -> Path:
        section = "interactions" if isinstance(mapping, InteractionsTable) else "items"
        return require_file(self.data_dir, mapping.file, what=f"source.{section}.file")

    def _parts(self, mapping: TableFile, columns: Iterable[str | int]) -> Iterator[SourceTable]:
        path = self._path(mapping)
        if not _is_parquet(mapping):
            yield from read_delimited_parts(
                path,
                mapping.file,
                separator=_separator(mapping),
                header=mapping.header,
                quoting=_quoting(mapping),
                encoding=mapping.encoding,
            )
            return
        problems = self._type_problems(mapping)
        if problems:
            raise SchemaError(" ".join(problems))
        types = parquet_columns(path, mapping.file)
        names = tuple(types)
        positions = sorted({column_position(column, names, len(names), mapping.file) for column in columns})
        wanted = [types[names[position]].expression.alias(str(position)) for position in positions]
        try:
            source = pl.scan_parquet(path, glob=False)
            num_rows = int(source.select(pl.len()).collect().item())
            for start in range(0, num_rows, _PARQUET_ROWS):
                frame = source.slice(start, _PARQUET_ROWS).select(wanted).collect()
                frame = frame.select(as_plain_cells(column, mapping.file, start + 1) for column in frame)
                row_numbers = pl.int_range(start + 1, start + 1 + frame.height, dtype=pl.Int64, eager=True)
                yield SourceTable(mapping.file, names, len(names), frame, row_numbers)
        except pl.exceptions.PolarsError as error:
            raise unreadable_parquet(mapping.file, error) from None


def _meanings(mapping: TableFile) -> list[tuple[str | int, Meaning]]:
    """Return each mapped column, and what the data set takes its cells for."""
    if isinstance(mapping, InteractionsTable):
        meanings: list[tuple[str | int, Meaning]] = [(mapping.user_id, "id"), (mapping.item_id, "id")]
        meanings.append((mapping.timestamp, "time"))
        return meanings if mapping.rating is None else [*meanings, (mapping.rating, "number")]
    if not isinstance(mapping, ItemsTable):
        return []
    meanings = [(mapping.item_id, "id"), (mapping.title, "text")]
    if mapping.image_url is not None:
        meanings.append((mapping.image_url, "text"))
    for part in (*mapping.texts, *([] if mapping.categories is None else [mapping.categories])):
        if isinstance(part, FlagColumns):
            meanings.extend((flag, "flag") for flag in part.flags)
        else:
            meanings.append((part, "texts"))
    return meanings


def _interactions(part: SourceTable, mapping: InteractionsTable, columns: ColumnReader) -> pl.DataFrame:
    num_rows = len(part.line_numbers)
    no_ratings = pl.repeat(None, num_rows, dtype=pl.Float64, eager=True)
    return pl.DataFrame(
        {
            "user_id": columns.ids(part, mapping.user_id),
            "item_id": columns.ids(part, mapping.item_id),
            "rating": no_ratings
            if mapping.rating is None
            else columns.numbers(part, mapping.rating, decimal=mapping.decimal),
            "timestamp": columns.times(part, mapping.timestamp, mapping.timestamp_unit, mapping.timestamp_format),
            "source_file": pl.repeat(part.file, num_rows, eager=True),
            "source_row": part.line_numbers,
            "problem": part.problems(),
        }
    )


def _items(part: SourceTable, mapping: ItemsTable, data_dir: Path, columns: ColumnReader) -> pl.DataFrame:
    item_ids, titles = columns.ids(part, mapping.item_id), text_cells(columns.cells(part, mapping.title))
    nulls = pl.repeat(None, len(item_ids), dtype=pl.String, eager=True)
    return pl.DataFrame(
        {
            "item_id": item_ids,
            "title": titles,
            "text": compose_texts(titles, _text_parts(part, mapping, columns)),
            "image_path": nulls if mapping.image is None else existing_images(item_ids, mapping.image, data_dir),
            "image_url": nulls if mapping.image_url is None else text_cells(columns.cells(part, mapping.image_url)),
            "categories": _categories(part, mapping, columns),
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


def _text_parts(table: SourceTable, mapping: ItemsTable, columns: ColumnReader) -> list[pl.Series]:
    return [
        join_flags(part.label, {flag: flag_cells(table.column(flag)) for flag in part.flags})
        if isinstance(part, FlagColumns)
        else text_cells(columns.cells(table, part))
        for part in mapping.texts
    ]


def _categories(table: SourceTable, mapping: ItemsTable, columns: ColumnReader) -> pl.Series:
    categories = mapping.categories
    if categories is None:
        return pl.repeat(None, len(table.line_numbers), dtype=pl.List(pl.String), eager=True)
    if not isinstance(categories, FlagColumns):
        return category_cells(columns.cells(table, categories), separator=mapping.categories_separator)
    names = [pl.when(flag_cells(table.column(flag))).then(pl.lit(flag)) for flag in categories.flags]
    return category_cells(pl.select(pl.concat_list(names)).to_series())


def _header(path: Path, mapping: TableFile) -> tuple[tuple[str, ...] | None, int]:
    """Return the column names, None without header, and the number of columns."""
    if not _is_parquet(mapping):
        names, num_columns, _ = read_header(
            path,
            mapping.file,
            separator=_separator(mapping),
            header=mapping.header,
            quoting=_quoting(mapping),
            encoding=mapping.encoding,
        )
        return names, num_columns
    columns = tuple(parquet_columns(path, mapping.file))
    return columns, len(columns)


def _is_parquet(mapping: TableFile) -> bool:
    if mapping.format is not None:
        return mapping.format == "parquet"
    return mapping.file.lower().endswith(_PARQUET_ENDINGS)


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
