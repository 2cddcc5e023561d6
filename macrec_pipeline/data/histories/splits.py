"""Where the test period of a global-time split lies, and what of each user's log a history keeps.

    leave-one-out   every user is tested: the last item is the test target, the one before it the validation target
    global time     what happens before the period trains, with each user's last item before it as validation target;
                    the user's first interaction within the period is the test target; all later ones are left out

So nothing that is trained on or chosen by is later than the period's beginning, for any user. M interactions.
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import SplitConfig
from macrec_pipeline.data.cleaning.encoded_log import RawLog, batches, num_rows
from macrec_pipeline.data.cleaning.k_core import MIN_HISTORY
from macrec_pipeline.errors import DataError

MIN_BEFORE = MIN_HISTORY - 1
"""Interactions before the period that a user must have: one to train on and the validation target."""


@dataclass(frozen=True)
class HeldOutPeriod:
    """Times in ms since the epoch: `begin` and what follows, up to but without `end`; None: open."""

    begin: int
    end: int | None = None

    def holds(self, timestamps: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which times lie in it."""
        inside: NDArray[np.bool_] = timestamps >= self.begin
        return inside if self.end is None else inside & (timestamps < self.end)

    def details(self) -> dict[str, Any]:
        """What the manifest of `histories` keeps; see `period_of`."""
        return {"method": "global_time", **asdict(self)}

    def __str__(self) -> str:
        until = "" if self.end is None else f" until {_moment(self.end)}"
        return f"from {_moment(self.begin)} on{until}"


def find_period(interactions: RawLog, config: SplitConfig) -> HeldOutPeriod | None:
    """Find the period from the settings and the times of the log; None for leave-one-out.

    Without `test_from` it begins at the time of the interaction at place floor((1 - test_share - later_share) M) in
    the order of time, counted from 0, and ends at that of place floor((1 - later_share) M), which no longer belongs to
    it; interactions at one time are never parted.

    Args:
        interactions: `INTERACTIONS`, a table or a scan, of which the times are read.
        config: the settings.

    Raises:
        DataError: there is no interaction before the period, or none in it.
    """
    if config.method == "leave_one_out":
        return None
    stamps = np.empty(num_rows(interactions), dtype=np.int64)
    for start, part in batches(interactions, "timestamp"):
        stamps[start : start + part.height] = part["timestamp"].to_numpy()
    if not len(stamps):
        raise DataError("interactions has no row, so it cannot be split by time.")
    if config.test_from is None:
        kept = 1 - config.later_share
        begin = _time_at(stamps, kept - config.test_share)
        period = HeldOutPeriod(begin, _time_at(stamps, kept) if config.later_share else None)
    else:
        period = HeldOutPeriod(_ms(config.test_from), None if config.test_until is None else _ms(config.test_until))
    before, inside = int((stamps < period.begin).sum()), int(period.holds(stamps).sum())
    if not before or not inside:
        raise DataError(
            f"The test period, {period}, has {inside:,} interactions and {before:,} before it, of {len(stamps):,} "
            f"from {_moment(int(stamps.min()))} to {_moment(int(stamps.max()))}. Change split.test_share, "
            "split.later_share or split.test_from; a log whose times are made up cannot be split by time."
        )
    return period


def period_of(details: dict[str, Any] | None) -> HeldOutPeriod | None:
    """The period as `HeldOutPeriod.details` wrote it down; None for leave-one-out."""
    return HeldOutPeriod(details["begin"], details["end"]) if details else None


def cut_histories(
    timestamps: NDArray[np.int64], starts: NDArray[np.int64], period: HeldOutPeriod
) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Decide what stays of each user's log.

    Args:
        timestamps: int64 [M], a user's after another's, each in order of time.
        starts: int64 [U + 1], where users begin.
        period: the test period.

    Returns:
        kept: bool [M], rows that are in a history.
        in_history: bool [U], users with at least `MIN_BEFORE` interactions before the period; the others have none.
        tested: bool [U], those of them who have an interaction in the period: the last one that is kept.
    """
    lengths = np.diff(starts)
    kept = timestamps < period.begin
    num_before = np.add.reduceat(kept, starts[:-1], dtype=np.int64)
    first_after = starts[:-1] + num_before
    in_history = num_before >= MIN_BEFORE
    tested = in_history & (num_before < lengths)
    tested[tested] = period.holds(timestamps[first_after[tested]])
    kept[first_after[tested]] = True
    kept &= np.repeat(in_history, lengths)
    return kept, in_history, tested


def expected_events(interactions: pl.DataFrame, period: HeldOutPeriod | None) -> pl.DataFrame:
    """The rows of `interactions` that histories must hold, found without `cut_histories`, for the checks."""
    if period is None:
        return interactions
    stamp = pl.col("timestamp")
    before = stamp < period.begin
    next_one = ~before & before.shift(1, fill_value=True).over("user_id")
    in_period = pl.lit(True) if period.end is None else stamp < period.end
    return interactions.filter(before.sum().over("user_id") >= MIN_BEFORE, before | (next_one & in_period))


def _time_at(stamps: NDArray[np.int64], share: float) -> int:
    place = min(int(round(share * len(stamps), 6)), len(stamps) - 1)  # 0.5 of ten is place 5, not 4.9999...
    return int(np.partition(stamps, place)[place])


def _ms(moment: datetime) -> int:
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _moment(stamp: int) -> str:
    return datetime.fromtimestamp(stamp / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M UTC")
