"""Build one history per user from clean interactions and the catalogue (leave-one-out, MACRec section 4.1).

A history is a user's interactions in chronological order. Its last item is the test target, the one before it the
validation target, and the rest is for training. A split by time (`splits`) shortens histories and leaves some users
without a test target. Interactions at the same time stay in the order of the table, which cleaning chose. If several
share the time of the test target, the data do not determine which of them is the target; `num_at_target_time` counts
them.

Shapes (docs/notation.md): M interactions, U users.
"""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import count_rows, read_batches
from macrec_pipeline.data.histories.splits import MIN_BEFORE_PERIOD, HeldOutPeriod, cut_at_period
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.schemas import HISTORIES, INTERACTIONS


def build_histories(
    interactions: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame, period: HeldOutPeriod | None = None
) -> pl.DataFrame:
    """Collect each user's interactions into a history.

    Args:
        interactions: `INTERACTIONS`, a table or a scan, which is read in batches. Its rows are in chronological order.
        items: `ITEMS`.
        period: the test period of a split by time; None for leave-one-out.

    Returns:
        `HISTORIES`, in the order of user_id.

    Raises:
        SchemaError: the interactions are out of order, or name an item that is not in the catalogue.
        DataError: no user can be tested.
    """
    events = _read_events(interactions, items)
    starts = _user_starts(events)
    _require_order(events, starts)
    tested = np.ones(len(events.lengths), dtype=np.bool_)
    if period is None:
        num_at_target_time = _count_at_time(events.timestamps, starts, events.timestamps[starts[1:] - 1])
    else:
        whole, whole_starts = events, starts
        events, tested, has_history = _cut_events(whole, whole_starts, period)
        starts = _user_starts(events)
        last_times = np.zeros(len(has_history), dtype=np.int64)
        last_times[has_history] = events.timestamps[starts[1:] - 1]
        num_at_target_time = _count_at_time(whole.timestamps, whole_starts, last_times)[has_history]
    histories = pl.DataFrame(
        {
            "user_index": pl.int_range(len(events.user_ids), dtype=pl.Int64, eager=True),
            "user_id": events.user_ids,
            "item_indices": _as_lists(events.item_indices, starts),
            "timestamps": _as_lists(events.timestamps, starts),
            "tested": tested,
            "num_at_target_time": num_at_target_time,
        }
    ).with_columns(pl.when("tested").then("num_at_target_time").alias("num_at_target_time"))
    return HISTORIES.check(histories)


@dataclass(frozen=True)
class _UserEvents:
    """All users' events laid end to end.

    Attributes:
        user_ids: the U users, in order.
        lengths: int64 [U], the number of events of each user.
        item_indices: int64 [M], the item of each event.
        timestamps: int64 [M], the time of each event.
    """

    user_ids: pl.Series
    lengths: NDArray[np.int64]
    item_indices: NDArray[np.int64]
    timestamps: NDArray[np.int64]


def _read_events(interactions: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame) -> _UserEvents:
    num_rows = count_rows(interactions)
    item_indices, timestamps = np.empty(num_rows, dtype=np.int64), np.empty(num_rows, dtype=np.int64)
    index_of_row = items["item_index"].to_numpy()
    # The look-up of item IDs is part of the scan, so that polars runs it on all cores.
    item_row = pl.col("item_id").cast(pl.Enum(items["item_id"]), strict=False).to_physical().alias("item_row")
    encoded = interactions.lazy().select("user_id", "timestamp", item_row)
    run_users, run_lengths = [pl.Series([], dtype=pl.String)], [np.zeros(0, dtype=np.int64)]
    for start, batch in read_batches(encoded):
        if batch["item_row"].null_count():
            _raise_unknown_item(interactions, items)
        rows = slice(start, start + batch.height)
        item_indices[rows] = index_of_row[batch["item_row"].to_numpy()]
        timestamps[rows] = batch["timestamp"].to_numpy()
        runs = batch["user_id"].rle().struct.unnest()
        run_users.append(runs["value"])
        run_lengths.append(runs["len"].to_numpy().astype(np.int64))
    users, lengths = pl.concat(run_users), np.concatenate(run_lengths)
    # A user whose rows lie in two batches has two runs, which are added up here.
    is_first_run = (users != users.shift(1)).fill_null(True).to_numpy()
    first_runs = np.flatnonzero(is_first_run)
    user_lengths = np.add.reduceat(lengths, first_runs) if len(first_runs) else lengths
    return _UserEvents(users.filter(pl.Series(is_first_run)), user_lengths, item_indices, timestamps)


