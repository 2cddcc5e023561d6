"""How a data set was understood: the first rows of each of its files, ready to be shown to a person.

`macrec datasets validate` shows this before anything is computed, so that a wrong column, unit, separator or folder is
seen within seconds. The first rows of each file are read, and all ids of the catalogue up to `MAX_CATALOGUE_IDS`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from macrec_pipeline.data.id_matching import IdMatch, match_ids
from macrec_pipeline.data.readers.registry import open_reader
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.schemas import OTHER_EVENT, RAW_INTERACTIONS, RAW_ITEMS

NUM_ROWS = 1_000
"""The rows that are read of each file."""
MAX_CATALOGUE_IDS = 1_000_000


@dataclass(frozen=True)
class SourcePreview:
    """What the first rows of a data set hold.

    Attributes:
        interactions: `RAW_INTERACTIONS`, the first rows of each file of the log.
        items: `RAW_ITEMS`, the first rows of each file of the catalogue.
        log_files: one row per file of the log: file, rows, first and last (times in ms since the epoch).
        match: how many of these interactions name an item of the catalogue; None if there are no rows to compare.
        has_all_ids: whether all ids of the catalogue were compared.
        images_tried: where images were looked for in vain, relative to the data folder; None if there are no images.
        problems: why no row of the log or of the catalogue can be used, one sentence each; empty if some can.
        notes: what a person should know about these rows, one sentence each.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    log_files: pl.DataFrame
    match: IdMatch | None
    has_all_ids: bool
    images_tried: tuple[str, ...] | None
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def preview_source(spec: DatasetSpec, data_dir: Path, *, num_rows: int = NUM_ROWS) -> SourcePreview:
    """Read the first rows of each file of a data set that has no problem.

    Args:
        spec: the data set.
        data_dir: the data folder.
        num_rows: the rows to read of each file.

    Raises:
        DataError: a file cannot be read.
    """
    reader = open_reader(spec, data_dir)
    sample = reader.sample(num_rows)
    interactions = pl.concat([RAW_INTERACTIONS.empty(), *sample.interactions])
    items = pl.concat([RAW_ITEMS.empty(), *sample.items])
    usable = interactions.filter(pl.col("problem").is_null() & pl.col("item_id").is_not_null())
    match, has_all_ids = None, True
    if usable.height:
        catalogue, has_all_ids = _first_ids(reader.item_id_parts())
        match = match_ids(usable["item_id"], catalogue)
    tried = reader.images_tried(items)
    max_share = spec.config().cleaning.max_quarantined_share
    problems, notes = [], list(sample.notes)
    for name, files, rows, needed in (
        ("log", sample.interactions, interactions, ("user_id", "item_id", "timestamp")),
        ("catalogue", sample.items, items, ("item_id",)),
    ):
        if rows.is_empty() and files:
            problems.append(f"The {name} has no rows.")
        unusable = _unusable_rows(rows, needed)
        if unusable is None:
            continue
        share, sentence = unusable
        if share == 1:
            problems.append(f"The {name} has no usable row: {sentence}")
        elif share > max_share:
            notes.append(f"A run stops, because too many rows of the {name} are unusable: {sentence}")
    return SourcePreview(
        interactions,
        items,
        _files(sample.interactions),
        match,
        has_all_ids,
        None if tried is None else tuple(tried),
        tuple(problems),
        tuple(notes),
    )


def _unusable_rows(rows: pl.DataFrame, needed: tuple[str, ...]) -> tuple[float, str] | None:
    """Return the share of rows that cleaning cannot use, and a sentence about them; None if there are none."""
    fault = pl.col("problem").is_not_null() & ~pl.col("problem").str.starts_with(OTHER_EVENT)
    reason = pl.coalesce(
        pl.when(fault).then(pl.col("problem")),
        *(pl.when(pl.col(name).is_null()).then(pl.lit(f"{name} is missing or unreadable")) for name in needed),
    )
    unusable = rows.select("source_file", "source_row", reason=reason).filter(pl.col("reason").is_not_null())
    if unusable.is_empty():
        return None
    file, row, first = unusable.row(0)
    return unusable.height / rows.height, (
        f"{unusable.height:,} of the {rows.height:,} rows that were read. The first is row {row} of {file}: {first}."
    )


def _first_ids(parts: Iterator[pl.Series]) -> tuple[pl.Series, bool]:
    """Return the ids of a catalogue up to `MAX_CATALOGUE_IDS`, and whether these are all of them."""
    found, num_found = [pl.Series("item_id", [], dtype=pl.String)], 0
    for part in parts:
        found.append(part.alias("item_id"))
        num_found += len(part)
        if num_found >= MAX_CATALOGUE_IDS:
            return pl.concat(found), False
    return pl.concat(found), True


def _files(log: tuple[pl.DataFrame, ...]) -> pl.DataFrame:
    time = pl.col("timestamp")
    files = [
        part.select(
            pl.col("source_file").first().alias("file"),
            pl.len().cast(pl.Int64).alias("rows"),
            time.min().alias("first"),
            time.max().alias("last"),
        )
        for part in log
        if part.height
    ]
    schema = {"file": pl.String, "rows": pl.Int64, "first": pl.Int64, "last": pl.Int64}
    return pl.concat([pl.DataFrame(schema=schema), *files])
