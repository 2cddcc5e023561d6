"""Reader `tables`: CSV, TSV, parquet or JSON lines with a column mapping become raw interactions and raw items.

Every row of a file becomes a row of the result. Cells that cannot be read are null; cleaning moves those rows to
quarantine, with file and line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_checks import ColumnReader, LostCells
from macrec_pipeline.data.readers.column_parsing import (
    category_cells,
    compose_texts,
    flag_cells,
    join_flags,
    text_cells,
)
from macrec_pipeline.data.readers.html_text import plain_text_cells
from macrec_pipeline.data.readers.image_addresses import address_cells
from macrec_pipeline.data.readers.image_files import (
    PLACEHOLDER,
    existing_image_files,
    existing_images,
    image_folder,
    tried_images,
)
from macrec_pipeline.data.readers.list_literals import joined_lists
from macrec_pipeline.data.readers.mapped_files import files_of, first_parts, single_files, table_parts, table_problems
from macrec_pipeline.data.readers.reader import Reader, SourceSample
from macrec_pipeline.data.readers.text_files import SourceTable
from macrec_pipeline.datasets import (
    FlagColumns,
    InteractionsTable,
    ItemsTable,
    TableFile,
    TablesSource,
)
from macrec_pipeline.errors import ConfigError, DataError
from macrec_pipeline.schemas import OTHER_EVENT, RAW_INTERACTIONS, RAW_ITEMS

_MAX_QUOTED_CHARACTERS = 40
_ROWS_TO_CHECK = 1_000  # by `macrec datasets validate`
_IMAGES_SHOWN = 2


@dataclass(frozen=True)
class TablesReader(Reader):
    """Reads one table of interactions and one table of items."""

    source: TablesSource
    data_dir: Path
    _lost: list[LostCells] = field(default_factory=list, compare=False, repr=False)

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the interaction log as parts of `RAW_INTERACTIONS`.

        Raises:
            MissingFileError: the file does not exist.
            SchemaError: a column is missing or filled but unreadable, or the file cannot be split into rows.
        """
        mapping = self.source.interactions
        columns = ColumnReader(mapping.file, mapping.null_words)
        for part in table_parts(mapping, _interaction_columns(mapping), self.data_dir):
            yield _interactions(part, mapping, columns)
        self._lost[:] = columns.check()

    def items(self) -> pl.DataFrame:
        """Return the catalogue as `RAW_ITEMS`: title, text composed of the mapped columns, and image if it exists.

        Raises:
            MissingFileError: the file does not exist. A missing image is not an error.
            SchemaError: a column is missing, or the file cannot be split into rows.
        """
        return read_items(self.source.items, self.data_dir, self._lost)

    def lost_cells(self) -> list[LostCells]:
        """Return which cells the last complete reading turned into missing values, per column."""
        return list(self._lost)

    def problems(self) -> list[str]:
        """Return missing files and columns, and columns unreadable in the first rows; reads only the beginning."""
        mapping = self.source.interactions
        problems = table_problems(mapping, _interaction_columns(mapping), self.data_dir)
        if not problems:
            try:
                self._first_interactions(_ROWS_TO_CHECK)[1].require_readable()
            except DataError as error:
                problems.append(str(error))
        return problems + item_problems(self.source.items, self.data_dir)

    def notes(self) -> list[str]:
        """Return what the first rows of the log lost: unreadable cells and words for a missing value, per column."""
        return self._first_interactions(_ROWS_TO_CHECK)[1].notes()

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first rows of each file, and what they lost per column."""
        log, columns = self._first_interactions(num_rows)
        items, notes = item_samples(self.source.items, self.data_dir, num_rows)
        return SourceSample(log, items, (*columns.notes(), *notes))

    def item_id_parts(self) -> Iterator[pl.Series]:
        """Yield the ids of the catalogue, part by part; no other column is read."""
        return table_item_ids(self.source.items, self.data_dir)

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for; None if the data set has no images."""
        return table_images_tried(self.source.items, self.data_dir, items)

    def _first_interactions(self, num_rows: int) -> tuple[tuple[pl.DataFrame, ...], ColumnReader]:
        mapping = self.source.interactions
        columns = ColumnReader(mapping.file, mapping.null_words)
        files = first_parts(mapping, _interaction_columns(mapping), self.data_dir, num_rows)
        tables = [[_interactions(part, mapping, columns) for part in parts] for parts in files]
        return tuple(pl.concat([RAW_INTERACTIONS.empty(), *each]) for each in tables), columns

    def source_files(self) -> list[Path]:
        """Return the files of interactions and items. Raise `MissingFileError`."""
        tables: tuple[TableFile, ...] = (self.source.interactions, self.source.items)
        return [file for mapping in tables for file in files_of(mapping, self.data_dir)]

    def image_template(self) -> str | None:
        """Return `source.items.image` if the items have image addresses.

        Raises:
            ConfigError: the data set names a column of image addresses, but not where the images belong.
        """
        return image_template_of_items(self.source.items)

    def notices(self, items: pl.DataFrame | None = None) -> list[str]:
        """Return how many items have an image, if some have none."""
        return image_notices(self.source.items, self.data_dir, items)


