"""The interface of a reader: it turns the files of one data set into the raw tables.

`registry` finds the reader that a data set names and creates it. The built-in readers are the other modules of this
package; docs/data.md shows how to write your own.
"""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Protocol

import polars as pl
from pydantic import BaseModel

from macrec_pipeline.data.readers.column_checks import LostCells
from macrec_pipeline.data.readers.image_files import tried_images
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.runtime.text_sanitizing import one_line_error
from macrec_pipeline.schemas import TableSchema


@dataclass(frozen=True)
class SourceSample:
    """The first rows of the files of a data set, as its reader understands them.

    Attributes:
        interactions: `RAW_INTERACTIONS`, the first rows of each file of the log.
        items: `RAW_ITEMS`, the first rows of each file of the catalogue.
        notes: what a person should know about these rows, one sentence each.
    """

    interactions: tuple[pl.DataFrame, ...]
    items: tuple[pl.DataFrame, ...]
    notes: tuple[str, ...] = ()


class Reader(Protocol):
    """Reads the files of one data set. Subclass it to write your own reader.

    The pipeline creates a reader with two positional arguments: its options and the data folder (`MACREC_DATA`). The
    options are the keys under `source:` in the data set's YAML file, without `reader`. They arrive as a plain mapping,
    or as an instance of `options_model` if the class has one.

    Expected errors are raised as `MissingFileError`, `SchemaError` or `DataError` (`macrec_pipeline.errors`), whose
    messages are shown without a traceback.

    Attributes:
        options_model: a pydantic model that validates the options; None passes them on unchecked.
    """

    options_model: ClassVar[type[BaseModel] | None] = None

    @abstractmethod
    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the interaction log as parts of `RAW_INTERACTIONS`, one row per source row, in the order of the file.

        Only one part has to fit into memory at a time. A row that cannot be used stays in the table: its unreadable
        cells are null, or `problem` says what is wrong, and cleaning moves it to quarantine.
        """
        ...

    @abstractmethod
    def items(self) -> pl.DataFrame:
        """Return the catalogue as `RAW_ITEMS`, one row per source row, with unusable rows as in the log."""
        ...

    @abstractmethod
    def problems(self) -> list[str]:
        """Return what must be fixed before the files can be read, one sentence per problem; empty if nothing.

        Looks for files and reads headers, so that it is fast for a data set of any size.
        """
        ...

    @abstractmethod
    def source_files(self) -> list[Path]:
        """Return the files that hold the interactions and the items, without images.

        Their content decides whether there is new data (`on_new_data`).

        Raises:
            MissingFileError: a file does not exist.
        """
        ...

    def notes(self) -> list[str]:
        """Return what a person should know about the first rows, one sentence each. Called if there is no problem."""
        return []

    def lost_cells(self) -> list[LostCells]:
        """Return which cells the last complete call of `interaction_parts` or `items` turned into missing values."""
        return []

    def image_template(self) -> str | None:
        """Return where `macrec fetch images` stores the images, or None if the items have no image addresses.

        The template is relative to the data folder and contains `{item_id}`, as in `posters/{item_id}.jpg`.
        """
        return None

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first rows of the files. Called if there is no problem.

        The default reads the first part of the log and the whole catalogue. A reader of several files, or of a large
        catalogue, does better.

        Args:
            num_rows: the number of rows to read of each file.
        """
        log = tuple(part.head(num_rows) for part in islice(self.interaction_parts(), 1))
        return SourceSample(log, (self.items().head(num_rows),), tuple(self.notes()))

    def item_id_parts(self) -> Iterator[pl.Series]:
        """Yield the ids of the catalogue, null where one is missing, in parts that fit into memory."""
        yield self.items()["item_id"]

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for, relative to the data folder.

        Args:
            items: rows of `RAW_ITEMS`; two of those without an image are enough.

        Returns:
            The paths; None if the data set has no images.
        """
        template = self.image_template()
        return None if template is None else tried_images(items, (template,))

    def notices(self, items: pl.DataFrame | None = None) -> list[str]:
        """Return what a person should know about files that can be read, one sentence or two each.

        Args:
            items: the catalogue (`RAW_ITEMS`) if it has been read. Without it, only the beginning of the files is read.
        """
        return []


def raw_table(schema: TableSchema, columns: pl.DataFrame, *, file: str, first_row: int = 1) -> pl.DataFrame:
    """Complete a table to `RAW_INTERACTIONS` or `RAW_ITEMS`.

    Columns that `columns` lacks are added: `source_file`, `source_row` (counted up from `first_row`), and nulls for the
    nullable ones. Columns are cast to their types and put in the order of the schema.

    Args:
        schema: `RAW_INTERACTIONS` or `RAW_ITEMS`.
        columns: the columns that were read, by the names of the schema.
        file: path of the file below the data folder, for `source_file`.
        first_row: line number of the first row of `columns`.

    Raises:
        SchemaError: a required column is missing or has nulls, or values cannot be cast; names the column.
    """
    added = {name: pl.lit(None) for name in schema.nullable}
    added["source_file"] = pl.lit(file)
    added["source_row"] = pl.int_range(first_row, first_row + pl.len(), dtype=pl.Int64)
    completed = columns.with_columns(
        expression.alias(name) for name, expression in added.items() if name not in columns.columns
    )
    casts = [pl.col(name).cast(dtype) for name, dtype in schema.columns.items() if name in completed.columns]
    try:
        table = completed.select(casts)
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"{schema.name} ({file}): {one_line_error(error)}") from None
    return schema.check(table, file)
