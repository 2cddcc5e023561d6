"""Reader `mind`: the Microsoft News data set becomes raw interactions and raw items.

    behaviors.tsv   impression, user, time, history, impressions. A history is a list of news that the user had clicked
                    before, `N1 N2`; impressions are the news that were shown, with 1 for a click, `N3-1 N4-0`.
    news.tsv        news, category, subcategory, title, abstract, address and two columns of entities

Both files have no header and are never quoted. A click is an interaction at the time of its line. The histories have no
times, so the news in the history of a user's first line were clicked one minute apart, the last of them one minute
before that line. News that were shown and not clicked are no interactions. Several folders, such as those of training
and development, are read as one log. Any file may be gzipped and end in `.gz`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_parsing import category_cells, compose_texts, id_cells, text_cells
from macrec_pipeline.data.readers.html_text import plain_text_cells
from macrec_pipeline.data.readers.image_files import existing_images, tried_images
from macrec_pipeline.data.readers.reader import Reader, SourceSample, raw_table
from macrec_pipeline.data.readers.row_splitting import OVERFLOW
from macrec_pipeline.data.readers.text_files import (
    BLOCK_BYTES,
    LineBlock,
    invalid_lines,
    line_blocks,
    require_file_or_gz,
    split_cells,
)
from macrec_pipeline.datasets import MindSource
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.time_units import MINUTE_MS
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_BEHAVIORS = ("impression", "user_id", "time", "history", "impressions")
_NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
_TIME_FORMAT = "%m/%d/%Y %I:%M:%S %p"
_CLICK = r"^(\S+)-1$"
_SHOWN = r"^\S+-[01]$"
_SAMPLE_BYTES = 1 << 20
_MAX_QUOTED_CHARACTERS = 40


@dataclass(frozen=True)
class MindReader(Reader):
    """Reads `behaviors.tsv` and `news.tsv` of one or several folders."""

    source: MindSource
    data_dir: Path

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the clicks as parts of `RAW_INTERACTIONS`; `source_row` is the line. Ratings are null.

        A line whose cells or impressions cannot be read is one row with a problem, and a line without a click gives no
        row unless it has the history of its user.

        Raises:
            MissingFileError: neither a file nor its `.gz` exists.
            DataError: a file cannot be read to its end.
        """
        first = self._first_lines() if self.source.history else None
        for folder_number, (path, file) in enumerate(self._files("behaviors.tsv")):
            for block in line_blocks(path, file):
                yield _interactions(_behaviors(block), file, _of_folder(first, folder_number))

    def items(self) -> pl.DataFrame:
        """Return the news as `RAW_ITEMS`: the text is title and abstract, the categories are both categories.

        Raises:
            MissingFileError: neither a file nor its `.gz` exists.
            DataError: a file cannot be read to its end.
        """
        return pl.concat([RAW_ITEMS.empty(), *self._item_parts(BLOCK_BYTES)])

    def problems(self) -> list[str]:
        """Return the missing files, and files of another format; reads no more than the beginning of the files."""
        problems = []
        for name, columns in (("behaviors.tsv", _BEHAVIORS), ("news.tsv", _NEWS)):
            try:
                for path, file in self._files(name):
                    block = next(line_blocks(path, file, block_bytes=_SAMPLE_BYTES), LineBlock(1, b""))
                    num_cells = block.data.partition(b"\n")[0].count(b"\t") + 1
                    if num_cells != len(columns):
                        problems.append(
                            f"{file}: the first line has {num_cells} cells, expected {len(columns)} that are separated "
                            f"by tabs: {', '.join(columns)}."
                        )
            except DataError as error:
                problems.append(str(error))
        return problems

    def source_files(self) -> list[Path]:
        """Return the files of behaviors and news. Raise `MissingFileError`."""
        return [path for name in ("behaviors.tsv", "news.tsv") for path, _ in self._files(name)]

    def sample(self, num_rows: int) -> SourceSample:
        """Return the first clicks and news of each folder, with the histories of the first lines."""
        log = []
        for path, file in self._files("behaviors.tsv"):
            block = next(line_blocks(path, file, block_bytes=_SAMPLE_BYTES), LineBlock(1, b""))
            lines = _behaviors(block)
            first = _earliest(_with_times(lines, 0)) if self.source.history else None
            log.append(_interactions(lines, file, _of_folder(first, 0)).head(num_rows))
        return SourceSample(
            tuple(log), tuple(part.head(num_rows) for part in islice(self._item_parts(_SAMPLE_BYTES), 1))
        )

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for; None without `source.image`."""
        return None if self.source.image is None else tried_images(items, (self.source.image,))

    def _item_parts(self, block_bytes: int) -> Iterator[pl.DataFrame]:
        for path, file in self._files("news.tsv"):
            for block in line_blocks(path, file, block_bytes=block_bytes):
                cells = _cells(block, _NEWS)
                item_ids, titles = id_cells(cells["item_id"]), text_cells(plain_text_cells(cells["title"]))
                abstracts = text_cells(plain_text_cells(cells["abstract"]))
                both = cells.select(pl.concat_list("category", "subcategory").list.drop_nulls()).to_series()
                columns = pl.DataFrame(
                    {
                        "item_id": item_ids,
                        "title": titles,
                        "text": compose_texts(titles, [abstracts]),
                        "categories": category_cells(both),
                        "problem": cells["problem"],
                    }
                )
                if self.source.image is not None:
                    images = existing_images(item_ids, self.source.image, self.data_dir)
                    columns = columns.with_columns(images.alias("image_path"))
                yield raw_table(RAW_ITEMS, columns, file=file, first_row=block.first_line)

    def _first_lines(self) -> pl.DataFrame:
        """Return the earliest line of each user: user_id, folder, line and milliseconds."""
        empty = pl.DataFrame(
            schema={"user_id": pl.String, "folder": pl.Int64, "line": pl.Int64, "milliseconds": pl.Int64}
        )
        found = empty
        for number, (path, file) in enumerate(self._files("behaviors.tsv")):
            for block in line_blocks(path, file):
                found = _earliest(pl.concat([found, _with_times(_behaviors(block), number)]))
        return found

    def _files(self, name: str) -> list[tuple[Path, str]]:
        return [
            require_file_or_gz(self.data_dir, f"{folder}/{name}", what="reader mind") for folder in self.source.folders
        ]


def _cells(block: LineBlock, columns: tuple[str, ...]) -> pl.DataFrame:
    """Split lines into string columns, with `problem` for lines that cannot be split or are not UTF-8."""
    cells = split_cells(block.data, len(columns), "\t")
    last = str(len(columns) - 1)
    count = pl.lit(f"wrong_number_of_cells: expected {len(columns)}, separated by tabs")
    # Only the entities and the history may be empty, so a line without a last cell was cut off.
    is_cut = pl.col(last).is_null() if columns == _BEHAVIORS else pl.lit(False)
    problem: pl.Expr = pl.when(pl.col(OVERFLOW).is_not_null() | is_cut).then(count)
    if lines := invalid_lines(block):
        is_invalid = pl.repeat(False, cells.height, eager=True).scatter(lines, True)
        problem = pl.when(is_invalid).then(pl.lit("invalid_text: bytes that are not UTF-8")).otherwise(problem)
    named = [pl.col(str(position)).alias(name) for position, name in enumerate(columns)]
    table = cells.select(*named, problem.cast(pl.String).alias("problem"))
    # No cell of a line with a problem is trusted: its columns cannot be told apart.
    return table.with_columns(pl.when(pl.col("problem").is_null()).then(pl.col(*columns)))


def _behaviors(block: LineBlock) -> pl.DataFrame:
    """Return the lines of a block with ids, times in milliseconds, lists of news, and `problem`."""
    cells = _cells(block, _BEHAVIORS)
    lists = cells.with_columns(
        pl.int_range(block.first_line, block.first_line + pl.len(), dtype=pl.Int64).alias("line"),
        pl.col("time").str.strip_chars().str.to_datetime(_TIME_FORMAT, time_unit="ms", strict=False).cast(pl.Int64),
        pl.col("history", "impressions").str.strip_chars().str.split(" ").list.filter(pl.element() != ""),
    ).with_columns(id_cells(cells["user_id"]).alias("user_id"))
    unlabelled = pl.col("impressions").list.filter(~pl.element().str.contains(_SHOWN)).list.first()
    wrong = pl.format(
        "wrong_type: the impression '{}' has no 0 or 1 at its end", unlabelled.str.slice(0, _MAX_QUOTED_CHARACTERS)
    )
    return lists.with_columns(pl.coalesce("problem", pl.when(unlabelled.is_not_null()).then(wrong)).alias("problem"))


def _with_times(lines: pl.DataFrame, folder: int) -> pl.DataFrame:
    return lines.filter(
        pl.col("problem").is_null() & pl.col("user_id").is_not_null() & pl.col("time").is_not_null()
    ).select("user_id", pl.lit(folder, dtype=pl.Int64).alias("folder"), "line", pl.col("time").alias("milliseconds"))


def _earliest(lines: pl.DataFrame) -> pl.DataFrame:
    return lines.sort("milliseconds", "folder", "line").unique("user_id", keep="first", maintain_order=True)


def _of_folder(first: pl.DataFrame | None, folder: int) -> pl.Series:
    """Return the lines of a folder whose histories count."""
    if first is None:
        return pl.Series([], dtype=pl.Int64)
    return first.filter(pl.col("folder") == folder)["line"]


def _interactions(lines: pl.DataFrame, file: str, with_history: pl.Series) -> pl.DataFrame:
    """Return the clicks of some lines in their order, each line's history first."""
    is_usable = pl.col("problem").is_null()
    clicked = pl.col("impressions").list.eval(pl.element().str.extract(_CLICK)).list.drop_nulls()
    history = pl.when(pl.col("line").is_in(with_history.implode())).then(pl.col("history"))
    size = history.list.len().cast(pl.Int64)
    ages = pl.int_ranges(-size.fill_null(0), 0)  # in minutes before the line
    usable = lines.filter(is_usable)
    before = usable.select(
        "user_id", "line", history.alias("item_id"), "time", ages.alias("minutes"), pl.lit(0).alias("part")
    ).filter(pl.col("item_id").list.len() > 0)
    before = before.explode("item_id", "minutes").with_columns(pl.col("time") + pl.col("minutes") * MINUTE_MS)
    clicks = usable.select("user_id", "line", clicked.alias("item_id"), "time", pl.lit(1).alias("part"))
    clicks = clicks.filter(pl.col("item_id").list.len() > 0).explode("item_id")
    columns = ["user_id", "item_id", "time", "line", "part", "problem"]
    no_problem = pl.lit(None, dtype=pl.String).alias("problem")
    broken = lines.filter(~is_usable).select(
        "user_id", pl.lit(None, dtype=pl.String).alias("item_id"), "time", "line", pl.lit(1).alias("part"), "problem"
    )
    rows = pl.concat(
        [before.with_columns(no_problem).select(columns), clicks.with_columns(no_problem).select(columns), broken]
    ).sort("line", "part", maintain_order=True)
    table = rows.select(
        "user_id", "item_id", pl.col("time").alias("timestamp"), pl.col("line").alias("source_row"), "problem"
    )
    return raw_table(RAW_INTERACTIONS, table, file=file)
