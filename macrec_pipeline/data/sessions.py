"""Interactions of users -> interactions of sessions: a pause that is long enough begins a new one.

A session takes the place of a user in all that follows: each has a history, a validation and a test target of its own.
"""

import polars as pl

MINUTE_MS = 60_000


def split_sessions(rows: pl.DataFrame, *, gap_ms: float) -> pl.DataFrame:
    """Number each user's sessions in the order of time; depends on the times alone, not on the order of the rows.

    Args:
        rows: a table with user_id and timestamp (ms), neither null.
        gap_ms: a pause longer than this lies between two sessions.

    Returns:
        The same rows in the order of user and time, user_id `USER#1`, `USER#2`, ...; since every id gets a number, no
        two users meet, whatever their ids hold.
    """
    ordered = rows.sort("user_id", "timestamp")
    pause = (pl.col("timestamp") - pl.col("timestamp").shift(1)).over("user_id")
    number = (pause > gap_ms).fill_null(False).cast(pl.Int64).cum_sum().over("user_id") + 1
    return ordered.with_columns(pl.format("{}#{}", "user_id", number).alias("user_id"))
