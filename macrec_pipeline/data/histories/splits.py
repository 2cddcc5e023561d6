"""How histories are split: which test period a split by time has, and which interactions a history keeps.

With leave-one-out, every user is tested: the last item is the test target, the one before it the validation target.

With a split by time (`method: global_time`), the interactions before the period are for training, and each user's last
interaction before the period is the validation target. The user's first interaction within the period is the test
target, and all later ones are left out. So no user contributes anything to training or model selection that happened
after the period began.

Shapes (docs/notation.md): M interactions, U users.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import SplitConfig
from macrec_pipeline.data.cleaning.encoded_log import RawLog, count_rows, read_batches
from macrec_pipeline.data.cleaning.k_core import MIN_HISTORY
from macrec_pipeline.errors import DataError

MIN_BEFORE_PERIOD = MIN_HISTORY - 1
"""The interactions before the test period that a user must have: one to train on, and the validation target."""


@dataclass(frozen=True)
class HeldOutPeriod:
    """The test period of a split by time.

    Attributes:
        begin: the first moment in the period, in milliseconds since the epoch.
        end: the first moment after the period; None if the period has no end.
    """

    begin: int
    end: int | None = None

    def contains(self, timestamps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which times lie in the period."""
        inside: NDArray[np.bool_] = timestamps >= self.begin
        return inside if self.end is None else inside & (timestamps < self.end)

    def details(self) -> dict[str, Any]:
        """Return the period as the manifest of `histories` stores it; `period_from_details` is the inverse."""
        return {"method": "global_time", **asdict(self)}

    def __str__(self) -> str:
        # The evaluation's metrics.json contains this text, so another wording would change the digest of that asset.
        until = "" if self.end is None else f" until {_format_time(self.end)}"
        return f"from {_format_time(self.begin)} on{until}"


class HistoryCut(NamedTuple):
    """What a split by time keeps of each user's interactions; see `cut_at_period`."""

    kept: NDArray[np.bool_]
    has_history: NDArray[np.bool_]
    tested: NDArray[np.bool_]


def find_period(interactions: RawLog, config: SplitConfig) -> HeldOutPeriod | None:
    """Find the test period from the settings and the times in the log; None for leave-one-out.

    Without `test_from`, the period is given by shares of the interactions in chronological order, counted from 0: it
    begins at the time of interaction floor((1 - test_share - later_share) M) and ends just before that of interaction
    floor((1 - later_share) M). Interactions at the same time always fall on the same side.

    Args:
        interactions: `INTERACTIONS`, a table or a scan. Only its timestamps are read.
        config: the settings of the split.

    Raises:
        DataError: there are no interactions before the period, or none in it.
    """
    if config.method == "leave_one_out":
        return None
    timestamps = np.empty(count_rows(interactions), dtype=np.int64)
    for start, batch in read_batches(interactions, "timestamp"):
        timestamps[start : start + batch.height] = batch["timestamp"].to_numpy()
    if not len(timestamps):
        raise DataError("interactions has no rows, so it cannot be split by time.")
    if config.test_from is None:
        share_before_end = 1 - config.later_share
        begin = _time_at_share(timestamps, share_before_end - config.test_share)
        period = HeldOutPeriod(begin, _time_at_share(timestamps, share_before_end) if config.later_share else None)
    else:
        end = None if config.test_until is None else _to_milliseconds(config.test_until)
        period = HeldOutPeriod(_to_milliseconds(config.test_from), end)
    num_before, num_inside = int((timestamps < period.begin).sum()), int(period.contains(timestamps).sum())
    if not num_before or not num_inside:
        raise DataError(
            f"The test period, {period}, contains {num_inside:,} interactions and has {num_before:,} before it, but "
            f"both must be positive. The log's {len(timestamps):,} interactions are from "
            f"{_format_time(int(timestamps.min()))} to {_format_time(int(timestamps.max()))}. Change "
            "`split.test_share`, `split.later_share` or `split.test_from`. A log whose times are made up cannot be "
            "split by time."
        )
    return period


def period_from_details(details: dict[str, Any] | None) -> HeldOutPeriod | None:
    """Return the period that `HeldOutPeriod.details` stored; None, which stands for leave-one-out, if there is none."""
    return HeldOutPeriod(details["begin"], details["end"]) if details else None


def cut_at_period(timestamps: NDArray[np.int64], user_starts: NDArray[np.int64], period: HeldOutPeriod) -> HistoryCut:
    """Decide which interactions the histories of a split by time keep.

    Args:
        timestamps: int64 [M], user after user, each user's in chronological order.
        user_starts: int64 [U + 1], the first row of each user, then M.
        period: the test period.

    Returns:
        kept: bool [M], the rows that are part of a history.
        has_history: bool [U], the users with at least `MIN_BEFORE_PERIOD` interactions before the period.
        tested: bool [U], those of them whose last kept interaction lies in the period and is the test target.
    """
    lengths = np.diff(user_starts)
    kept = timestamps < period.begin
    num_before = np.add.reduceat(kept, user_starts[:-1], dtype=np.int64)
    first_after = user_starts[:-1] + num_before
    has_history = num_before >= MIN_BEFORE_PERIOD
    tested = has_history & (num_before < lengths)
    tested[tested] = period.contains(timestamps[first_after[tested]])
    kept[first_after[tested]] = True
    kept &= np.repeat(has_history, lengths)
    return HistoryCut(kept, has_history, tested)


def interactions_in_histories(interactions: pl.DataFrame, period: HeldOutPeriod | None) -> pl.DataFrame:
    """Return the rows of `interactions` that histories must contain.

    The table checks compare histories with it, so it deliberately shares no code with `cut_at_period`.
    """
    if period is None:
        return interactions
    timestamp = pl.col("timestamp")
    is_before = timestamp < period.begin
    is_next = ~is_before & is_before.shift(1, fill_value=True).over("user_id")
    is_before_end = pl.lit(True) if period.end is None else timestamp < period.end
    return interactions.filter(
        is_before.sum().over("user_id") >= MIN_BEFORE_PERIOD, is_before | (is_next & is_before_end)
    )


def _time_at_share(timestamps: NDArray[np.int64], share: float) -> int:
    """Return the time of the interaction that follows this share of all interactions in chronological order."""
    position = min(int(round(share * len(timestamps), 6)), len(timestamps) - 1)  # rounded, or 0.5 of 10 may give 4
    return int(np.partition(timestamps, position)[position])


def _to_milliseconds(moment: datetime) -> int:
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _format_time(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
