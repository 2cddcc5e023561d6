"""Cleaning: raw interactions and raw items become clean interactions, the catalogue and the quarantine.

No raw row disappears. Each one is either kept, or goes to quarantine with the first reason that applies to it. Reasons
are checked in this order:

    interactions   the reader's problem with the row (invalid_json, wrong_type, wrong_number_of_cells);
                   missing_user_id, missing_item_id, missing_timestamp, timestamp_out_of_range, non_finite_rating;
                   with `min_rating`: missing_rating, below_min_rating;
                   (with `session_gap_minutes`, sessions take the place of users from here on)
                   unknown_item, duplicate;
                   k_core and too_short, together, until no further row is dropped
    items          the reader's problem with the row; missing_item_id; duplicate_item;
                   no_interactions (the item has no usable interaction); k_core (all of its interactions were dropped)

As in the paper (MACRec section 4.1: 5-core), the catalogue holds only items that survive the k-core. With
`keep_items_without_interactions` it holds every valid item, and the last two reasons do not apply.

An item that has left the catalogue is remembered (`former_items`). While its interactions are in the k-core, it stays
in `items` like any other, and `unlisted_items` says that it must not be recommended.

The result does not depend on the order of lines in the files, except with `ties: position`, where that order is
meaningful. With `ties: hash`, the seed draws the order of a user's interactions at the same time. The log is read in
batches and encoded as numbers (`encoded_log`), so it need not fit into memory as a table.

Shapes (docs/notation.md): M rows of the log.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.duplicates import duplicate_key, duplicate_rows, rows_with_repeated_sides
from macrec_pipeline.data.cleaning.encoded_log import (
    KEPT,
    EncodedLog,
    RawLog,
    Rule,
    encode_log,
    iterate_user_slices,
    renumber_in_id_order,
    sort_by_user_and_time,
    source_positions,
)
from macrec_pipeline.data.cleaning.k_core import count_rows_by_number, iterate_k_core
from macrec_pipeline.data.cleaning.result import (
    DEFAULT_HINT,
    HINTS,
    UNKNOWN_ITEM,
    CleaningResult,
    compare_unlisted_ids,
    k_core_detail,
    require_listed_interactions,
    require_usable_interactions,
    require_usable_items,
)
from macrec_pipeline.data.cleaning.tie_hash import TieHash
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.seeds import derived_seed
from macrec_pipeline.runtime.time_units import DAY_MS, MINUTE_MS
from macrec_pipeline.schemas import (
    EARLIEST_MS,
    FORMER_ITEMS,
    INTERACTIONS,
    ITEMS,
    OTHER_EVENT,
    QUARANTINE,
    RAW_INTERACTIONS,
    RAW_ITEMS,
    UNLISTED_ITEMS,
)

_SOURCE = ("source_file", "source_row")
_NO_DETAIL = pl.lit(None, dtype=pl.String)


@dataclass(frozen=True)
class CleanTables:
    """The tables that cleaning produces: `INTERACTIONS`, `ITEMS`, and `QUARANTINE` with every other raw row."""

    interactions: pl.DataFrame
    items: pl.DataFrame
    quarantine: pl.DataFrame


def latest_plausible_ms() -> int:
    """Return the latest time that an interaction may have: a day from now, to allow for clocks in other time zones."""
    return int(time.time() * 1000) + DAY_MS


def clean(
    raw_interactions: RawLog,
    raw_items: pl.DataFrame,
    config: CleaningConfig,
    *,
    seed: int = 0,
    latest: int | None = None,
    former_items: pl.DataFrame | None = None,
) -> CleanTables:
    """Clean the raw tables and return the result as whole tables. For arguments and errors, see `clean_log`."""
    result = clean_log(raw_interactions, raw_items, config, seed=seed, latest=latest, former_items=former_items)
    return CleanTables(
        INTERACTIONS.check(pl.concat(result.interactions())),
        result.items,
        QUARANTINE.check(pl.concat(result.quarantine())),
    )


def clean_log(
    raw_interactions: RawLog,
    raw_items: pl.DataFrame,
    config: CleaningConfig,
    *,
    seed: int = 0,
    latest: int | None = None,
    former_items: pl.DataFrame | None = None,
    apply_k_core: bool = True,
) -> CleaningResult:
    """Decide for each raw row whether it is kept, and why not.

    Args:
        raw_interactions: `RAW_INTERACTIONS`, as a table or as a scan. It is read several times, in batches.
        raw_items: `RAW_ITEMS`.
        config: thresholds, and what to do with duplicates and equal times.
        seed: the root seed, from which `ties: hash` draws the order of a user's rows at the same time.
        latest: the latest accepted timestamp, in milliseconds since the epoch; None for `latest_plausible_ms`.
        former_items: `FORMER_ITEMS`, the items that have left the catalogue; None if there are none.
        apply_k_core: whether to drop the users and items with few interactions. If False, `k_core` and `too_short` do
            not apply: everyone stays.

    Raises:
        SchemaError: a raw table breaks its schema.
        DataError: the share of unusable rows is larger than `max_quarantined_share`, that of unlisted items is larger
            than `max_unlisted_share`, or nothing is left. The message counts the dropped rows by reason.
    """
    RAW_INTERACTIONS.check(
        raw_interactions if isinstance(raw_interactions, pl.DataFrame) else raw_interactions.head(0).collect()
    )
    RAW_ITEMS.check(raw_items)
    catalogue = _ItemRows(raw_items)
    _drop_unusable_items(catalogue, max_share=config.max_quarantined_share)
    _drop_duplicate_items(catalogue)
    former = (FORMER_ITEMS.empty() if former_items is None else former_items).join(
        catalogue.remaining, on="item_id", how="anti"
    )
    rules = [
        *_reader_rules(raw_interactions),
        *_value_rules(config, latest_plausible_ms() if latest is None else latest),
        *_rules_applied_to_the_log(config),
    ]
    reason_number = {rule.reason: number for number, rule in enumerate(rules, start=1)}
    log = encode_log(raw_interactions, rules)
    if config.session_gap_minutes is not None:
        log = split_sessions(log, gap_ms=config.session_gap_minutes * MINUTE_MS)
    known_ids = pl.concat([catalogue.remaining["item_id"], former["item_id"]])
    _mark_unknown_items(log, known_ids, reason_number[UNKNOWN_ITEM])
    require_usable_interactions(raw_interactions, log, rules, max_share=config.max_quarantined_share)
    require_listed_interactions(
        raw_interactions, log, rules, catalogue_ids=known_ids, max_share=config.max_unlisted_share
    )
    positions = source_positions(raw_interactions, log) if config.ties == "position" else None
    candidates = rows_with_repeated_sides(log)
    if candidates.any():
        order = positions if positions is not None else source_positions(raw_interactions, log)
        for rows in duplicate_rows(log, candidates, order, config):
            log.reasons[rows] = reason_number["duplicate"]
        del order
    active = log.reasons == KEPT
    counts_before_k_core = _count_by_item(log, active, "num_before")
    k_core_rounds = []
    rounds = iterate_k_core(log.users, log.items, active, k_core=config.k_core) if apply_k_core else ()
    for k_core_round in rounds:
        in_core = (k_core_round.user_counts >= config.k_core) & (k_core_round.item_counts >= config.k_core)
        log.reasons[k_core_round.rows] = np.where(in_core, reason_number["too_short"], reason_number["k_core"])
        k_core_rounds.append(k_core_round)
    if not active.any():
        raise DataError(_explain_empty_result(log, rules, config, known_ids))
    counts = _count_by_item(log, active, "num_interactions")
    if not config.keep_items_without_interactions:
        _drop_items_outside_core(catalogue, counts, counts_before_k_core)
    former = former.join(counts, on="item_id", how="semi")
    items = _number_items(pl.concat([catalogue.remaining, former], how="diagonal"), counts)
    if former.height == items.height:
        raise DataError(
            f"None of the {items.height:,} items that remain after cleaning is in today's catalogue, so nothing can be "
            "recommended. Check that raw_items was read from the right file, and that it is complete."
        )
    quarantined_items = pl.concat(catalogue.quarantined).sort("table", *_SOURCE)
    tie_hash = TieHash(log, seed=derived_seed(seed, "cleaning.ties")) if config.ties == "hash" else None
    return CleaningResult(
        raw_interactions,
        log,
        rules,
        k_core_rounds,
        config.k_core,
        positions,
        tie_hash,
        ITEMS.check(items),
        quarantined_items,
        items.join(former.select("item_id", "left_at"), on="item_id").select(*UNLISTED_ITEMS.columns),
    )


def remember_former_items(
    former_items: pl.DataFrame, previous: pl.DataFrame, present: pl.DataFrame, *, today: int
) -> pl.DataFrame:
    """Collect the items that were once in the catalogue and no longer are.

    Args:
        former_items: `FORMER_ITEMS`, those that had left before the previous catalogue was read.
        previous: `RAW_ITEMS` as it was read before.
        present: `RAW_ITEMS` as it is read now.
        today: the start of this day, in milliseconds since the epoch: when an item of `previous` has left.

    Returns:
        `FORMER_ITEMS`.
    """
    has_id = pl.col("problem").is_null() & (pl.col("item_id") != "")
    listed_before = _ItemRows(previous.filter(has_id))
    _drop_duplicate_items(listed_before)
    left = listed_before.remaining.with_columns(left_at=pl.lit(today, dtype=pl.Int64)).select(*FORMER_ITEMS.columns)
    former = former_items.join(listed_before.remaining, on="item_id", how="anti")
    everyone = pl.concat([former, left]).join(present.filter(has_id), on="item_id", how="anti")
    return FORMER_ITEMS.check(everyone.sort("item_id"))


def split_sessions(log: EncodedLog, *, gap_ms: float) -> EncodedLog:
    """Split each user's interactions into sessions, which then take the place of users.

    From then on, each session has a history of its own, with its own validation and test target. The split depends on
    the times alone, not on the order of rows.

    Args:
        log: the encoded log. Rows that break a rule belong to no session.
        gap_ms: a pause longer than this separates two sessions.

    Returns:
        The same log, sharing its other columns, with the sessions `USER#1`, `USER#2`, ... as users. Every user ID gets
        such a number, so the sessions of two users never share an ID, whatever characters the IDs contain.
    """
    sessions = np.zeros(len(log), dtype=np.uint32)
    session_ids, num_sessions = [pl.Series([], dtype=pl.String)], 0
    for rows in iterate_user_slices(log.users, log.reasons == KEPT):
        users, times = log.users[rows], log.timestamps[rows]
        order = sort_by_user_and_time(users, times)
        users, times = users[order], times[order]
        starts_user = np.append(True, users[1:] != users[:-1])
        starts_session = starts_user | np.append(True, times[1:] - times[:-1] > gap_ms)
        sessions[rows[order]] = np.cumsum(starts_session) - 1 + num_sessions
        session_ids.append(_session_ids(log.user_ids.gather(users[starts_session]), starts_user[starts_session]))
        num_sessions += len(session_ids[-1])
    ids = renumber_in_id_order(sessions, pl.concat(session_ids))
    return replace(log, users=sessions, user_ids=ids)


def _session_ids(user_ids: pl.Series, is_first: NDArray[np.bool_]) -> pl.Series:
    """Number sessions per user.

    Args:
        user_ids: the user of each session; a user's sessions are consecutive and in order.
        is_first: bool, one per session: whether it is its user's first.
    """
    positions = np.arange(len(is_first))
    numbers = positions - np.maximum.accumulate(np.where(is_first, positions, 0)) + 1
    return pl.select(pl.format("{}#{}", user_ids, pl.Series(numbers))).to_series()


def _split_problem() -> tuple[pl.Expr, pl.Expr]:
    """Return the reason and the detail in the reader's `problem` column."""
    parts = pl.col("problem").str.splitn(": ", 2).struct
    return parts.field("field_0"), parts.field("field_1")


