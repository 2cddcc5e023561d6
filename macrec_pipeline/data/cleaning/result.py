"""The result of cleaning: which rows are kept, which go to quarantine and why, and when there are too many of those.

`clean_log` returns a `CleaningResult`: the encoded log with a reason for each dropped row. Its `interactions` and
`quarantine` methods yield the two tables slice by slice, in the order of their rows, so neither has to fit into memory.

The quality gate is the functions `require_...`: too many unusable rows in a raw table mean a wrong file or a wrong
mapping, and stop the run. A row is unusable if the reader could not interpret it, or if it has no valid ID, time or
rating. Rows that a setting drops on purpose (duplicates, low ratings, the k-core) are no fault of the file and do not
count. Interactions with an item that no catalogue has listed are counted apart, with a limit of their own: most of them
are usually items that the shop sold before the pipeline read its catalogue for the first time. Each function returns
normally if the share is acceptable and otherwise raises a `DataError` that lists the reasons with examples.

Shapes (docs/notation.md): M rows of the log, U users.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import (
    KEPT,
    EncodedLog,
    RawLog,
    Rule,
    iterate_user_slices,
    read_batches,
    sort_by_user_and_time,
)
from macrec_pipeline.data.cleaning.k_core import KCoreRound, count_rows_by_number, min_interactions_per_user
from macrec_pipeline.data.cleaning.tie_hash import TieHash
from macrec_pipeline.data.id_matching import match_ids
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import INTERACTIONS, QUARANTINE

# While one slice is written, this many further slices are prepared in threads.
_SLICES_AHEAD = 1
_NO_DETAIL = pl.lit(None, dtype=pl.String)

NUM_EXAMPLES = 3
UNKNOWN_ITEM = "unknown_item"
"""The reason of an interaction whose item is in no catalogue that was ever read."""
HINTS = {
    "invalid_json": "Check that this is the file that the reader expects and that its download finished.",
    "wrong_number_of_cells": "Check that this is the file that the reader expects.",
    "wrong_type": "Check that this is the file that the reader expects.",
    UNKNOWN_ITEM: "Check that both files use the same item IDs.",
    "missing_timestamp": "Check `timestamp` and `timestamp_unit` in the data set's YAML file.",
    "timestamp_out_of_range": "Check `timestamp_unit` in the data set's YAML file.",
}
"""Reason -> what to check if it is the most frequent one."""
DEFAULT_HINT = "Check the file's columns and their mapping in the data set's YAML file."


@dataclass(frozen=True)
class CleaningResult:
    """Which rows are kept, and why the others are dropped.

    Attributes:
        raw: `RAW_INTERACTIONS`, read again for the rows that go to quarantine.
        log: the same rows, encoded, each with its reason number.
        rules: the rules behind the reason numbers.
        k_core_rounds: the rows that each round of the k-core dropped.
        k_core: the interactions that a user and an item must keep.
        positions: int64 [M], which order a user's rows at the same time; None to order them by item and then rating.
        tie_hash: the order of a user's rows at the same time; None if `positions` or the items decide.
        items: `ITEMS`, the clean catalogue.
        quarantined_items: `QUARANTINE`, the rows of `raw_items` that are not in the catalogue.
        unlisted_items: `UNLISTED_ITEMS`, the items of `items` that have left the catalogue.
    """

    raw: RawLog
    log: EncodedLog
    rules: Sequence[Rule]
    k_core_rounds: Sequence[KCoreRound]
    k_core: int
    positions: NDArray[np.int64] | None
    tie_hash: TieHash | None
    items: pl.DataFrame
    quarantined_items: pl.DataFrame
    unlisted_items: pl.DataFrame

    @property
    def num_interactions(self) -> int:
        """The number of rows of `interactions`."""
        return int(np.count_nonzero(self.log.reasons == KEPT))

    def interactions_per_user(self) -> NDArray[np.int64]:
        """Return the number of interactions of each remaining user, in the order of user_id: int64 [U]."""
        counts = count_rows_by_number(self.log.users, self.log.reasons == KEPT)
        return counts[counts > 0]

    def period(self) -> tuple[int, int]:
        """Return the first and the last time among the interactions, in milliseconds since the epoch."""
        timestamps = self.log.timestamps[self.log.reasons == KEPT]
        return int(timestamps.min()), int(timestamps.max())

    def quarantine_counts(self) -> list[tuple[str, str, int]]:
        """Return (raw table, reason, number of rows) of `quarantine`, per table the most frequent reason first."""
        count_by_rule = self.log.count_rows_by_rule(len(self.rules)).tolist()
        counts = [
            ("raw_interactions", rule.reason, count)
            for rule, count in zip(self.rules, count_by_rule, strict=True)
            if count
        ]
        counts += self.quarantined_items.group_by("table", "reason").len().rows()
        return sorted(counts, key=lambda row: (row[0], -row[2], row[1]))

    def interactions(self) -> Iterator[pl.DataFrame]:
        """Yield `INTERACTIONS` in order, in slices of whole users."""
        with ThreadPoolExecutor() as pool:  # sorting releases the interpreter lock
            pending: deque[Future[pl.DataFrame]] = deque()
            for rows in iterate_user_slices(self.log.users, self.log.reasons == KEPT):
                pending.append(pool.submit(self._interactions_of, rows))
                if len(pending) > _SLICES_AHEAD:
                    yield pending.popleft().result()
            for table_slice in pending:
                yield table_slice.result()

    def quarantine(self) -> Iterator[pl.DataFrame]:
        """Yield `QUARANTINE` in the order of table, source_file and source_row."""
        slices = (self._quarantined_interactions(start, batch) for start, batch in read_batches(self.raw))
        if self.log.in_source_order:
            yield from slices
        else:
            yield pl.concat([QUARANTINE.empty(), *slices]).sort("source_file", "source_row")
        yield self.quarantined_items

    def _interactions_of(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        """Decode some rows of the log into `INTERACTIONS`, in order."""
        log = self.log
        ties = (log.items[rows], log.ratings[rows]) if self.positions is None else (self.positions[rows],)
        rows = rows[sort_by_user_and_time(log.users[rows], log.timestamps[rows], *ties)]
        if self.tie_hash is not None:
            rows = self.tie_hash.order(rows)
        return pl.DataFrame(
            {
                "user_id": log.user_ids.gather(log.users[rows]),
                "item_id": log.item_ids.gather(log.items[rows]),
                "rating": pl.Series(log.ratings[rows], nan_to_null=True),
                "timestamp": log.timestamps[rows],
            },
            schema=INTERACTIONS.columns,
        )

    def _quarantined_interactions(self, start: int, batch: pl.DataFrame) -> pl.DataFrame:
        """Return the dropped rows of a batch of the raw log as `QUARANTINE`.

        Args:
            start: the number of the batch's first row in the log.
            batch: rows of `RAW_INTERACTIONS`.
        """
        reasons = self.log.reasons[start : start + batch.height]
        dropped_rows = np.flatnonzero(reasons != KEPT)
        dropped = batch[dropped_rows].with_columns(pl.Series("_reason", reasons[dropped_rows]))
        reason_names = pl.Series(["", *(rule.reason for rule in self.rules)])
        names_session = np.array([False, *(rule.names_session for rule in self.rules)])[reasons[dropped_rows]]
        if names_session.any():
            sessions = self.log.user_ids.gather(self.log.users[dropped_rows + start])
            dropped = dropped.with_columns(
                user_id=pl.when(pl.Series(names_session)).then(sessions).otherwise("user_id")
            )
        detail = _NO_DETAIL
        for number, rule in enumerate(self.rules, start=1):
            detail = pl.when(pl.col("_reason") == number).then(rule.detail).otherwise(detail)
        return (
            dropped.with_columns(*self._k_core_columns(dropped_rows + start))
            .with_columns(
                pl.lit("raw_interactions").alias("table"),
                reason_names.gather(dropped["_reason"]).alias("reason"),
                detail.alias("detail"),
            )
            .select(*QUARANTINE.columns)
        )

    def _k_core_columns(self, rows: NDArray[np.int64]) -> list[pl.Series]:
        """Return the columns that `k_core_detail` reads, 0 in rows that the k-core did not drop.

        Args:
            rows: rows of the log, ascending.
        """
        columns = {name: np.zeros(len(rows), dtype=np.int64) for name in ("_user_count", "_item_count", "_round")}
        for k_core_round in self.k_core_rounds:
            if len(rows):
                first, end = np.searchsorted(k_core_round.rows, [rows[0], rows[-1] + 1])
                positions = np.searchsorted(rows, k_core_round.rows[first:end])
                columns["_user_count"][positions] = k_core_round.user_counts[first:end]
                columns["_item_count"][positions] = k_core_round.item_counts[first:end]
                columns["_round"][positions] = k_core_round.number
        return [pl.Series(name, values) for name, values in columns.items()]


def k_core_detail(k_core: int) -> pl.Expr:
    """Return the quarantine detail of a row that the k-core dropped, from the columns of `_k_core_columns`."""
    min_per_user = min_interactions_per_user(k_core)
    user_count, item_count, round_number = pl.col("_user_count"), pl.col("_item_count"), pl.col("_round")
    return (
        pl.when(user_count < min_per_user)
        .then(
            pl.format("its user has {} of {} interactions in round {}", user_count, pl.lit(min_per_user), round_number)
        )
        .otherwise(
            pl.format("its item has {} of {} interactions in round {}", item_count, pl.lit(k_core), round_number)
        )
    )


@dataclass(frozen=True)
class _UnusableRows:
    """The unusable rows of one reason: how many there are, and the first of them as `QUARANTINE` rows."""

    reason: str
    count: int
    examples: pl.DataFrame


def require_usable_interactions(raw: RawLog, log: EncodedLog, rules: Sequence[Rule], *, max_share: float) -> None:
    """Check the share of interactions that break a rule with `is_data_fault`.

    Args:
        raw: `RAW_INTERACTIONS`. If the check fails, it is read once more to find the examples.
        log: the same rows, encoded.
        rules: the rules behind the log's reason numbers.
        max_share: the largest acceptable share.

    Raises:
        DataError: the share is larger; the message gives the count and the first three rows of each reason.
    """
    counts = log.count_rows_by_rule(len(rules))
    numbers = {
        rule.reason: number for number, rule in enumerate(rules, start=1) if rule.is_data_fault and counts[number - 1]
    }
    if sum(counts[number - 1] for number in numbers.values()) <= max_share * len(log):
        return
    example_rows = {reason: np.flatnonzero(log.reasons == number)[:NUM_EXAMPLES] for reason, number in numbers.items()}
    all_examples = pl.Series("_row", np.concatenate(list(example_rows.values())), dtype=pl.UInt32)
    examples = raw.lazy().with_row_index("_row").filter(pl.col("_row").is_in(all_examples.implode())).collect()
    unusable = [
        _UnusableRows(
            reason, int(counts[number - 1]), _as_quarantine(examples, example_rows[reason], rules[number - 1])
        )
        for reason, number in numbers.items()
    ]
    num_unlisted = count_unlisted_interactions(log, rules)
    unlisted = (
        f" Rows whose item is not in the catalogue do not count; there are {num_unlisted:,} "
        f"({num_unlisted / len(log):.1%})."
        if num_unlisted
        else ""
    )
    raise DataError(_error_message("raw_interactions", unusable, num_rows=len(log), max_share=max_share) + unlisted)


def count_unlisted_interactions(log: EncodedLog, rules: Sequence[Rule]) -> int:
    """Count the usable interactions whose item is in no catalogue that was ever read."""
    counts = log.count_rows_by_rule(len(rules))
    return sum(int(count) for count, rule in zip(counts, rules, strict=True) if rule.reason == UNKNOWN_ITEM)


def count_broken_interactions(log: EncodedLog, rules: Sequence[Rule]) -> int:
    """Count the interactions that break a rule with `is_data_fault`."""
    counts = log.count_rows_by_rule(len(rules))
    return sum(int(count) for count, rule in zip(counts, rules, strict=True) if rule.is_data_fault)


def require_listed_interactions(
    raw: RawLog, log: EncodedLog, rules: Sequence[Rule], *, catalogue_ids: pl.Series, max_share: float
) -> None:
    """Check the share of interactions whose item is in no catalogue that was ever read.

    Args:
        raw, log, rules: see `require_usable_interactions`.
        catalogue_ids: the ids of all catalogues, for the error message.
        max_share: the largest acceptable share.

    Raises:
        DataError: the share is larger, but not all of the rows, whose error `clean_log` raises. The message states
            this share and that of broken rows, and gives examples.
    """
    num_unlisted = count_unlisted_interactions(log, rules)
    if num_unlisted <= max_share * len(log) or not (log.reasons == KEPT).any():
        return
    number = next(number for number, rule in enumerate(rules, start=1) if rule.reason == UNKNOWN_ITEM)
    rows = np.flatnonzero(log.reasons == number)[:NUM_EXAMPLES]
    examples = raw.lazy().with_row_index("_row").filter(pl.col("_row").is_in(rows.tolist())).collect()
    raise DataError(
        f"{describe_unlisted_interactions(log, rules)} That is more than `cleaning.max_unlisted_share` allows "
        f"({max_share:.1%}). Examples: {_describe_examples(_as_quarantine(examples, rows, rules[number - 1]))}. "
        f"{compare_unlisted_ids(log, rules, catalogue_ids)} {HINTS[UNKNOWN_ITEM]} If these are items that the shop no "
        "longer sells, raise `cleaning.max_unlisted_share`."
    )


def compare_unlisted_ids(log: EncodedLog, rules: Sequence[Rule], catalogue_ids: pl.Series) -> str:
    """Show ids of the interactions whose item is not in the catalogue beside ids of the catalogue, in a sentence.

    Args:
        log: the encoded log.
        rules: the rules behind its reason numbers.
        catalogue_ids: the ids of the catalogue.
    """
    number = next(number for number, rule in enumerate(rules, start=1) if rule.reason == UNKNOWN_ITEM)
    unlisted = np.unique(log.items[log.reasons == number])
    return match_ids(log.item_ids.gather(unlisted), catalogue_ids).sides()


def describe_unlisted_interactions(log: EncodedLog, rules: Sequence[Rule]) -> str:
    """State the share of interactions whose item is not in the catalogue, and the share of broken ones."""
    num_unlisted, num_broken = count_unlisted_interactions(log, rules), count_broken_interactions(log, rules)
    return (
        f"raw_interactions: {num_unlisted:,} of {len(log):,} rows ({num_unlisted / len(log):.1%}) name an item that is "
        f"not in the catalogue and was not in it in an earlier run. Broken rows: {num_broken:,} "
        f"({num_broken / len(log):.1%})."
    )


def require_usable_items(quarantined: pl.DataFrame, *, num_rows: int, max_share: float) -> None:
    """Check the share of unusable catalogue rows.

    Args:
        quarantined: the unusable rows of `raw_items`, as `QUARANTINE`.
        num_rows: all rows of `raw_items`.
        max_share: the largest acceptable share.

    Raises:
        DataError: the share is larger; the message gives the count and the first three rows of each reason.
    """
    if quarantined.height <= max_share * num_rows:
        return
    unusable = [_UnusableRows(str(reason), rows.height, rows) for (reason,), rows in quarantined.group_by("reason")]
    raise DataError(_error_message("raw_items", unusable, num_rows=num_rows, max_share=max_share))


def _as_quarantine(examples: pl.DataFrame, rows: NDArray[np.int64], rule: Rule) -> pl.DataFrame:
    return (
        examples.filter(pl.col("_row").is_in(rows.tolist()))
        .with_columns(
            pl.lit("raw_interactions").alias("table"), pl.lit(rule.reason).alias("reason"), rule.detail.alias("detail")
        )
        .select(*QUARANTINE.columns)
    )


def _error_message(table: str, unusable: Sequence[_UnusableRows], *, num_rows: int, max_share: float) -> str:
    by_frequency = sorted(unusable, key=lambda rows: (-rows.count, rows.reason))
    total = sum(rows.count for rows in by_frequency)
    reasons = " ".join(f"{rows.reason} ({rows.count:,}): {_describe_examples(rows.examples)}." for rows in by_frequency)
    hint = HINTS.get(by_frequency[0].reason, DEFAULT_HINT)
    return (
        f"{table}: {total:,} of {num_rows:,} rows ({total / num_rows:.1%}) are unusable, which is more than "
        f"`cleaning.max_quarantined_share` allows ({max_share:.1%}). {reasons} {hint} If the remaining rows are good, "
        "raise `cleaning.max_quarantined_share`."
    )


def _describe_examples(examples: pl.DataFrame) -> str:
    rows = examples.sort("source_file", "source_row").head(NUM_EXAMPLES).iter_rows(named=True)
    return "; ".join(f"row {row['source_row']} of {row['source_file']} ({_describe_cells(row)})" for row in rows)


def _describe_cells(row: Mapping[str, str | int | None]) -> str:
    """Describe a row by its user, item and detail, cut short: they come from the file and may be of any length."""
    ids = ", ".join(f"{name[:-3]} {str(row[name])[:40]!r}" for name in ("user_id", "item_id") if row[name] is not None)
    return ": ".join(part for part in (ids, str(row["detail"] or "")[:100]) if part) or "no ID"