def read_items(mapping: ItemsTable, data_dir: Path, lost: list[LostCells]) -> pl.DataFrame:
    """Return a table of items as `RAW_ITEMS`. Errors as in `TablesReader.items`.

    Args:
        mapping: the table.
        data_dir: the data folder.
        lost: becomes the list of cells that were turned into missing values.
    """
    columns = ColumnReader(mapping.file, mapping.null_words)
    parts = table_parts(mapping, _item_columns(mapping), data_dir)
    frame = pl.concat([RAW_ITEMS.empty(), *(_items(part, mapping, data_dir, columns) for part in parts)])
    lost[:] = columns.check()
    return RAW_ITEMS.check(frame, mapping.file)


def item_samples(
    mapping: ItemsTable, data_dir: Path, num_rows: int
) -> tuple[tuple[pl.DataFrame, ...], tuple[str, ...]]:
    """Return the first rows of each file of a table of items as `RAW_ITEMS`, and notes about their columns."""
    columns = ColumnReader(mapping.file, mapping.null_words)
    files = first_parts(mapping, _item_columns(mapping), data_dir, num_rows)
    tables = [[_items(part, mapping, data_dir, columns) for part in parts] for parts in files]
    return tuple(pl.concat([RAW_ITEMS.empty(), *each]) for each in tables), tuple(columns.notes())


def table_item_ids(mapping: ItemsTable, data_dir: Path) -> Iterator[pl.Series]:
    """Yield the ids of a table of items, part by part."""
    columns = ColumnReader(mapping.file, mapping.null_words)
    return (columns.ids(part, mapping.item_id) for part in table_parts(mapping, [mapping.item_id], data_dir))


def table_images_tried(mapping: ItemsTable, data_dir: Path, items: pl.DataFrame) -> list[str] | None:
    """Return where the images of two items without one were looked for, relative to the data folder.

    Args:
        mapping: the table of items.
        data_dir: the data folder.
        items: rows of `RAW_ITEMS`.

    Returns:
        The paths; None if the data set has no images.
    """
    if mapping.image_file is None or mapping.image_folder is None:
        return tried_images(items, mapping.image_templates) if mapping.image_templates else None
    missing = items.filter(pl.col("image_path").is_null()).select("source_file", "source_row").head(_ROWS_TO_CHECK)
    columns = ColumnReader(mapping.file, mapping.null_words)
    tried: list[str] = []
    for each in single_files(mapping, data_dir):
        rows = missing.filter(pl.col("source_file") == each.file)["source_row"]
        if rows.is_empty() or len(tried) >= _IMAGES_SHOWN:
            continue
        for part in next(first_parts(each, [mapping.image_file], data_dir, _ROWS_TO_CHECK), []):
            names = text_cells(columns.cells(part, mapping.image_file))
            named = names.filter(part.line_numbers.is_in(rows.implode())).drop_nulls()
            tried.extend(f"{mapping.image_folder}/{name}" for name in named.head(_IMAGES_SHOWN))
    return tried[:_IMAGES_SHOWN]