def _reader_rules(raw_interactions: RawLog) -> list[Rule]:
    """Return one rule per reason that occurs in `problem`; most logs have none, and then no row is checked for it."""
    reason, detail = _split_problem()
    reasons = raw_interactions.lazy().filter(pl.col("problem").is_not_null()).select(reason).unique()
    return [
        Rule(name, reason == name, detail, is_data_fault=name != OTHER_EVENT)
        for name in reasons.collect(engine="streaming").to_series().sort()
    ]


def _value_rules(config: CleaningConfig, latest: int) -> list[Rule]:
    """Return the rules that look at the values of a single row."""
    timestamp, rating = pl.col("timestamp"), pl.col("rating")
    rules = [
        Rule(f"missing_{name}", pl.col(name).is_null() | (pl.col(name) == ""), _NO_DETAIL, is_data_fault=True)
        for name in ("user_id", "item_id")
    ]
    rules += [
        Rule(
            "missing_timestamp",
            timestamp.is_null(),
            pl.lit("empty, or not readable in the data set's unit"),
            is_data_fault=True,
        ),
        Rule(
            "timestamp_out_of_range",
            (timestamp < EARLIEST_MS) | (timestamp > latest),
            pl.format("{} ms since 1970 is before 1990 or after tomorrow", timestamp),
            is_data_fault=True,
        ),
        Rule("non_finite_rating", rating.is_not_null() & ~rating.is_finite(), _NO_DETAIL, is_data_fault=True),
    ]
    if config.min_rating is not None:
        rules += [
            Rule("missing_rating", rating.is_null(), pl.lit(f"needed for min_rating {config.min_rating}")),
            Rule("below_min_rating", rating < config.min_rating, pl.format("rated {}", rating)),
        ]
    return rules


