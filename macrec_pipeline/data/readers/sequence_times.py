"""Times for logs that only have an order: one minute per position, the same for every user."""

import polars as pl

from macrec_pipeline.runtime.time_units import MINUTE_MS

_FIRST_TIME = 1_514_764_800_000  # 2018-01-01 00:00 UTC


def made_up_times(position: pl.Expr) -> pl.Expr:
    """Return a time in milliseconds since the epoch for each position in a user's sequence, counted from 0."""
    return _FIRST_TIME + MINUTE_MS * position.cast(pl.Int64)