def item_problems(mapping: ItemsTable, data_dir: Path) -> list[str]:
    """Return what is missing of a table of items: its file, columns, or folder of images."""
    return table_problems(mapping, _item_columns(mapping), data_dir) + _image_problems(mapping, data_dir)


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
    return mapping.image_templates[0] if mapping.image_url is not None and mapping.image_templates else None


def image_notices(mapping: ItemsTable, data_dir: Path, items: pl.DataFrame | None) -> list[str]:
    """Return how many items have an image, with two places where one was looked for; empty if all of them have one.

    Args:
        mapping: the table of items.
        data_dir: the data folder.
        items: the catalogue (`RAW_ITEMS`); None: the first rows of the files are read.
    """
    if not mapping.image_templates and mapping.image_file is None:
        return []
    if items is None:
        items = pl.concat([RAW_ITEMS.empty(), *item_samples(mapping, data_dir, _ROWS_TO_CHECK)[0]])
    items = items.filter(pl.col("item_id").is_not_null()).unique("item_id", keep="first", maintain_order=True)
    missing = items.filter(pl.col("image_path").is_null())["item_id"]
    if missing.is_empty():
        return []
    found = f"{items.height - len(missing):,} of {items.height:,} items have an image."
    tried = [str(data_dir / path) for path in table_images_tried(mapping, data_dir, items) or ()]
    if mapping.image_file is not None:
        shown = f" Not found, for example: {', '.join(tried)}." if tried else ""
        return [
            f"{found} The others have no file in the column {mapping.image_file!r}, or it does not exist in "
            f"{data_dir / str(mapping.image_folder)}. Examples: {', '.join(missing[:2])}.{shown}"
        ]
    advice = (
        "Download them with `macrec fetch images`."
        if mapping.image_url is not None
        else "If they are elsewhere, correct source.items.image: it may be a list of places, and {item_id[:3]} is the "
        "beginning of the id."
    )
    return [f"{found} Not found, for example: {', '.join(tried[:4])}. {advice}"]


def _image_paths(
    part: SourceTable, item_ids: pl.Series, mapping: ItemsTable, data_dir: Path, columns: ColumnReader
) -> pl.Series:
    if mapping.image_file is not None and mapping.image_folder is not None:
        return existing_image_files(text_cells(columns.cells(part, mapping.image_file)), mapping.image_folder, data_dir)
    nulls = pl.repeat(None, len(item_ids), dtype=pl.String, eager=True)
    found = [existing_images(item_ids, template, data_dir) for template in mapping.image_templates]
    return pl.select(pl.coalesce(nulls, *found).alias("image_path")).to_series()


def _interactions(part: SourceTable, mapping: InteractionsTable, columns: ColumnReader) -> pl.DataFrame:
    num_rows = len(part.line_numbers)
    user_ids, item_ids = columns.ids(part, mapping.user_id), columns.ids(part, mapping.item_id)
    ratings = pl.repeat(None, num_rows, dtype=pl.Float64, eager=True)
    if mapping.rating is not None:
        ratings = columns.numbers(part, mapping.rating, decimal=mapping.decimal)
    problems = part.problems()
    if mapping.event is not None:
        kinds = text_cells(columns.cells(part, mapping.event))
        problems, ratings = _other_events(kinds, problems, mapping), _event_weights(kinds, ratings, mapping)
    return pl.DataFrame(
        {
            "user_id": user_ids,
            "item_id": item_ids,
            "rating": ratings,
            "timestamp": columns.times(part, mapping.timestamp, mapping.timestamp_unit, mapping.timestamp_format),
            "source_file": pl.repeat(part.file, num_rows, eager=True),
            "source_row": part.line_numbers,
            "problem": problems,
        }
    )


def _other_events(kinds: pl.Series, problems: pl.Series, mapping: InteractionsTable) -> pl.Series:
    """Return the problems of the rows, with `other_event` for each kind of event that the data set leaves out."""
    detail = pl.format(
        f"{OTHER_EVENT}: '{{}}' is not in `events`", kinds.fill_null("").str.slice(0, _MAX_QUOTED_CHARACTERS)
    )
    is_other = ~kinds.is_in(list(mapping.events)).fill_null(False)
    return pl.select(pl.coalesce(problems, pl.when(is_other).then(detail)).alias("problem")).to_series()


