"""Raw interactions and raw items -> clean interactions, the catalogue, and the quarantine (MACRec section 4.1: 5-core).

No row disappears: each raw row is kept or lies in quarantine with the first reason that applied, and the result does
not depend on the order of the lines in the files, unless `ties: position` says that this order counts. The steps, in
this order:

    interactions  what the reader found wrong (invalid_json, wrong_type, wrong_number_of_cells), missing_user_id,
                  missing_item_id, missing_timestamp, timestamp_out_of_range, non_finite_rating, missing_rating and
                  below_min_rating (with `min_rating` only); with `session_gap_minutes` sessions are users from here
                  on; unknown_item, duplicate, then k_core and too_short together until nothing changes
    items         what the reader found wrong, missing_item_id, duplicate_item, no_interactions (nobody ever touched
                  it), k_core (who did is gone)

The catalogue holds only items that survive the k-core, as in the paper: leave-one-out ranks nothing else.
"""

import time
from dataclasses import dataclass

import polars as pl

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.core import iterate_k_core
from macrec_pipeline.data.sessions import MINUTE_MS, split_sessions
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import INTERACTIONS, ITEMS, QUARANTINE, RAW_INTERACTIONS, RAW_ITEMS

EARLIEST_MS = 631_152_000_000
"""1990-01-01 UTC: before the first shop that kept such a log."""
DAY_MS = 86_400_000

_SOURCE = ["source_file", "source_row"]


@dataclass(frozen=True)
class CleanTables:
    """What cleaning leaves: `INTERACTIONS`, `ITEMS` and, with every other raw row, `QUARANTINE`."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    quarantine: pl.DataFrame


def latest_ms() -> int:
    """The latest plausible time of an interaction: a day from now, for clocks in other zones."""
    return int(time.time() * 1000) + DAY_MS


def clean(
    raw_interactions: pl.DataFrame, raw_items: pl.DataFrame, config: CleaningConfig, *, latest: int | None = None
) -> CleanTables:
    """Drop what cannot be used, with the reason, and keep the k-core.

    Args:
        raw_interactions: `RAW_INTERACTIONS`.
        raw_items: `RAW_ITEMS`.
        config: thresholds and the policy for repeated rows.
        latest: the latest accepted time in ms since the epoch; None: a day from now.

    Raises:
        SchemaError: a raw table is not of its schema.
        DataError: nothing is left; says which step removed how many rows.
    """
    RAW_INTERACTIONS.check(raw_interactions)
    RAW_ITEMS.check(raw_items)
    catalogue = _Sieve(raw_items, "raw_items")
    _sift_items(catalogue)
    log = _Sieve(raw_interactions, "raw_interactions")
    _sift_values(log, config, latest_ms() if latest is None else latest)
    if config.session_gap_minutes is not None:
        log.rows = split_sessions(log.rows, gap_ms=config.session_gap_minutes * MINUTE_MS)
    _sift_unknown_items(log, catalogue.rows)
    _sift_duplicates(log, config)
    touched = log.rows.group_by("item_id").len("num_before")
    for dropped, kept in iterate_k_core(log.rows, k_core=config.k_core):
        log.take(kept, dropped)
    if log.rows.is_empty():
        raise DataError(_why_nothing_is_left(log, raw_interactions, config))
    order = ["user_id", "timestamp", *_tie_order(config)]
    # Only what is kept or sorted by: the sort copies the log.
    interactions = log.rows.select(*dict.fromkeys([*INTERACTIONS.columns, *order])).sort(order, nulls_last=True)
    interactions = interactions.select(*INTERACTIONS.columns)
    items = _catalogue(catalogue, interactions, touched)
    quarantine = pl.concat([*log.dropped, *catalogue.dropped]).sort("table", *_SOURCE)
    return CleanTables(INTERACTIONS.check(interactions), ITEMS.check(items), QUARANTINE.check(quarantine))


class _Sieve:
    """Rows of one raw table that passed so far, and the quarantine rows of those that did not."""

    def __init__(self, rows: pl.DataFrame, table: str) -> None:
        self.rows = rows
        self.table = table
        self.dropped: list[pl.DataFrame] = [QUARANTINE.empty()]

    def drop_unreadable(self) -> None:
        """Move the rows that the reader cannot vouch for to quarantine, with the reader's reason."""
        parts = pl.col("problem").str.splitn(": ", 2).struct
        self.drop(pl.col("problem").is_not_null(), parts.field("field_0"), parts.field("field_1"))

    def drop(self, bad: pl.Expr, reason: str | pl.Expr, detail: pl.Expr | None = None) -> None:
        """Move the rows where `bad` holds to quarantine."""
        marked = self.rows.with_columns(bad.fill_null(False).alias("_bad"))
        gone = marked.filter("_bad").drop("_bad")
        if gone.is_empty():
            return
        text = pl.lit(None, dtype=pl.String) if detail is None else detail
        self.take(
            marked.filter(~pl.col("_bad")).drop("_bad"),
            gone.with_columns(
                (pl.lit(reason) if isinstance(reason, str) else reason).alias("reason"), text.alias("detail")
            ),
        )

    def take(self, kept: pl.DataFrame, dropped: pl.DataFrame) -> None:
        """Go on with `kept`; `dropped` has the columns reason and detail."""
        self.rows = kept
        if "user_id" not in dropped.columns:
            dropped = dropped.with_columns(pl.lit(None, dtype=pl.String).alias("user_id"))
        self.dropped.append(dropped.with_columns(pl.lit(self.table).alias("table")).select(*QUARANTINE.columns))


