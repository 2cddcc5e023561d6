"""Reader `tables`: CSV, TSV, parquet or JSON lines with a column mapping become raw interactions and raw items.

Every row of a file becomes a row of the result. Cells that cannot be read are null; cleaning moves those rows to
quarantine, with file and line.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
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
from macrec_pipeline.data.readers.json_tables import JsonTable, json_table_parts, missing_fields
from macrec_pipeline.data.readers.list_literals import joined_lists
from macrec_pipeline.data.readers.parquet_columns import (
    Meaning,
    as_plain_cells,
    parquet_columns,
    type_problem,
    unreadable_parquet,
)
from macrec_pipeline.data.readers.reader import Reader, SourceSample
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
    TablesSource,
)
from macrec_pipeline.errors import ConfigError, DataError, SchemaError
from macrec_pipeline.schemas import OTHER_EVENT, RAW_INTERACTIONS, RAW_ITEMS

_MAX_QUOTED_CHARACTERS = 40
_ROWS_TO_CHECK = 1_000  # by `macrec datasets validate`
_IMAGES_SHOWN = 2
_PARQUET_ROWS = 1_000_000  # read at once
_SAMPLE_BYTES = 1 << 18  # of the log, read by `macrec datasets validate`
_SECTIONS: dict[type[TableFile], str] = {
    InteractionsTable: "source.interactions",
    ItemsTable: "source.items",
    StockTable: "recommendations.stock",
    RulesTable: "recommendations.rules",
}
"""Where a data set's file maps the columns of each kind of table."""


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
        for part in _parts(mapping, _interaction_columns(mapping), self.data_dir):
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
        problems = _column_problems(mapping, _interaction_columns(mapping), self.data_dir)
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
        files = _first_parts(mapping, _interaction_columns(mapping), self.data_dir, num_rows)
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
    parts = _parts(mapping, _item_columns(mapping), data_dir)
    frame = pl.concat([RAW_ITEMS.empty(), *(_items(part, mapping, data_dir, columns) for part in parts)])
    lost[:] = columns.check()
    return RAW_ITEMS.check(frame, mapping.file)


def item_samples(
    mapping: ItemsTable, data_dir: Path, num_rows: int
) -> tuple[tuple[pl.DataFrame, ...], tuple[str, ...]]:
    """Return the first rows of each file of a table of items as `RAW_ITEMS`, and notes about their columns."""
    columns = ColumnReader(mapping.file, mapping.null_words)
    files = _first_parts(mapping, _item_columns(mapping), data_dir, num_rows)
    tables = [[_items(part, mapping, data_dir, columns) for part in parts] for parts in files]
    return tuple(pl.concat([RAW_ITEMS.empty(), *each]) for each in tables), tuple(columns.notes())


def table_item_ids(mapping: ItemsTable, data_dir: Path) -> Iterator[pl.Series]:
    """Yield the ids of a table of items, part by part."""
    columns = ColumnReader(mapping.file, mapping.null_words)
    return (columns.ids(part, mapping.item_id) for part in _parts(mapping, [mapping.item_id], data_dir))


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
    for each in _single_files(mapping, data_dir):
        rows = missing.filter(pl.col("source_file") == each.file)["source_row"]
        if rows.is_empty() or len(tried) >= _IMAGES_SHOWN:
            continue
        for part in next(_first_parts(each, [mapping.image_file], data_dir, _ROWS_TO_CHECK), []):
            names = text_cells(columns.cells(part, mapping.image_file))
            named = names.filter(part.line_numbers.is_in(rows.implode())).drop_nulls()
            tried.extend(f"{mapping.image_folder}/{name}" for name in named.head(_IMAGES_SHOWN))
    return tried[:_IMAGES_SHOWN]


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


def table_parts(mapping: TableFile, columns: Iterable[str | int], data_dir: Path) -> Iterator[SourceTable]:
    """Yield the rows of a table's files in parts, with at least the columns that are named.

    Raises:
        MissingFileError: a file does not exist.
        SchemaError: a column is missing or has a wrong type, or a file cannot be split into rows.
    """
    return _parts(mapping, columns, data_dir)


