"""Reader `sequences`: lines of `user item item ...` become raw interactions and raw items.

The benchmarks of S3-Rec are published in this form: one line per user, with the items in time order. A user may also
have several lines, which continue the sequence; so the form of SASRec, `user item` with one line per interaction, is
read too. The file holds no times, so the position in the sequence stands in for the time. Without a catalogue, the ids
of the file are the titles.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_checks import LostCells
from macrec_pipeline.data.readers.items_of_log import items_of_log
from macrec_pipeline.data.readers.mapped_files import files_of
from macrec_pipeline.data.readers.reader import Reader, SourceSample, raw_table
from macrec_pipeline.data.readers.sequence_times import made_up_times
from macrec_pipeline.data.readers.tables import (
    image_notices,
    image_template_of_items,
    item_problems,
    item_samples,
    read_items,
    table_images_tried,
    table_item_ids,
)
from macrec_pipeline.data.readers.text_files import LineBlock, line_blocks, require_file_or_gz
from macrec_pipeline.datasets import SequencesSource
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS


@dataclass(frozen=True)
class SequencesReader(Reader):
    """Reads one file of sequences, and a table of items if there is one."""

    source: SequencesSource
    data_dir: Path
    _lost: list[LostCells] = field(default_factory=list, compare=False, repr=False)

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the sequences as parts of `RAW_INTERACTIONS`; `source_row` counts interactions from 1.

        Raises:
            MissingFileError: neither the file nor its `.gz` exists.
            DataError: the file cannot be read to its end.
            SchemaError: the file is not UTF-8 text.
        """
        path, file = self._find()
        lengths = pl.DataFrame(schema={"user_id": pl.String, "length": pl.Int64})  # of the sequences read so far
        first_row = 1
        for block in line_blocks(path, file):
            rows = _split(block, file).join(lengths, on="user_id", how="left", maintain_order="left")
            position = pl.int_range(pl.len()).over("user_id") + pl.col("length").fill_null(0)
            columns = rows.select("user_id", "item_id", "problem", made_up_times(position).alias("timestamp"))
            yield raw_table(RAW_INTERACTIONS, columns, file=file, first_row=first_row)
            first_row += rows.height
            added = rows.group_by("user_id").agg(pl.len().cast(pl.Int64).alias("length"))
            lengths = pl.concat([lengths, added]).group_by("user_id").agg(pl.col("length").sum())

    def items(self) -> pl.DataFrame:
        """Return the catalogue as `RAW_ITEMS`; without one, each id in the order of its first interaction.

        Raises:
            MissingFileError: a file does not exist.
            SchemaError: a column is missing, or a file has another format.
        """
        if self.source.items is not None:
            return read_items(self.source.items, self.data_dir, self._lost)
        return items_of_log(self.interaction_parts(), self._find()[1])

    def lost_cells(self) -> list[LostCells]:
        """Return which cells of the catalogue the last complete reading turned into missing values, per column."""
        return list(self._lost)

    def problems(self) -> list[str]:
        """Return the missing files and columns; reads no more than the beginning of the files."""
        problems = []
        try:
            path, file = self._find()
            block = next(line_blocks(path, file, block_bytes=1 << 16), LineBlock(1, b""))
            if not _split(block, file)["item_id"].count():
                problems.append(
                    f"{file}: no line has a user and an item. The reader sequences expects lines of a user and the "
                    "user's items in time order, separated by spaces or tabs, as in `7 12 3 40`."
                )
        except (MissingFileError, SchemaError) as error:
            problems.append(str(error))
        return problems + ([] if self.source.items is None else item_problems(self.source.items, self.data_dir))

    def source_files(self) -> list[Path]:
        """Return the file of the sequences and the files of the items. Raises `MissingFileError`."""
        items = self.source.items
        return [self._find()[0], *([] if items is None else files_of(items, self.data_dir))]

    def image_template(self) -> str | None:
        """Return `source.items.image` if the items have image addresses."""
        return None if self.source.items is None else image_template_of_items(self.source.items)

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first interactions, and the first rows of the catalogue if there is one."""
        log = tuple(part.head(num_rows) for part in islice(self.interaction_parts(), 1))
        if self.source.items is None:
            return SourceSample(log, (self.items().head(num_rows),))
        items, notes = item_samples(self.source.items, self.data_dir, num_rows)
        return SourceSample(log, items, notes)

    def item_id_parts(self) -> Iterator[pl.Series]:
        """Yield the ids of the catalogue; without one, those of the sequences."""
        if self.source.items is not None:
            return table_item_ids(self.source.items, self.data_dir)
        return iter([self.items()["item_id"]])

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for; None if there are no images."""
        return None if self.source.items is None else table_images_tried(self.source.items, self.data_dir, items)

    def notices(self, items: pl.DataFrame | None = None) -> list[str]:
        """Return how many items have an image, if some have none."""
        return [] if self.source.items is None else image_notices(self.source.items, self.data_dir, items)

    def _find(self) -> tuple[Path, str]:
        return require_file_or_gz(self.data_dir, self.source.file, what="source.file")


def _split(block: LineBlock, file: str) -> pl.DataFrame:
    """Return one row per item of a line: user_id, item_id and problem; blank lines give no row."""
    try:
        text = block.data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = block.first_line + block.data[: error.start].count(b"\n")
        raise SchemaError(
            f"{file}, line {line}: the byte 0x{block.data[error.start]:02x} is not UTF-8. The reader sequences expects "
            "a text file with lines of a user and the user's items."
        ) from None
    lines = text.split("\n")
    table = pl.DataFrame(
        {"cells": pl.Series(lines, dtype=pl.String).str.replace_all(r"\s+", " ").str.strip_chars(" ")}
    ).with_row_index("line", offset=block.first_line)
    cells = table.filter(pl.col("cells") != "").with_columns(pl.col("cells").str.split(" "))
    rows = cells.select(
        "line", pl.col("cells").list.first().alias("user_id"), pl.col("cells").list.slice(1).alias("item_id")
    ).explode("item_id", empty_as_null=True)
    problem = pl.format("wrong_number_of_cells: line {} has a user, but no item", pl.col("line"))
    return rows.select("user_id", "item_id", pl.when(pl.col("item_id").is_null()).then(problem).alias("problem"))
