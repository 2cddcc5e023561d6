"""The quality gate: too many unusable rows in a raw table mean a wrong file or a wrong mapping, and stop the run.

A row is unusable if the reader could not interpret it, or if it has no valid ID, time or rating. Rows that a setting
drops on purpose (duplicates, low ratings, the k-core) are no fault of the file and do not count. Interactions with an
item that no catalogue has listed are counted apart, with a limit of their own: most of them are usually items that the
shop sold before the pipeline read its catalogue for the first time. Each function returns normally if the share is
acceptable and otherwise raises a `DataError` that lists the reasons with examples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import KEPT, EncodedLog, RawLog, Rule
from macrec_pipeline.data.id_matching import match_ids
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import QUARANTINE

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