def _rules_applied_to_the_log(config: CleaningConfig) -> list[Rule]:
    """Return the rules that depend on other rows too; `clean_log` marks their rows once the log is encoded."""
    kept_row = "last" if config.duplicates == "last" else "first"
    details = {
        UNKNOWN_ITEM: pl.lit("not in raw_items"),
        "duplicate": pl.lit(f"the {kept_row} row of {', '.join(duplicate_key(config))} stays"),
        "k_core": k_core_detail(config.k_core),
        "too_short": k_core_detail(config.k_core),
    }
    names_session = config.session_gap_minutes is not None
    return [Rule(reason, pl.lit(False), detail, names_session) for reason, detail in details.items()]


def _mark_unknown_items(log: EncodedLog, catalogue_ids: pl.Series, reason_number: int) -> None:
    is_unknown = ~log.item_ids.is_in(catalogue_ids.implode()).to_numpy()
    if is_unknown.any():
        log.reasons[(log.reasons == KEPT) & is_unknown[log.items]] = reason_number


def _count_by_item(log: EncodedLog, active: NDArray[np.bool_], name: str) -> pl.DataFrame:
    """Count the active rows per item, in a column `name` beside item_id; items without any are left out."""
    counts = count_rows_by_number(log.items, active)
    numbers = np.flatnonzero(counts)
    return pl.DataFrame(
        {"item_id": log.item_ids.gather(numbers), name: counts[numbers]}, schema={"item_id": pl.String, name: pl.Int64}
    )


