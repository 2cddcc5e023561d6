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

The catalogue holds only items that survive the k-core, as in the paper: leave-one-out ranks nothing else. With
`keep_items_without_interactions` it holds every item that is sound, and the last two reasons do not apply. The log is
read in batches and decided upon as numbers (`coded_log`), so that it need not fit into memory as a table.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.duplicates import duplicate_key, surplus_rows
from macrec_pipeline.data.cleaning.encoded_log import KEPT, EncodedLog, RawLog, Rule, encode_log, line_positions
from macrec_pipeline.data.cleaning.k_core import count_codes, iterate_k_core
from macrec_pipeline.data.cleaning.quality_gate import HINTS, refuse_broken_items, refuse_broken_log
from macrec_pipeline.data.cleaning.result import CleaningResult, core_detail
from macrec_pipeline.data.cleaning.sessions import MINUTE_MS, split_sessions
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import EARLIEST_MS, INTERACTIONS, ITEMS, QUARANTINE, RAW_INTERACTIONS, RAW_ITEMS

DAY_MS = 86_400_000

_SOURCE = ["source_file", "source_row"]
_NO_DETAIL = pl.lit(None, dtype=pl.String)


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
    raw_interactions: RawLog, raw_items: pl.DataFrame, config: CleaningConfig, *, latest: int | None = None
) -> CleanTables:
    """What `clean_log` finds as whole tables; arguments and errors as there."""
    log = clean_log(raw_interactions, raw_items, config, latest=latest)
    return CleanTables(
        INTERACTIONS.check(pl.concat(log.interactions())), log.items, QUARANTINE.check(pl.concat(log.quarantine()))
    )


def clean_log(
    raw_interactions: RawLog, raw_items: pl.DataFrame, config: CleaningConfig, *, latest: int | None = None
) -> CleaningResult:
    """Drop what cannot be used, with the reason, and keep the k-core.

    Args:
        raw_interactions: `RAW_INTERACTIONS`, a table or a scan, which is read a few times in batches.
        raw_items: `RAW_ITEMS`.
        config: thresholds and the policy for repeated rows.
        latest: the latest accepted time in ms since the epoch; None: a day from now.

    Raises:
        SchemaError: a raw table is not of its schema.
        DataError: more rows are broken than `max_quarantined_share`, or nothing is left; says which reason took how
            many rows.
    """
    RAW_INTERACTIONS.check(
        raw_interactions if isinstance(raw_interactions, pl.DataFrame) else raw_interactions.head(0).collect()
    )
    RAW_ITEMS.check(raw_items)
    catalogue = _Sieve(raw_items, "raw_items")
    _sift_items(catalogue, allowed=config.max_quarantined_share)
    rules = [
        *_reader_rules(raw_interactions),
        *_value_rules(config, latest_ms() if latest is None else latest),
        *_log_rules(config),
    ]
    number = {rule.reason: place for place, rule in enumerate(rules, start=1)}
    log = encode_log(raw_interactions, rules)
    if config.session_gap_minutes is not None:
        log = split_sessions(log, gap_ms=config.session_gap_minutes * MINUTE_MS)
    _mark_unknown_items(log, catalogue.rows["item_id"], number["unknown_item"])
    refuse_broken_log(raw_interactions, log, rules, allowed=config.max_quarantined_share)
    log.reasons[surplus_rows(raw_interactions, log, config)] = number["duplicate"]
    alive = log.reasons == KEPT
    touched = _by_item(log, alive, "num_before")
    peeled = []
    for fallen in iterate_k_core(log.users, log.items, alive, k_core=config.k_core):
        in_core = (fallen.of_user >= config.k_core) & (fallen.of_item >= config.k_core)
        log.reasons[fallen.rows] = np.where(in_core, number["too_short"], number["k_core"])
        peeled.append(fallen)
    if not alive.any():
        raise DataError(_why_nothing_is_left(log, rules, config))
    if not config.keep_items_without_interactions:
        _drop_items_outside(catalogue, _by_item(log, alive, "num_interactions"), touched)
    items = _catalogue(catalogue.rows, _by_item(log, alive, "num_interactions"))
    dropped_items = pl.concat(catalogue.dropped).sort("table", *_SOURCE)
    positions = line_positions(raw_interactions, log) if config.ties == "position" else None
    return CleaningResult(
        raw_interactions, log, rules, peeled, config.k_core, positions, ITEMS.check(items), dropped_items
    )


def _problem_parts() -> tuple[pl.Expr, pl.Expr]:
    """Reason and detail of a row that the reader cannot vouch for."""
    parts = pl.col("problem").str.splitn(": ", 2).struct
    return parts.field("field_0"), parts.field("field_1")


def _reader_rules(raw_interactions: RawLog) -> list[Rule]:
    """A rule for each reason that the reader gave: most logs have none, and no row is looked at for it again."""
    reason, detail = _problem_parts()
    given = raw_interactions.lazy().filter(pl.col("problem").is_not_null()).select(reason).unique()
    return [
        Rule(name, reason == name, detail, broken=True) for name in given.collect(engine="streaming").to_series().sort()
    ]


