"""Reader `recbole`: the atomic files of RecBole become raw interactions and raw items.

`X.inter` holds one interaction per line and `X.item` one item per line, separated by tabs and never quoted. Each name
in the header has a type, as in `user_id:token`, `timestamp:float` or `genre:token_seq`; the tokens of a sequence are
separated by spaces. Without `X.item`, the ids of the interactions are the items and their titles. Any file may be
gzipped and end in `.gz`. `X.user` and the other files of a data set are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_checks import ColumnReader, LostCells
from macrec_pipeline.data.readers.column_parsing import (
    category_cells,
    compose_texts,
    text_cells,
)
from macrec_pipeline.data.readers.html_text import plain_text_cells
from macrec_pipeline.data.readers.image_files import existing_images, tried_images
from macrec_pipeline.data.readers.items_of_log import items_of_log
from macrec_pipeline.data.readers.reader import Reader, SourceSample, raw_table
from macrec_pipeline.data.readers.row_splitting import OVERFLOW
from macrec_pipeline.data.readers.text_files import (
    LineBlock,
    SourceTable,
    invalid_lines,
    line_blocks,
    require_file_or_gz,
    split_cells,
)
from macrec_pipeline.datasets import RecboleSource
from macrec_pipeline.errors import DataError, MissingFileError, SchemaError
from macrec_pipeline.runtime.secret_addresses import without_secrets
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_TYPES = ("token", "token_seq", "float", "float_seq")
_HEADER_BYTES = 1 << 16


@dataclass(frozen=True)
class RecboleReader(Reader):
    """Reads `X.inter`, and `X.item` if it exists."""

    source: RecboleSource
    data_dir: Path
    _lost: list[LostCells] = field(default_factory=list, compare=False, repr=False)

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield `X.inter` as parts of `RAW_INTERACTIONS`. `source.rating` may be missing from the file.

        Raises:
            MissingFileError: neither the file nor its `.gz` exists.
            DataError: the file cannot be read to its end.
            SchemaError: the header is not that of an atomic file, a field is missing, or no time or no rating of the
                file can be read.
        """
        path, file = self._find("inter")
        reader = ColumnReader(file, null_words=())
        yield from self._parts(path, file, reader)
        self._lost[:] = reader.check()

    def _parts(self, path: Path, file: str, reader: ColumnReader) -> Iterator[pl.DataFrame]:
        source = self.source
        fields = _fields(path, file)
        for name in (source.user_id, source.item_id, source.timestamp):
            _require_field(name, fields, file)
        for cells, first_row in _cells(path, file, fields):
            part = _as_source_table(cells, file, fields, first_row)
            columns = cells.select(
                reader.ids(part, source.user_id).alias("user_id"),
                reader.ids(part, source.item_id).alias("item_id"),
                reader.times(part, source.timestamp, source.timestamp_unit, None).alias("timestamp"),
                "problem",
            )
            if source.rating in fields:
                columns = columns.with_columns(reader.numbers(part, source.rating, decimal=".").alias("rating"))
            yield raw_table(RAW_INTERACTIONS, columns, file=file, first_row=first_row)

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first rows of both files, and what the log lost per field."""
        path, file = self._find("inter")
        reader = ColumnReader(file, null_words=())
        log = tuple(part.head(num_rows) for part in islice(self._parts(path, file, reader), 1))
        return SourceSample(log, (self.items().head(num_rows),), tuple(reader.notes()))

    def items(self) -> pl.DataFrame:
        """Return `X.item` as `RAW_ITEMS`; without it, each id in the order of its first interaction.

        Raises:
            MissingFileError: `X.inter` does not exist.
            DataError: a file cannot be read to its end.
            SchemaError: a header is not that of an atomic file, or a field is missing.
        """
        if self._item_file() is None:
            return items_of_log(self.interaction_parts(), self._find("inter")[1])
        path, file = self._find("item")
        fields = _fields(path, file)
        for name in self._item_fields():
            _require_field(name, fields, file)
        reader = ColumnReader(file, null_words=())
        parts = [
            self._items(cells, _as_source_table(cells, file, fields, first_row), reader, first_row)
            for cells, first_row in _cells(path, file, fields)
        ]
        return pl.concat([RAW_ITEMS.empty(), *parts])

    def lost_cells(self) -> list[LostCells]:
        """Return which cells of the log the last complete reading turned into missing values, per field."""
        return list(self._lost)

    def problems(self) -> list[str]:
        """Return the missing files and fields, and fields that are unreadable in the first rows."""
        source = self.source
        needed = {"inter": [source.user_id, source.item_id, source.timestamp]}
        if self._item_file() is not None:
            needed["item"] = self._item_fields()
        problems = []
        for suffix, names in needed.items():
            try:
                path, file = self._find(suffix)
                fields = _fields(path, file)
            except DataError as error:
                problems.append(str(error))
                continue
            for name in names:
                try:
                    _require_field(name, fields, file)
                except SchemaError as error:
                    problems.append(str(error))
        if not problems:
            path, file = self._find("inter")
            reader = ColumnReader(file, null_words=())
            try:
                for _ in islice(self._parts(path, file, reader), 1):
                    reader.require_readable()
            except DataError as error:
                problems.append(str(error))
        return problems

    def source_files(self) -> list[Path]:
        """Return `X.inter`, and `X.item` if it exists. Raises `MissingFileError`."""
        item_file = self._item_file()
        return [self._find("inter")[0], *([] if item_file is None else [item_file])]

    def _items(self, cells: pl.DataFrame, part: SourceTable, reader: ColumnReader, first_row: int) -> pl.DataFrame:
        source = self.source
        item_ids, titles = reader.ids(part, source.item_id), text_cells(plain_text_cells(cells[source.title]))
        texts = [text_cells(plain_text_cells(cells[name])) for name in source.texts]
        columns = [item_ids.alias("item_id"), titles.alias("title"), compose_texts(titles, texts).alias("text")]
        if source.categories is not None:
            columns.append(category_cells(cells[source.categories], separator=" ").alias("categories"))
        if source.image is not None:
            columns.append(existing_images(item_ids, source.image, self.data_dir).alias("image_path"))
        return raw_table(RAW_ITEMS, cells.select(*columns, "problem"), file=part.file, first_row=first_row)

    def _item_fields(self) -> list[str]:
        source = self.source
        optional = () if source.categories is None else (source.categories,)
        return [source.item_id, source.title, *source.texts, *optional]

    def _item_file(self) -> Path | None:
        try:
            return self._find("item")[0]
        except MissingFileError:
            return None

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for; None without `source.image`."""
        return None if self.source.image is None else tried_images(items, (self.source.image,))

    def _find(self, suffix: str) -> tuple[Path, str]:
        relative = f"{self.source.folder}/{self.source.prefix}.{suffix}"
        return require_file_or_gz(self.data_dir, relative, what="reader recbole")