def _user_starts(events: _UserEvents) -> NDArray[np.int64]:
    """Return the first event of each user, then the number of all events: int64 [U + 1]."""
    return np.concatenate([[0], np.cumsum(events.lengths)])


def _raise_unknown_item(interactions: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame) -> NoReturn:
    is_unknown = ~pl.col("item_id").is_in(items["item_id"].implode())
    unknown = interactions.lazy().filter(is_unknown).select("item_id", "user_id", num=pl.len()).head(1).collect()
    item, user, num_rows = unknown.row(0)
    raise SchemaError(
        f"interactions: item {item!r} of user {user!r} is not in items ({num_rows} such rows). "
        "Materialize interactions and items together."
    )


def _require_order(events: _UserEvents, starts: NDArray[np.int64]) -> None:
    """Raise `SchemaError` unless users ascend and each user's times do not descend."""
    goes_back = events.timestamps[1:] < events.timestamps[:-1]
    goes_back[starts[1:-1] - 1] = False  # from one user to the next, time may go back
    if not events.user_ids.is_sorted() or goes_back.any():
        raise SchemaError(f"interactions (for histories): rows must be sorted by {', '.join(INTERACTIONS.sorted_by)}.")


def _cut_events(
    events: _UserEvents, starts: NDArray[np.int64], period: HeldOutPeriod
) -> tuple[_UserEvents, NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the events that a split by time keeps, which remaining users are tested, and which users remain."""
    kept, has_history, tested = cut_at_period(events.timestamps, starts, period)
    if not tested.any():
        raise DataError(
            f"No user can be tested: none has {MIN_BEFORE_PERIOD} interactions before the test period and one in it "
            f"({period}). Lengthen the period with `split.test_share`, or move it with `split.later_share` or "
            "`split.test_from`."
        )
    lengths = np.add.reduceat(kept, starts[:-1], dtype=np.int64)[has_history]
    users = events.user_ids.filter(pl.Series(has_history))
    remaining = _UserEvents(users, lengths, events.item_indices[kept], events.timestamps[kept])
    return remaining, tested[has_history], has_history


def _count_at_time(
    timestamps: NDArray[np.int64], starts: NDArray[np.int64], times: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Count each user's events at one time.

    Args:
        timestamps: int64 [M], user after user, each user's ascending.
        starts: int64 [U + 1], the first event of each user, then M.
        times: int64 [U], the time to look for, one per user.

    Returns:
        int64 [U].
    """
    return _first_event_from(timestamps, starts, times + 1) - _first_event_from(timestamps, starts, times)


def _first_event_from(
    timestamps: NDArray[np.int64], starts: NDArray[np.int64], times: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return each user's first event at or after a time, or the end of the user's events: int64 [U]."""
    low, high = starts[:-1].copy(), starts[1:].copy()
    while (searching := low < high).any():  # a binary search for all users at once needs no array of M numbers
        middle = (low + high) // 2
        is_before = timestamps[np.minimum(middle, len(timestamps) - 1)] < times
        low = np.where(searching & is_before, middle + 1, low)
        high = np.where(searching & ~is_before, middle, high)
    return low


def _as_lists(values: NDArray[np.int64], starts: NDArray[np.int64]) -> pl.Series:
    """Return `values` as one list per user, without a copy; `starts` is int64 [U + 1]."""
    lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(values))
    series = pl.from_arrow(lists)
    assert isinstance(series, pl.Series)
    return series
