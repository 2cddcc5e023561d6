"""Clean interactions and the catalogue -> one history a user, oldest item first (leave-one-out, MACRec section 4.1).

The last item is the test target, the one before it the validation target, the rest is for training. A split by time
(`splits`) cuts histories short, and leaves some without a test target. Interactions at one time stay in the order in
which the table has them: cleaning chose it. M interactions, U users, N items.
"""

from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import batches, num_rows
from macrec_pipeline.data.histories.splits import MIN_BEFORE, HeldOutPeriod, cut_histories
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.schemas import HISTORIES, INTERACTIONS


def build_histories(
    interactions: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame, period: HeldOutPeriod | None = None
) -> pl.DataFrame:
    """Gather each user's interactions in the order of the table, which is that of time.

    Args:
        interactions: `INTERACTIONS`, a table or a scan, which is read in batches.
        items: `ITEMS`.
        period: the test period of a split by time; None: leave-one-out.

    Returns:
        `HISTORIES`; user_index is 0..U-1 in the order of user_id.

    Raises:
        SchemaError: the interactions are not in order, or an item is not in the catalogue.
        DataError: no user can be tested.
    """
    runs = _read_runs(interactions, items)
    starts = np.concatenate([[0], np.cumsum(runs.lengths)])
    _refuse_disorder(runs, starts)
    tested = np.ones(len(runs.lengths), dtype=np.bool_)
    if period is not None:
        runs, tested = _cut(runs, starts, period)
        starts = np.concatenate([[0], np.cumsum(runs.lengths)])
    histories = pl.DataFrame(
        {
            "user_index": pl.int_range(len(runs.user_ids), dtype=pl.Int64, eager=True),
            "user_id": runs.user_ids,
            "item_indices": _lists(runs.item_indices, starts),
            "timestamps": _lists(runs.timestamps, starts),
            "tested": tested,
        }
    )
    return HISTORIES.check(histories)


@dataclass(frozen=True)
class _Runs:
    """Users in order, and what they did, one after the other: item_indices and timestamps int64 [M]."""

    user_ids: pl.Series
    lengths: NDArray[np.int64]
    item_indices: NDArray[np.int64]
    timestamps: NDArray[np.int64]


def _read_runs(interactions: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame) -> _Runs:
    size = num_rows(interactions)
    item_indices, timestamps = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    index_of = items["item_index"].to_numpy()
    # in the scan, where all cores look the ids up
    row_of_item = pl.col("item_id").cast(pl.Enum(items["item_id"]), strict=False).to_physical().alias("row_of_item")
    coded = interactions.lazy().select("user_id", "timestamp", row_of_item)
    users, lengths = [pl.Series([], dtype=pl.String)], [np.zeros(0, dtype=np.int64)]
    for start, part in batches(coded):
        if part["row_of_item"].null_count():
            _refuse_strangers(interactions, items)
        own = slice(start, start + part.height)
        item_indices[own] = index_of[part["row_of_item"].to_numpy()]
        timestamps[own] = part["timestamp"].to_numpy()
        run = part["user_id"].rle().struct.unnest()
        users.append(run["value"])
        lengths.append(run["len"].to_numpy().astype(np.int64))
    user_ids, counts = pl.concat(users), np.concatenate(lengths)
    # A user at the border of two batches has two runs.
    first = (user_ids != user_ids.shift(1)).fill_null(True).to_numpy()
    begins = np.flatnonzero(first)
    total = np.add.reduceat(counts, begins) if len(begins) else counts
    return _Runs(user_ids.filter(pl.Series(first)), total, item_indices, timestamps)


def _refuse_strangers(interactions: pl.DataFrame | pl.LazyFrame, items: pl.DataFrame) -> NoReturn:
    strange = ~pl.col("item_id").is_in(items["item_id"].implode())
    found = interactions.lazy().filter(strange).select("item_id", "user_id", num=pl.len()).head(1).collect()
    item, user, number = found.row(0)
    raise SchemaError(
        f"interactions: item {item!r} of user {user!r} is not in items ({number} rows). "
        "Materialize interactions and items together."
    )


def _refuse_disorder(runs: _Runs, starts: NDArray[np.int64]) -> None:
    """Raise if a user comes again or before another, or if a time is before the one above it, `starts` aside."""
    goes_back = runs.timestamps[1:] < runs.timestamps[:-1]
    goes_back[starts[1:-1] - 1] = False
    if not runs.user_ids.is_sorted() or goes_back.any():
        raise SchemaError(f"interactions (for histories): rows must be sorted by {', '.join(INTERACTIONS.sorted_by)}.")


def _cut(runs: _Runs, starts: NDArray[np.int64], period: HeldOutPeriod) -> tuple[_Runs, NDArray[np.bool_]]:
    """The runs without what the split leaves out, and who is tested of those who are left."""
    kept, in_history, tested = cut_histories(runs.timestamps, starts, period)
    if not tested.any():
        raise DataError(
            f"No user has {MIN_BEFORE} interactions before the test period and one in it ({period}): lengthen it by "
            "split.test_share, or move it by split.later_share or split.test_from."
        )
    lengths = np.add.reduceat(kept, starts[:-1], dtype=np.int64)[in_history]
    users = runs.user_ids.filter(pl.Series(in_history))
    return _Runs(users, lengths, runs.item_indices[kept], runs.timestamps[kept]), tested[in_history]


def _lists(values: NDArray[np.int64], starts: NDArray[np.int64]) -> pl.Series:
    """`values` parted at `starts` int64 [U + 1], without a copy."""
    lists = pa.LargeListArray.from_arrays(pa.array(starts), pa.array(values))
    series = pl.from_arrow(lists)
    assert isinstance(series, pl.Series)
    return series