def _sift_items(catalogue: _Sieve) -> None:
    """One row an item: the one with most cells filled, then the longest text, then the first."""
    catalogue.drop_unreadable()
    catalogue.drop(pl.col("item_id").is_null() | (pl.col("item_id") == ""), "missing_item_id")
    filled = pl.sum_horizontal(pl.col("title", "text", "image_path").is_not_null())
    length = pl.col("text").str.len_chars().fill_null(0)
    # Lines come last: the same rows in another order must give the same catalogue.
    order = [
        "item_id",
        -filled.cast(pl.Int64),
        -length.cast(pl.Int64),
        "title",
        "text",
        "image_path",
        "image_url",
        *_SOURCE,
    ]
    catalogue.rows = catalogue.rows.sort(order, nulls_last=True).with_columns(
        pl.col("source_row").first().over("item_id").alias("_kept_row"),
        pl.col("source_file").first().over("item_id").alias("_kept_file"),
    )
    catalogue.drop(
        ~pl.col("item_id").is_first_distinct(),
        "duplicate_item",
        pl.format("row {} of {} is kept", "_kept_row", "_kept_file"),
    )
    catalogue.rows = catalogue.rows.drop("_kept_row", "_kept_file")


def _sift_values(log: _Sieve, config: CleaningConfig, latest: int) -> None:
    log.drop_unreadable()
    for column in ("user_id", "item_id"):
        log.drop(pl.col(column).is_null() | (pl.col(column) == ""), f"missing_{column}")
    stamp = pl.col("timestamp")
    log.drop(stamp.is_null(), "missing_timestamp", pl.lit("empty, or not readable in the data set's unit"))
    log.drop(
        (stamp < EARLIEST_MS) | (stamp > latest),
        "timestamp_out_of_range",
        pl.format("{} ms since 1970 is before 1990 or after tomorrow", stamp),
    )
    rating = pl.col("rating")
    log.drop(rating.is_not_null() & ~rating.is_finite(), "non_finite_rating")
    if config.min_rating is not None:
        log.drop(rating.is_null(), "missing_rating", pl.lit(f"needed for min_rating {config.min_rating}"))
        log.drop(rating < config.min_rating, "below_min_rating", pl.format("rated {}", rating))


def _sift_unknown_items(log: _Sieve, catalogue: pl.DataFrame) -> None:
    log.drop(~pl.col("item_id").is_in(catalogue["item_id"].implode()), "unknown_item", pl.lit("not in raw_items"))


def _sift_duplicates(log: _Sieve, config: CleaningConfig) -> None:
    """One row a user and item; with `keep`, one row a user, item and time: the same moment twice is a copy."""
    key = ["user_id", "item_id"] if config.duplicates != "keep" else ["user_id", "item_id", "timestamp"]
    last = config.duplicates == "last"
    log.rows = log.rows.with_row_index("_row")
    # Only the repeated rows are put in order, by time and then by what they hold: sorting the whole log would cost more
    # than everything else here.
    repeated = log.rows.filter(pl.struct(key).is_duplicated()).sort(
        "timestamp", *_tie_order(config), *_SOURCE, nulls_last=True, descending=last
    )
    surplus = repeated.filter(~pl.struct(key).is_first_distinct())["_row"]
    which = "last" if last else "first"
    log.drop(pl.col("_row").is_in(surplus.implode()), "duplicate", pl.lit(f"the {which} row of {', '.join(key)} stays"))
    log.rows = log.rows.drop("_row")


def _tie_order(config: CleaningConfig) -> list[str]:
    """The columns that put a user's interactions at one time in order."""
    return _SOURCE if config.ties == "position" else ["item_id", "rating"]


def _catalogue(catalogue: _Sieve, interactions: pl.DataFrame, touched: pl.DataFrame) -> pl.DataFrame:
    """The surviving items in the order of their ids, with index and count; the others go to quarantine."""
    counts = interactions.group_by("item_id").len("num_interactions")
    catalogue.rows = catalogue.rows.join(counts, on="item_id", how="left").join(touched, on="item_id", how="left")
    catalogue.drop(pl.col("num_before").is_null(), "no_interactions", pl.lit("none, or none that could be used"))
    catalogue.drop(
        pl.col("num_interactions").is_null(),
        "k_core",
        pl.format("all of its {} interactions went to quarantine", "num_before"),
    )
    return (
        catalogue.rows.sort("item_id")
        .with_columns(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("item_index"), pl.col("num_interactions").cast(pl.Int64)
        )
        .select(*ITEMS.columns)
    )


def _why_nothing_is_left(log: _Sieve, raw: pl.DataFrame, config: CleaningConfig) -> str:
    if raw.is_empty():
        return "raw_interactions has no row: the interaction file is empty."
    counts = pl.concat(log.dropped).group_by("reason").len().sort("len", "reason", descending=[True, False])
    steps = ", ".join(f"{reason} {count}" for reason, count in counts.iter_rows())
    hint = {
        "invalid_json": "Is it the file that the reader expects, and did its download end well?",
        "wrong_number_of_cells": "Is it the file that the reader expects?",
        "wrong_type": "Is it the file that the reader expects?",
        "unknown_item": "Check that the item ids of both files mean the same.",
        "missing_timestamp": "Check timestamp and timestamp_unit in the data set's file.",
        "timestamp_out_of_range": "Check timestamp_unit in the data set's file.",
        "below_min_rating": "Lower cleaning.min_rating.",
        "k_core": f"Lower k_core (now {config.k_core}) or bring more interactions.",
        "too_short": "Leave-one-out needs users with three interactions.",
    }.get(counts["reason"][0], "Look at the file's columns and the mapping in the data set's file.")
    return f"Cleaning left none of {raw.height} interactions. Rows removed by reason: {steps}. {hint}"