class _ItemRows:
    """The rows of `raw_items`: those that remain, and those that were dropped, as `QUARANTINE` tables."""

    def __init__(self, raw_items: pl.DataFrame) -> None:
        self.remaining = raw_items
        self.quarantined: list[pl.DataFrame] = [QUARANTINE.empty()]

    def drop(self, is_bad: pl.Expr, reason: str | pl.Expr, detail: pl.Expr = _NO_DETAIL) -> None:
        """Move the rows for which `is_bad` is true to quarantine; null counts as false."""
        marked = self.remaining.with_columns(is_bad.fill_null(False).alias("_is_bad"))
        dropped = marked.filter("_is_bad")
        if dropped.is_empty():
            return
        self.remaining = marked.filter(~pl.col("_is_bad")).drop("_is_bad")
        self.quarantined.append(
            dropped.with_columns(
                pl.lit("raw_items").alias("table"),
                pl.lit(None, dtype=pl.String).alias("user_id"),
                (pl.lit(reason) if isinstance(reason, str) else reason).alias("reason"),
                detail.alias("detail"),
            ).select(*QUARANTINE.columns)
        )


def _drop_unusable_items(catalogue: _ItemRows, *, max_share: float) -> None:
    """Drop the rows that have no ID or that the reader could not interpret; `DataError` if their share is too large."""
    num_rows = catalogue.remaining.height
    reason, detail = _split_problem()
    catalogue.drop(pl.col("problem").is_not_null(), reason, detail)
    catalogue.drop(pl.col("item_id").is_null() | (pl.col("item_id") == ""), "missing_item_id")
    require_usable_items(pl.concat(catalogue.quarantined), num_rows=num_rows, max_share=max_share)