def _value_rules(config: CleaningConfig, latest: int) -> list[Rule]:
    """What a row by itself may break."""
    stamp, rating = pl.col("timestamp"), pl.col("rating")
    rules = [
        Rule(f"missing_{name}", pl.col(name).is_null() | (pl.col(name) == ""), _NO_DETAIL, broken=True)
        for name in ("user_id", "item_id")
    ]
    rules += [
        Rule(
            "missing_timestamp", stamp.is_null(), pl.lit("empty, or not readable in the data set's unit"), broken=True
        ),
        Rule(
            "timestamp_out_of_range",
            (stamp < EARLIEST_MS) | (stamp > latest),
            pl.format("{} ms since 1970 is before 1990 or after tomorrow", stamp),
            broken=True,
        ),
        Rule("non_finite_rating", rating.is_not_null() & ~rating.is_finite(), _NO_DETAIL, broken=True),
    ]
    if config.min_rating is not None:
        rules += [
            Rule("missing_rating", rating.is_null(), pl.lit(f"needed for min_rating {config.min_rating}")),
            Rule("below_min_rating", rating < config.min_rating, pl.format("rated {}", rating)),
        ]
    return rules


def _log_rules(config: CleaningConfig) -> list[Rule]:
    """What a row breaks beside other rows, found after the log was read."""
    which = "last" if config.duplicates == "last" else "first"
    stays = pl.lit(f"the {which} row of {', '.join(duplicate_key(config))} stays")
    details = {
        "unknown_item": pl.lit("not in raw_items"),
        "duplicate": stays,
        "k_core": core_detail(config.k_core),
        "too_short": core_detail(config.k_core),
    }
    of_session = config.session_gap_minutes is not None
    return [
        Rule(reason, pl.lit(False), detail, of_session, broken=reason == "unknown_item")
        for reason, detail in details.items()
    ]


def _mark_unknown_items(log: EncodedLog, known_ids: pl.Series, reason: int) -> None:
    unknown = ~log.item_ids.is_in(known_ids.implode()).to_numpy()
    if unknown.any():
        log.reasons[(log.reasons == KEPT) & unknown[log.items]] = reason


def _by_item(log: EncodedLog, alive: NDArray[np.bool_], name: str) -> pl.DataFrame:
    """How many rows take part of each item that has any: item_id and a count."""
    counts = count_codes(log.items, alive)
    codes = np.flatnonzero(counts)
    return pl.DataFrame(
        {"item_id": log.item_ids.gather(codes), name: counts[codes]}, schema={"item_id": pl.String, name: pl.Int64}
    )


class _Sieve:
    """Rows of one raw table that passed so far, and the quarantine rows of those that did not."""

    def __init__(self, rows: pl.DataFrame, table: str) -> None:
        self.rows = rows
        self.table = table
        self.dropped: list[pl.DataFrame] = [QUARANTINE.empty()]

    def drop_unreadable(self) -> None:
        """Move the rows that the reader cannot vouch for to quarantine, with the reader's reason."""
        reason, detail = _problem_parts()
        self.drop(pl.col("problem").is_not_null(), reason, detail)

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


def _sift_items(catalogue: _Sieve, *, allowed: float) -> None:
    """One row an item: the one with most cells filled, then the longest text, then the first."""
    num_rows = catalogue.rows.height
    catalogue.drop_unreadable()
    catalogue.drop(pl.col("item_id").is_null() | (pl.col("item_id") == ""), "missing_item_id")
    refuse_broken_items(pl.concat(catalogue.dropped), num_rows=num_rows, allowed=allowed)
    filled = pl.sum_horizontal(pl.col("title", "text", "image_path", "categories").is_not_null())
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
        "categories",
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


def _drop_items_outside(catalogue: _Sieve, counts: pl.DataFrame, touched: pl.DataFrame) -> None:
    """Move the items that the k-core lacks to quarantine."""
    catalogue.rows = catalogue.rows.join(counts, on="item_id", how="left").join(touched, on="item_id", how="left")
    catalogue.drop(pl.col("num_before").is_null(), "no_interactions", pl.lit("none, or none that could be used"))
    catalogue.drop(
        pl.col("num_interactions").is_null(),
        "k_core",
        pl.format("all of its {} interactions went to quarantine", "num_before"),
    )
    catalogue.rows = catalogue.rows.drop("num_interactions", "num_before")


def _catalogue(rows: pl.DataFrame, counts: pl.DataFrame) -> pl.DataFrame:
    """`ITEMS`: the items that are left in the order of their ids, with index and count."""
    return (
        rows.join(counts, on="item_id", how="left")
        .sort("item_id")
        .with_columns(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("item_index"),
            pl.col("num_interactions").fill_null(0).cast(pl.Int64),
        )
        .select(*ITEMS.columns)
    )


def _why_nothing_is_left(log: EncodedLog, rules: Sequence[Rule], config: CleaningConfig) -> str:
    if not len(log):
        return "raw_interactions has no row: the interaction file is empty."
    numbers = log.broken_by_rule(len(rules)).tolist()
    counts = sorted((-count, rule.reason) for count, rule in zip(numbers, rules, strict=True) if count)
    steps = ", ".join(f"{reason} {-count}" for count, reason in counts)
    hints = HINTS | {
        "below_min_rating": "Lower cleaning.min_rating.",
        "missing_rating": "Name the column as rating in the data set's file, or leave cleaning.min_rating out.",
        "k_core": f"Lower k_core (now {config.k_core}) or bring more interactions.",
        "too_short": "Leave-one-out needs users with three interactions.",
    }
    hint = hints.get(counts[0][1], "Look at the file's columns and the mapping in the data set's file.")
    return f"Cleaning left none of {len(log)} interactions. Rows removed by reason: {steps}. {hint}"
