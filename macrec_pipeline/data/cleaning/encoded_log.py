"""The raw log as arrays of numbers, with the reason why a row is not used: some 25 bytes a row, whatever the ids are.

In: `RAW_INTERACTIONS`, as a table or as a scan of one, read in batches and never held as a whole. Out: `EncodedLog`.
M rows, U users, N items.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.k_core import Codes

KEPT = 0
RawLog = pl.DataFrame | pl.LazyFrame
_BATCH = 250_000


@dataclass(frozen=True)
class Rule:
    """A reason to leave a row out: where `bad` holds (null: it does not), `detail` says more.

    With `of_session` it was found when sessions had taken the place of users, and quarantine names the session. With
    `broken` the row itself is at fault, and not a setting that leaves it out.
    """

    reason: str
    bad: pl.Expr
    detail: pl.Expr
    of_session: bool = False
    broken: bool = False


@dataclass
class EncodedLog:
    """The log in its own order.

    Attributes:
        users, items: uint32 [M], numbers in the order of the ids as strings; 0 where the id is null. Users may be
            sessions (`sessions.split_sessions`).
        timestamps: int64 [M], ms since the epoch; 0 where null.
        ratings: float64 [M], NaN where null.
        reasons: uint8 [M], the first rule that a row breaks, counted from 1; 0 if none.
        user_ids, item_ids: what each number stands for.
        in_order: whether rows ascend by source_file and source_row.
    """

    users: Codes
    items: Codes
    timestamps: NDArray[np.int64]
    ratings: NDArray[np.float64]
    reasons: NDArray[np.uint8]
    user_ids: pl.Series
    item_ids: pl.Series
    in_order: bool

    def __len__(self) -> int:
        return len(self.reasons)

    def broken_by_rule(self, num_rules: int) -> NDArray[np.int64]:
        """How many rows break each rule first: int64 [num_rules]."""
        broken = self.reasons[self.reasons != KEPT]  # counting bytes takes 25 ns a row, and most rows break none
        return np.bincount(broken, minlength=num_rules + 1)[1:]


def batches(raw: RawLog, *columns: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """The number of the first row and the rows, some at a time, in order; all columns if none is named."""
    start = 0
    wanted = raw.select(columns) if columns else raw
    parts = (
        wanted.iter_slices(_BATCH)
        if isinstance(wanted, pl.DataFrame)
        else wanted.collect_batches(chunk_size=_BATCH, maintain_order=True)
    )
    for part in parts:
        yield start, part
        start += part.height


def num_rows(raw: RawLog) -> int:
    """M."""
    return int(raw.lazy().select(pl.len()).collect().item())


def encode_log(raw: RawLog, rules: list[Rule]) -> EncodedLog:
    """Read the log once.

    Args:
        raw: `RAW_INTERACTIONS`.
        rules: what one row by itself may break, the most important first; fewer than 255.
    """
    assert len(rules) < 255, "a reason is one byte"
    size = num_rows(raw)
    users, items = np.empty(size, dtype=np.uint32), np.empty(size, dtype=np.uint32)
    timestamps, ratings = np.empty(size, dtype=np.int64), np.empty(size)
    reasons = np.empty(size, dtype=np.uint8)
    # Categories of its own a call: they number the ids as they come, and go when the log goes.
    user_categories, item_categories = pl.Categories.random(), pl.Categories.random()
    coded = raw.lazy().select("source_file", "source_row", **_coded_columns(rules, user_categories, item_categories))
    in_order, last = True, None
    for start, part in batches(coded):
        own = slice(start, start + part.height)
        users[own], items[own] = part["user"].to_numpy(), part["item"].to_numpy()
        timestamps[own], ratings[own] = part["timestamp"].to_numpy(), part["rating"].to_numpy()
        reasons[own] = part["reason"].to_numpy()
        if in_order and part.height:
            in_order, last = _goes_on(last, part)
    user_ids = _in_order_of_ids(users, user_categories)
    item_ids = _in_order_of_ids(items, item_categories)
    return EncodedLog(users, items, timestamps, ratings, reasons, user_ids, item_ids, in_order)


def line_positions(raw: RawLog, log: EncodedLog) -> NDArray[np.int64]:
    """The place of each row of the log in the order of source_file and source_row: int64 [M]."""
    if log.in_order:
        return np.arange(len(log), dtype=np.int64)
    files, lines = np.zeros(len(log), dtype=np.uint32), np.zeros(len(log), dtype=np.int64)
    categories = pl.Categories.random()
    file = pl.col("source_file").cast(pl.Categorical(categories)).to_physical()
    for start, part in batches(raw.lazy().select(file, "source_row")):
        own = slice(start, start + part.height)
        files[own], lines[own] = part["source_file"].to_numpy(), part["source_row"].to_numpy()
    _in_order_of_ids(files, categories)
    positions = np.empty(len(log), dtype=np.int64)
    positions[np.lexsort((lines, files))] = np.arange(len(log))
    return positions


def _coded_columns(
    rules: list[Rule], user_categories: pl.Categories, item_categories: pl.Categories
) -> dict[str, pl.Expr]:
    reason = pl.lit(KEPT)
    for number, rule in reversed(list(enumerate(rules, start=1))):
        reason = pl.when(rule.bad.fill_null(False)).then(number).otherwise(reason)
    return {
        "user": pl.col("user_id").cast(pl.Categorical(user_categories)).to_physical().fill_null(0),
        "item": pl.col("item_id").cast(pl.Categorical(item_categories)).to_physical().fill_null(0),
        "timestamp": pl.col("timestamp").fill_null(0),
        "rating": pl.col("rating").fill_null(float("nan")),
        "reason": reason.cast(pl.UInt8),
    }


def _in_order_of_ids(codes: Codes, categories: pl.Categories) -> pl.Series:
    """Renumber codes in place so that they ascend as the ids do; returns the ids in that order."""
    largest = int(codes.max(initial=0))
    if largest:
        ids = pl.Series(np.arange(largest + 1, dtype=np.uint32)).cat.to(pl.Categorical(categories)).cast(pl.String)
    else:
        ids = categories.to_series()  # one id, or none
    return renumber(codes, ids)


def renumber(codes: Codes, ids: pl.Series) -> pl.Series:
    """Renumber places in `ids`, which are distinct, so that they ascend as the ids do; returns the ids in order."""
    order = ids.arg_sort().to_numpy()
    rank = np.empty(max(len(order), 1), dtype=np.uint32)
    rank[order] = np.arange(len(order), dtype=np.uint32)
    for start in range(0, len(codes), _BATCH):
        codes[start : start + _BATCH] = rank[codes[start : start + _BATCH]] if len(order) else 0
    return ids.gather(order)


def _goes_on(last: tuple[str, int] | None, part: pl.DataFrame) -> tuple[bool, tuple[str, int]]:
    """Whether rows ascend by where they came from, also after the row `last`; and the last one."""
    files, rows = part["source_file"], part["source_row"]
    if files[0] == files[-1] and files.is_sorted():  # one file: comparing its name in every row is not needed
        ascends = rows.is_sorted()
    else:
        file, row = pl.col("source_file"), pl.col("source_row")
        descends = (file.shift(1) > file) | ((file.shift(1) == file) & (row.shift(1) > row))
        ascends = not part.select(descends.fill_null(False).any()).item()
    return ascends and (last is None or last <= (files[0], rows[0])), (files[-1], rows[-1])