def _drop_duplicate_items(catalogue: _ItemRows) -> None:
    """Keep one row per item: the one with the most filled cells, then the one with the longest text, then the first."""
    num_filled = pl.sum_horizontal(pl.col("title", "text", "image_path", "categories").is_not_null())
    text_length = pl.col("text").str.len_chars().fill_null(0)
    # The source comes last, so that the same rows in another order give the same catalogue.
    order = [
        "item_id",
        -num_filled.cast(pl.Int64),
        -text_length.cast(pl.Int64),
        "title",
        "text",
        "image_path",
        "image_url",
        "categories",
        *_SOURCE,
    ]
    catalogue.remaining = catalogue.remaining.sort(order, nulls_last=True).with_columns(
        pl.col("source_row").first().over("item_id").alias("_kept_row"),
        pl.col("source_file").first().over("item_id").alias("_kept_file"),
    )
    catalogue.drop(
        ~pl.col("item_id").is_first_distinct(),
        "duplicate_item",
        pl.format("row {} of {} is kept", "_kept_row", "_kept_file"),
    )
    catalogue.remaining = catalogue.remaining.drop("_kept_row", "_kept_file")


def _drop_items_outside_core(catalogue: _ItemRows, counts: pl.DataFrame, counts_before_k_core: pl.DataFrame) -> None:
    """Drop the items without interactions, and those whose interactions were all dropped by the k-core."""
    catalogue.remaining = catalogue.remaining.join(counts, on="item_id", how="left").join(
        counts_before_k_core, on="item_id", how="left"
    )
    catalogue.drop(pl.col("num_before").is_null(), "no_interactions", pl.lit("none, or none that could be used"))
    catalogue.drop(
        pl.col("num_interactions").is_null(),
        "k_core",
        pl.format("all of its {} interactions went to quarantine", "num_before"),
    )
    catalogue.remaining = catalogue.remaining.drop("num_interactions", "num_before")


def _number_items(rows: pl.DataFrame, counts: pl.DataFrame) -> pl.DataFrame:
    """Return `ITEMS`: the remaining items in the order of their IDs, with item_index and num_interactions."""
    addresses = ["image_url"] if rows["image_url"].count() else []
    return (
        rows.join(counts, on="item_id", how="left")
        .sort("item_id")
        .with_columns(
            pl.int_range(pl.len(), dtype=pl.Int64).alias("item_index"),
            pl.col("num_interactions").fill_null(0).cast(pl.Int64),
        )
        .select(*ITEMS.columns, *addresses)
    )


def _explain_empty_result(
    log: EncodedLog, rules: Sequence[Rule], config: CleaningConfig, catalogue_ids: pl.Series
) -> str:
    if not len(log):
        return "raw_interactions has no rows: the interaction file is empty."
    count_by_rule = log.count_rows_by_rule(len(rules)).tolist()
    counts = sorted((-count, rule.reason) for count, rule in zip(count_by_rule, rules, strict=True) if count)
    dropped = ", ".join(f"{reason} {-count}" for count, reason in counts)
    hints = HINTS | {
        OTHER_EVENT: "Check that `events` in the data set's YAML file lists kinds of events as the log spells them.",
        "below_min_rating": "Lower `cleaning.min_rating`.",
        "missing_rating": "Map the rating column in the data set's YAML file, or unset `cleaning.min_rating`.",
        "k_core": f"Lower `cleaning.k_core` (now {config.k_core}) or provide more interactions.",
        "too_short": "Leave-one-out needs users with at least three interactions.",
    }
    hint = hints.get(counts[0][1], DEFAULT_HINT)
    if counts[0][1] == UNKNOWN_ITEM:
        hint = f"{compare_unlisted_ids(log, rules, catalogue_ids)} {hint}"
    return f"Cleaning left none of {len(log)} interactions. Rows dropped by reason: {dropped}. {hint}"
