"""Rows that nobody could use, counted: too many of them mean a wrong file or a wrong mapping, and stop the run.

Broken is what the reader cannot vouch for, and a row without a usable id, time or rating, or with an item that the
catalogue lacks. What a setting leaves out on purpose (duplicates, low ratings, the k-core) is no fault of the file.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from macrec_pipeline.data.cleaning.encoded_log import EncodedLog, RawLog, Rule
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import QUARANTINE

NUM_EXAMPLES = 3
HINTS = {
    "invalid_json": "Is it the file that the reader expects, and did its download end well?",
    "wrong_number_of_cells": "Is it the file that the reader expects?",
    "wrong_type": "Is it the file that the reader expects?",
    "unknown_item": "Check that the item ids of both files mean the same.",
    "missing_timestamp": "Check timestamp and timestamp_unit in the data set's file.",
    "timestamp_out_of_range": "Check timestamp_unit in the data set's file.",
}
"""What to look at where a reason is the most frequent one."""


@dataclass(frozen=True)
class _Broken:
    """Rows of one reason: how many, and the first of them as `QUARANTINE`."""

    reason: str
    count: int
    examples: pl.DataFrame


def refuse_broken_log(raw: RawLog, log: EncodedLog, rules: Sequence[Rule], *, allowed: float) -> None:
    """Raise `DataError` if more than the share `allowed` of the log's rows break a rule that is `broken`.

    The error names each reason with its count and the first three rows; one more pass over the log finds them.
    """
    counts = log.broken_by_rule(len(rules))
    numbers = {rule.reason: place for place, rule in enumerate(rules, start=1) if rule.broken and counts[place - 1]}
    if sum(counts[number - 1] for number in numbers.values()) <= allowed * len(log):
        return
    places = {reason: np.flatnonzero(log.reasons == number)[:NUM_EXAMPLES] for reason, number in numbers.items()}
    first = pl.Series("_place", np.concatenate(list(places.values())), dtype=pl.UInt32)
    rows = raw.lazy().with_row_index("_place").filter(pl.col("_place").is_in(first.implode())).collect()
    found = [
        _Broken(reason, int(counts[number - 1]), _examples(rows, places[reason], rules[number - 1]))
        for reason, number in numbers.items()
    ]
    raise DataError(_complaint("raw_interactions", found, num_rows=len(log), allowed=allowed))


def refuse_broken_items(dropped: pl.DataFrame, *, num_rows: int, allowed: float) -> None:
    """Raise `DataError` if `dropped`, the broken rows of `raw_items` as `QUARANTINE`, are more than `allowed`."""
    if dropped.height <= allowed * num_rows:
        return
    found = [_Broken(str(reason), rows.height, rows) for (reason,), rows in dropped.group_by("reason")]
    raise DataError(_complaint("raw_items", found, num_rows=num_rows, allowed=allowed))


def _examples(rows: pl.DataFrame, places: np.ndarray, rule: Rule) -> pl.DataFrame:
    return (
        rows.filter(pl.col("_place").is_in(places.tolist()))
        .with_columns(
            pl.lit("raw_interactions").alias("table"), pl.lit(rule.reason).alias("reason"), rule.detail.alias("detail")
        )
        .select(*QUARANTINE.columns)
    )


def _complaint(table: str, found: Sequence[_Broken], *, num_rows: int, allowed: float) -> str:
    ordered = sorted(found, key=lambda broken: (-broken.count, broken.reason))
    total = sum(broken.count for broken in ordered)
    reasons = " ".join(f"{one.reason} {one.count:,}: {_shown(one.examples)}." for one in ordered)
    hint = HINTS.get(ordered[0].reason, "Look at the file's columns and the mapping in the data set's file.")
    return (
        f"{table}: {total:,} of {num_rows:,} rows ({total / num_rows:.1%}) cannot be used, more than the {allowed:.1%} "
        f"of cleaning.max_quarantined_share. {reasons} {hint} If the rest is good, raise that share."
    )


def _shown(examples: pl.DataFrame) -> str:
    rows = examples.sort("source_file", "source_row").head(NUM_EXAMPLES).iter_rows(named=True)
    return "; ".join(f"row {row['source_row']} of {row['source_file']} ({_cells(row)})" for row in rows)


def _cells(row: Mapping[str, str | int | None]) -> str:
    ids = ", ".join(f"{name[:-3]} {str(row[name])[:40]!r}" for name in ("user_id", "item_id") if row[name] is not None)
    return ": ".join(part for part in (ids, str(row["detail"] or "")[:100]) if part) or "no id"