def table_problems(mapping: TableFile, columns: Iterable[str | int], data_dir: Path) -> list[str]:
    """Return what is missing of a table: files, columns, or columns of a usable type."""
    return _column_problems(mapping, columns, data_dir)


def _first_parts(
    mapping: TableFile, columns: Iterable[str | int], data_dir: Path, num_rows: int
) -> Iterator[list[SourceTable]]:
    """Yield the first rows of each file, as parts."""
    columns = list(columns)
    for each in _single_files(mapping, data_dir):
        found: list[SourceTable] = []
        left = num_rows
        for part in _parts(each, columns, data_dir, block_bytes=_SAMPLE_BYTES, parquet_rows=num_rows):
            found.append(_first_rows(part, left))
            left -= len(part.line_numbers)
            if left <= 0:
                break
        yield found


def _first_rows(part: SourceTable, num_rows: int) -> SourceTable:
    first = {
        name: value.head(num_rows)
        for name in ("cells", "line_numbers", "has_extra_cells", "row_problems")
        if (value := getattr(part, name, None)) is not None
    }
    return replace(part, **first)


def _image_paths(
    part: SourceTable, item_ids: pl.Series, mapping: ItemsTable, data_dir: Path, columns: ColumnReader
) -> pl.Series:
    if mapping.image_file is not None and mapping.image_folder is not None:
        return existing_image_files(text_cells(columns.cells(part, mapping.image_file)), mapping.image_folder, data_dir)
    nulls = pl.repeat(None, len(item_ids), dtype=pl.String, eager=True)
    found = [existing_images(item_ids, template, data_dir) for template in mapping.image_templates]
    return pl.select(pl.coalesce(nulls, *found).alias("image_path")).to_series()


def files_of(mapping: TableFile, data_dir: Path) -> list[Path]:
    """Return the files of a table in the order in which they are read.

    Raises:
        MissingFileError: a file does not exist.
        SchemaError: a folder holds files of several formats.
    """
    return [data_dir / each.file for each in _single_files(mapping, data_dir)]


def _single_files(mapping: TableFile, data_dir: Path) -> list[TableFile]:
    """Return the mapping of each file of a table, in the order of their paths."""
    section = next(name for kind, name in _SECTIONS.items() if isinstance(mapping, kind))
    files = matching_files(data_dir, mapping.file, file_format=mapping.format, what=f"{section}.file")
    return [mapping.model_copy(update={"file": file}) for file in files]


def _column_problems(mapping: TableFile, columns: Iterable[str | int], data_dir: Path) -> list[str]:
    columns = list(columns)
    try:
        files = _single_files(mapping, data_dir)
    except DataError as error:
        return [str(error)]
    return [problem for each in files for problem in _column_problems_of_file(each, columns, data_dir)]


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


def _parts(
    mapping: TableFile,
    columns: Iterable[str | int],
    data_dir: Path,
    *,
    block_bytes: int = BLOCK_BYTES,
    parquet_rows: int = _PARQUET_ROWS,
) -> Iterator[SourceTable]:
    columns = list(columns)
    for each in _single_files(mapping, data_dir):
        if _format(each) == "jsonl":
            partitions = partition_columns(each.file)
            fields = [column for column in columns if column not in partitions]
            parts: Iterator[SourceTable] = json_table_parts(
                data_dir / each.file,
                each.file,
                fields,
                _lists(each, fields),
                block_bytes=block_bytes,
                encoding=each.encoding,
            )
        else:
            partitions = _partitions(each.file, _header(data_dir / each.file, each)[0])
            own_columns = [column for column in columns if column not in partitions]
            parts = _parts_of_file(each, own_columns, data_dir, block_bytes=block_bytes, parquet_rows=parquet_rows)
        for part in parts:
            yield _with_partitions(part, partitions) if partitions else part


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
        yield from read_delimited_parts(
            path,
            mapping.file,
            separator=_separator(mapping),
            header=mapping.header,
            quoting=_quoting(mapping),
            encoding=mapping.encoding,
            block_bytes=block_bytes,
        )
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