def _as_source_table(cells: pl.DataFrame, file: str, fields: list[str], first_row: int) -> SourceTable:
    columns = [cells[name].alias(str(position)) for position, name in enumerate(fields)]
    line_numbers = pl.int_range(first_row, first_row + cells.height, dtype=pl.Int64, eager=True)
    return SourceTable(file, tuple(fields), len(fields), pl.DataFrame(columns), line_numbers)


def _fields(path: Path, file: str) -> list[str]:
    """Return the names of the fields from the header, without their types.

    Raises:
        SchemaError: a name has no type, or two fields have one name.
    """
    block = next(line_blocks(path, file, block_bytes=_HEADER_BYTES), LineBlock(1, b""))
    header = block.data.partition(b"\n")[0].decode("utf-8", errors="replace").rstrip("\r")
    names = []
    for cell in header.split("\t"):
        name, _, kind = cell.strip().rpartition(":")
        if not name or kind not in _TYPES:
            raise SchemaError(
                f"{file}: the first line is {without_secrets(header)[:200]!r}, expected the header of an atomic file "
                f"of RecBole: names with types ({', '.join(_TYPES)}), separated by tabs, as in user_id:token."
            )
        names.append(name)
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise SchemaError(f"{file}: the header has several fields named {repeated!r}. Rename or remove one.")
    return names


def _require_field(name: str, fields: list[str], file: str) -> None:
    if name not in fields:
        raise SchemaError(
            f"{file} has no field {name!r}. Its fields are: {', '.join(fields)}. Set the name under `source` in the "
            "data set's YAML file."
        )


def _cells(path: Path, file: str, fields: list[str]) -> Iterator[tuple[pl.DataFrame, int]]:
    """Yield the cells of each block as string columns named by field, with `problem`, and its first line."""
    for block in line_blocks(path, file):
        if block.first_line == 1:
            block = LineBlock(2, block.data.partition(b"\n")[2])
        cells = split_cells(block.data, len(fields), "\t")
        reason = pl.lit(f"wrong_number_of_cells: more than the {len(fields)} fields of the header")
        problem: pl.Expr = pl.when(pl.col(OVERFLOW).is_not_null()).then(reason)
        if lines := invalid_lines(block):
            is_invalid = pl.repeat(False, cells.height, eager=True).scatter(lines, True)
            problem = pl.when(is_invalid).then(pl.lit("invalid_text: bytes that are not UTF-8")).otherwise(problem)
        named = (pl.col(str(position)).alias(name) for position, name in enumerate(fields))
        table = cells.select(*named, problem.cast(pl.String).alias("problem"))
        # No cell of a line with a problem is trusted: its fields cannot be told apart, or its bytes were replaced.
        yield table.with_columns(pl.when(pl.col("problem").is_null()).then(pl.col(*fields))), block.first_line
