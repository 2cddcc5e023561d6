"""The interaction log as arrays of numbers, about 25 bytes per row however long the IDs are.

`encode_log` reads `RAW_INTERACTIONS`, a table or a scan of one, in batches and returns an `EncodedLog`: the user, item,
time and rating of each row, and the number of the first rule that the row breaks. The log never has to fit into memory
as a table. The other functions read a log in batches, walk through it by whole users, and sort its rows.

Shapes (docs/notation.md): M rows of the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.k_core import IdNumbers, count_rows_by_number
from macrec_pipeline.runtime.time_units import DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS

KEPT = 0
"""The reason number of a row that breaks no rule."""
RawLog = pl.DataFrame | pl.LazyFrame
"""A log as a table, or as a scan that is read in batches."""

# The sizes of batches and slices limit the memory that is used beside the log. They do not change the result.
_BATCH_ROWS = 250_000
_SLICE_ROWS = 1_000_000
# One pass over the log collects the rows of this many slices.
_SLICES_PER_PASS = 16


@dataclass(frozen=True)
class Rule:
    """A reason for dropping rows.

    Attributes:
        reason: the reason's name, as it stands in quarantine.
        is_broken: true for each row that breaks the rule; null counts as false.
        detail: what exactly was wrong with the row, for quarantine.
        names_session: the rule is applied after users were split into sessions, so quarantine names the session.
        is_data_fault: the row itself is at fault; it is not dropped on purpose because of a setting.
    """

    reason: str
    is_broken: pl.Expr
    detail: pl.Expr
    names_session: bool = False
    is_data_fault: bool = False


@dataclass
class EncodedLog:
    """The log in its own order.

    Attributes:
        users: uint32 [M], the number of each row's user, or of its session once `split_sessions` was applied. Numbers
            ascend with the IDs as strings; 0 also stands for a null ID.
        items: uint32 [M], the number of each row's item, in the same way.
        timestamps: int64 [M], milliseconds since the epoch; 0 where null.
        ratings: float64 [M], NaN where null.
        reasons: uint8 [M], the number of the first rule that the row breaks, counted from 1; `KEPT` if there is none.
        user_ids: the ID of each user number.
        item_ids: the ID of each item number.
        in_source_order: whether rows ascend by source_file and source_row.
    """

    users: IdNumbers
    items: IdNumbers
    timestamps: NDArray[np.int64]
    ratings: NDArray[np.float64]
    reasons: NDArray[np.uint8]
    user_ids: pl.Series
    item_ids: pl.Series
    in_source_order: bool

    def __len__(self) -> int:
        return len(self.reasons)

    def count_rows_by_rule(self, num_rules: int) -> NDArray[np.int64]:
        """Count the rows that each rule dropped: int64 [num_rules]."""
        dropped = self.reasons[self.reasons != KEPT]  # np.bincount is slow on bytes, and most rows break no rule
        return np.bincount(dropped, minlength=num_rules + 1)[1:]


def read_batches(log: RawLog, *columns: str) -> Iterator[tuple[int, pl.DataFrame]]:
    """Read a log in batches, in order.

    Args:
        log: a table or a scan.
        columns: the columns to read; all of them if none is named.

    Yields:
        The number of the batch's first row, and the batch.
    """
    selected = log.select(columns) if columns else log
    batches = (
        selected.iter_slices(_BATCH_ROWS)
        if isinstance(selected, pl.DataFrame)
        else selected.collect_batches(chunk_size=_BATCH_ROWS, maintain_order=True)
    )
    start = 0
    for batch in batches:
        yield start, batch
        start += batch.height


def count_rows(log: RawLog) -> int:
    """Return M, the number of rows."""
    return int(log.lazy().select(pl.len()).collect().item())


def encode_log(raw: RawLog, rules: list[Rule]) -> EncodedLog:
    """Read the log once and encodes it.

    Args:
        raw: `RAW_INTERACTIONS`, a table or a scan.
        rules: fewer than 255 rules; a row gets the reason of the first one that it breaks.
    """
    assert len(rules) < 255, "a reason number is one byte"
    num_rows = count_rows(raw)
    users, items = np.empty(num_rows, dtype=np.uint32), np.empty(num_rows, dtype=np.uint32)
    timestamps, ratings = np.empty(num_rows, dtype=np.int64), np.empty(num_rows)
    reasons = np.empty(num_rows, dtype=np.uint8)
    # Categories of their own for each call: they number the IDs in the order in which they appear, and they are freed
    # together with the log.
    user_categories, item_categories = pl.Categories.random(), pl.Categories.random()
    encoded = raw.lazy().select(
        "source_file", "source_row", **_encoded_columns(rules, user_categories, item_categories)
    )
    in_source_order, last_source = True, None
    for start, batch in read_batches(encoded):
        rows = slice(start, start + batch.height)
        users[rows], items[rows] = batch["user"].to_numpy(), batch["item"].to_numpy()
        timestamps[rows], ratings[rows] = batch["timestamp"].to_numpy(), batch["rating"].to_numpy()
        reasons[rows] = batch["reason"].to_numpy()
        if in_source_order and batch.height:
            in_source_order, last_source = _continues_source_order(last_source, batch)
    user_ids = _sort_categories(users, user_categories)
    item_ids = _sort_categories(items, item_categories)
    return EncodedLog(users, items, timestamps, ratings, reasons, user_ids, item_ids, in_source_order)


def source_positions(raw: RawLog, log: EncodedLog) -> NDArray[np.int64]:
    """Return the position of each row in the order of source_file and source_row: int64 [M]."""
    if log.in_source_order:
        return np.arange(len(log), dtype=np.int64)
    files, lines = np.zeros(len(log), dtype=np.uint32), np.zeros(len(log), dtype=np.int64)
    categories = pl.Categories.random()
    file = pl.col("source_file").cast(pl.Categorical(categories)).to_physical()
    for start, batch in read_batches(raw.lazy().select(file, "source_row")):
        rows = slice(start, start + batch.height)
        files[rows], lines[rows] = batch["source_file"].to_numpy(), batch["source_row"].to_numpy()
    _sort_categories(files, categories)
    positions = np.empty(len(log), dtype=np.int64)
    positions[np.lexsort((lines, files))] = np.arange(len(log))
    return positions


def renumber_in_id_order(numbers: IdNumbers, ids: pl.Series) -> pl.Series:
    """Renumber rows in place so that the numbers ascend with the IDs as strings.

    Args:
        numbers: uint32 [M], positions in `ids`.
        ids: distinct IDs.

    Returns:
        The IDs in ascending order, that is, by their new numbers.
    """
    order = ids.arg_sort().to_numpy()
    new_number = np.empty(max(len(order), 1), dtype=np.uint32)
    new_number[order] = np.arange(len(order), dtype=np.uint32)
    for start in range(0, len(numbers), _BATCH_ROWS):
        rows = slice(start, start + _BATCH_ROWS)
        numbers[rows] = new_number[numbers[rows]] if len(order) else 0
    return ids.gather(order)


def iterate_user_slices(users: IdNumbers, active: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """Split the active rows into slices of whole users, about `_SLICE_ROWS` rows each.

    Args:
        users: uint32 [M], dense numbers. They must not change until the last slice is taken.
        active: bool [M], the rows to include.

    Yields:
        The rows of each slice, ascending. The users of a slice come before those of the next one.
    """
    rows_up_to_user = np.cumsum(count_rows_by_number(users, active))
    borders = [0]  # the first user of each slice
    while borders[-1] < len(rows_up_to_user):
        rows_before = int(rows_up_to_user[borders[-1] - 1]) if borders[-1] else 0
        next_border = int(np.searchsorted(rows_up_to_user, rows_before + _SLICE_ROWS, side="right"))
        borders.append(max(next_border, borders[-1] + 1))
    for first_slice in range(0, len(borders) - 1, _SLICES_PER_PASS):
        yield from _collect_slices(users, active, borders[first_slice : first_slice + _SLICES_PER_PASS + 1])


def sort_by_user_and_time(users: IdNumbers, timestamps: NDArray[np.int64], *ties: NDArray[Any]) -> NDArray[np.int64]:
    """Return the order of rows by user, then time, then `ties`, with NaN last.

    The order of rows that agree in all of them is unspecified. As many columns as fit are packed into one integer,
    because sorting one integer is several times faster than sorting columns; the remaining columns decide among equals.

    Args:
        users: uint32, one per row.
        timestamps: int64, one per row.
        ties: further columns. The first of them may be packed, so it must hold integers.
    """
    columns = [
        _shift_to_zero(users),
        _in_coarsest_unit(_shift_to_zero(timestamps)),
        *(_shift_to_zero(tie) for tie in ties[:1]),
    ]
    keys, num_bits = columns[0], int(columns[0].max(initial=0)).bit_length()
    for column in columns[1:]:
        column_bits = int(column.max(initial=0)).bit_length()
        if num_bits + column_bits > 63:
            break
        keys, num_bits = keys << column_bits | column, num_bits + column_bits
    order = np.argsort(keys)
    if len(order) < 2:
        return order
    sorted_keys = keys[order]
    equals_next = sorted_keys[1:] == sorted_keys[:-1]
    tied = np.append(equals_next, False) | np.append(False, equals_next)
    rows = order[tied]
    order[tied] = rows[np.lexsort((*(tie[rows] for tie in reversed(ties)), timestamps[rows], keys[rows]))]
    return order


def _encoded_columns(
    rules: list[Rule], user_categories: pl.Categories, item_categories: pl.Categories
) -> dict[str, pl.Expr]:
    reason = pl.lit(KEPT)
    for number, rule in reversed(list(enumerate(rules, start=1))):
        reason = pl.when(rule.is_broken.fill_null(False)).then(number).otherwise(reason)
    return {
        "user": pl.col("user_id").cast(pl.Categorical(user_categories)).to_physical().fill_null(0),
        "item": pl.col("item_id").cast(pl.Categorical(item_categories)).to_physical().fill_null(0),
        "timestamp": pl.col("timestamp").fill_null(0),
        "rating": pl.col("rating").fill_null(float("nan")),
        "reason": reason.cast(pl.UInt8),
    }


def _sort_categories(numbers: IdNumbers, categories: pl.Categories) -> pl.Series:
    """Renumber category numbers in place so that they ascend with the strings; return the strings in that order."""
    largest = int(numbers.max(initial=0))
    if largest:
        ids = pl.Series(np.arange(largest + 1, dtype=np.uint32)).cat.to(pl.Categorical(categories)).cast(pl.String)
    else:
        ids = categories.to_series()  # one ID, or none
    return renumber_in_id_order(numbers, ids)


def _continues_source_order(last_source: tuple[str, int] | None, batch: pl.DataFrame) -> tuple[bool, tuple[str, int]]:
    """Check the order of a batch by source_file and source_row.

    Args:
        last_source: source_file and source_row of the row before the batch; None if there is none.
        batch: at least one row.

    Returns:
        Whether the rows ascend and follow `last_source`, and the source of the batch's last row.
    """
    files, lines = batch["source_file"], batch["source_row"]
    if files[0] == files[-1] and files.is_sorted():  # a single file, so its name need not be compared in every row
        ascends = lines.is_sorted()
    else:
        file, line = pl.col("source_file"), pl.col("source_row")
        descends = (file.shift(1) > file) | ((file.shift(1) == file) & (line.shift(1) > line))
        ascends = not batch.select(descends.fill_null(False).any()).item()
    return ascends and (last_source is None or last_source <= (files[0], lines[0])), (files[-1], lines[-1])


def _collect_slices(users: IdNumbers, active: NDArray[np.bool_], borders: list[int]) -> Iterator[NDArray[np.int64]]:
    """Collect the rows of several slices in one pass over the log.

    Args:
        users: uint32 [M].
        active: bool [M], the rows to include.
        borders: the first user of each slice, then the end of the last slice.

    Yields:
        The rows of each slice, ascending; slices without rows are left out.
    """
    # Slices are numbered from 1 here; 0 stands for users outside `borders`.
    slice_of_user = np.zeros(int(users.max(initial=0)) + 1, dtype=np.uint8)
    for number, (first_user, end_user) in enumerate(pairwise(borders), start=1):
        slice_of_user[first_user:end_user] = number
    rows_of_slice: list[list[NDArray[np.int64]]] = [[np.zeros(0, dtype=np.int64)] for _ in borders[1:]]
    for start in range(0, len(users), _SLICE_ROWS):
        chunk = slice(start, start + _SLICE_ROWS)
        slice_of_row = slice_of_user[users[chunk]] * active[chunk]
        rows = np.flatnonzero(slice_of_row)
        order = np.argsort(slice_of_row[rows], kind="stable")
        ends = np.cumsum(np.bincount(slice_of_row[rows], minlength=len(borders)))[1:]
        for parts, part in zip(rows_of_slice, np.split(rows[order] + start, ends[:-1]), strict=True):
            parts.append(part)
    for parts in rows_of_slice:
        rows = np.concatenate(parts)
        parts.clear()
        if len(rows):
            yield rows


def _shift_to_zero(column: NDArray[Any]) -> NDArray[np.int64]:
    """Subtract the smallest value, which keeps the order and needs fewer bits."""
    values = column.astype(np.int64)
    if len(values):
        values -= values.min()
    return values


def _in_coarsest_unit(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Convert times to days, hours, minutes or seconds if all are whole ones; keep the order with fewer bits."""
    for unit in (DAY_MS, HOUR_MS, MINUTE_MS, SECOND_MS):
        if not (times[:1000] % unit).any() and not (times % unit).any():
            return times // unit
    return times
