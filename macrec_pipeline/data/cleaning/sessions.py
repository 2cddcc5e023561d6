"""Interactions of users -> interactions of sessions: a pause that is long enough begins a new one.

A session takes the place of a user in all that follows: each has a history, a validation and a test target of its own.
M rows, S sessions.
"""

from dataclasses import replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import KEPT, EncodedLog, renumber
from macrec_pipeline.data.cleaning.user_slices import order_of, slices_of_users

MINUTE_MS = 60_000


def split_sessions(log: EncodedLog, *, gap_ms: float) -> EncodedLog:
    """Number each user's sessions in the order of time; depends on the times alone, not on the order of the rows.

    Args:
        log: rows with a reason take no part, and belong to no session that is looked at later.
        gap_ms: a pause longer than this lies between two sessions.

    Returns:
        The same log, sharing its other columns, with sessions as users: `USER#1`, `USER#2`, ...; since every id gets a
        number, no two users meet, whatever their ids hold.
    """
    sessions = np.zeros(len(log), dtype=np.uint32)
    names, begun = [pl.Series([], dtype=pl.String)], 0
    for rows in slices_of_users(log.users, log.reasons == KEPT):
        users, times = log.users[rows], log.timestamps[rows]
        order = order_of(users, times)
        users, times = users[order], times[order]
        new_user = np.append(True, users[1:] != users[:-1])
        begins = new_user | np.append(True, times[1:] - times[:-1] > gap_ms)
        sessions[rows[order]] = np.cumsum(begins) - 1 + begun
        names.append(_names(log.user_ids.gather(users[begins]), new_user[begins]))
        begun += len(names[-1])
    ids = renumber(sessions, pl.concat(names))
    return replace(log, users=sessions, user_ids=ids)


def _names(user_ids: pl.Series, first: NDArray[np.bool_]) -> pl.Series:
    """Ids of sessions in order, from their users' ids and whether each is its user's first: bool [S]."""
    places = np.arange(len(first))
    numbers = places - np.maximum.accumulate(np.where(first, places, 0)) + 1
    return pl.select(pl.format("{}#{}", user_ids, pl.Series(numbers))).to_series()