def _event_weights(kinds: pl.Series, ratings: pl.Series, mapping: InteractionsTable) -> pl.Series:
    """Return the weight of each event as its rating; without weights, the ratings as they are."""
    if not isinstance(mapping.events, dict):
        return ratings
    return kinds.replace_strict(mapping.events, default=None, return_dtype=pl.Float64)


def _items(part: SourceTable, mapping: ItemsTable, data_dir: Path, columns: ColumnReader) -> pl.DataFrame:
    item_ids = columns.ids(part, mapping.item_id)
    titles = text_cells(plain_text_cells(columns.cells(part, mapping.title)))
    nulls = pl.repeat(None, len(item_ids), dtype=pl.String, eager=True)
    return pl.DataFrame(
        {
            "item_id": item_ids,
            "title": titles,
            "text": compose_texts(titles, _text_parts(part, mapping, columns)),
            "image_path": _image_paths(part, item_ids, mapping, data_dir, columns),
            "image_url": nulls if mapping.image_url is None else _addresses(part, mapping.image_url, columns),
            "categories": _categories(part, mapping, columns),
            "source_file": pl.repeat(part.file, len(item_ids), eager=True),
            "source_row": part.line_numbers,
            "problem": part.problems(),
        }
    )


def _addresses(part: SourceTable, column: str | int, columns: ColumnReader) -> pl.Series:
    return address_cells(joined_lists(columns.cells(part, column), " "))


def _image_problems(mapping: ItemsTable, data_dir: Path) -> list[str]:
    problems = []
    for template in mapping.image_templates:
        if PLACEHOLDER not in template:
            problems.append(
                f"source.items.image is {template!r}, but it must contain {PLACEHOLDER}, as in "
                f"posters/{PLACEHOLDER}.jpg."
            )
    folders = [image_folder(template) for template in mapping.image_templates]
    if mapping.image_folder is not None:
        folders.append(mapping.image_folder)
    setting = "source.items.image" if mapping.image_folder is None else "source.items.image_folder"
    # Images with an address can still be fetched.
    if problems or mapping.image_url is not None or not folders or any((data_dir / each).is_dir() for each in folders):
        return problems
    return [
        f"The folder {data_dir / folders[0]} for the images does not exist ({setting}). Put it there, set MACREC_DATA "
        f"to the folder that contains it, or remove {setting}: items without an image get an imputed embedding."
    ]


def _interaction_columns(mapping: InteractionsTable) -> list[str | int]:
    optional = (mapping.rating, mapping.event)
    return [mapping.user_id, mapping.item_id, mapping.timestamp, *(each for each in optional if each is not None)]


def _item_columns(mapping: ItemsTable) -> list[str | int]:
    columns = [mapping.item_id, mapping.title]
    columns += [each for each in (mapping.image_url, mapping.image_file) if each is not None]
    for part in (*mapping.texts, *([] if mapping.categories is None else [mapping.categories])):
        columns.extend(part.flags if isinstance(part, FlagColumns) else [part])
    return columns


def _text_parts(table: SourceTable, mapping: ItemsTable, columns: ColumnReader) -> list[pl.Series]:
    return [
        join_flags(part.label, {flag: flag_cells(table.column(flag)) for flag in part.flags})
        if isinstance(part, FlagColumns)
        else text_cells(plain_text_cells(joined_lists(columns.cells(table, part), ", ")))
        for part in mapping.texts
    ]


def _categories(table: SourceTable, mapping: ItemsTable, columns: ColumnReader) -> pl.Series:
    categories = mapping.categories
    if categories is None:
        return pl.repeat(None, len(table.line_numbers), dtype=pl.List(pl.String), eager=True)
    if not isinstance(categories, FlagColumns):
        separator = mapping.categories_separator
        cells = joined_lists(columns.cells(table, categories), separator)
        return category_cells(plain_text_cells(cells), separator=separator)
    names = [pl.when(flag_cells(table.column(flag))).then(pl.lit(flag)) for flag in categories.flags]
    return category_cells(pl.select(pl.concat_list(names)).to_series())
