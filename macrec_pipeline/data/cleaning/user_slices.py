"""The rows of the coded log by whole users, some at a time, and their order: neither need be there as a whole.

M rows.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.k_core import Codes, count_codes

# The rows of a slice bound the memory beside the log, and change no result.
_ROWS_A_SLICE = 1_000_000
# So many slices are found by one look at all rows.
_SLICES_A_LOOK = 16


def slices_of_users(users: Codes, alive: NDArray[np.bool_]) -> Iterator[NDArray[np.int64]]:
    """The rows that take part, of whole users at a time: each slice ascends, and so do the users of the slices.

    Args:
        users: uint32 [M], dense numbers; must stay as it is until the last slice is made.
        alive: bool [M], the rows that take part.
    """
    ends = np.cumsum(count_codes(users, alive))
    borders = [0]
    while borders[-1] < len(ends):
        done = int(ends[borders[-1] - 1]) if borders[-1] else 0
        borders.append(max(int(np.searchsorted(ends, done + _ROWS_A_SLICE, side="right")), borders[-1] + 1))
    for place in range(0, len(borders) - 1, _SLICES_A_LOOK):
        yield from _slices_between(users, alive, borders[place : place + _SLICES_A_LOOK + 1])


def order_of(users: Codes, timestamps: NDArray[np.int64], *ties: NDArray[Any]) -> NDArray[np.int64]:
    """The order of rows by user, time and then `ties`, NaN last; rows that agree in all of them in any order.

    As many of the columns as fit are packed into one integer, which sorts several times faster than columns do; the
    others decide among equals. Only the first tie may be packed, so it has to be of integers.
    """
    columns = [_shifted(users), _coarsest(_shifted(timestamps)), *(_shifted(tie) for tie in ties[:1])]
    keys, bits = columns[0], int(columns[0].max(initial=0)).bit_length()
    for column in columns[1:]:
        more = int(column.max(initial=0)).bit_length()
        if bits + more > 63:
            break
        keys, bits = keys << more | column, bits + more
    order = np.argsort(keys)
    if len(order) < 2:
        return order
    ordered = keys[order]
    equal = ordered[1:] == ordered[:-1]
    tied = np.append(equal, False) | np.append(False, equal)
    rows = order[tied]
    order[tied] = rows[np.lexsort((*(tie[rows] for tie in reversed(ties)), timestamps[rows], keys[rows]))]
    return order


def _slices_between(users: Codes, alive: NDArray[np.bool_], borders: list[int]) -> Iterator[NDArray[np.int64]]:
    """The rows of the users [first, beyond) of each two borders, ascending; slices without rows are left out."""
    # what a user is a part of: 0 before the first border, then the slices from 1 on
    slice_of_user = np.zeros(int(users.max(initial=0)) + 1, dtype=np.uint8)
    for number, (first, beyond) in enumerate(pairwise(borders), start=1):
        slice_of_user[first:beyond] = number
    found: list[list[NDArray[np.int64]]] = [[np.zeros(0, dtype=np.int64)] for _ in borders[1:]]
    for start in range(0, len(users), _ROWS_A_SLICE):
        own = slice(start, start + _ROWS_A_SLICE)
        slices = slice_of_user[users[own]] * alive[own]
        rows = np.flatnonzero(slices)
        order = np.argsort(slices[rows], kind="stable")
        ends = np.cumsum(np.bincount(slices[rows], minlength=len(borders)))[1:]
        for parts, part in zip(found, np.split(rows[order] + start, ends[:-1]), strict=True):
            parts.append(part)
    for parts in found:
        rows = np.concatenate(parts)
        parts.clear()
        if len(rows):
            yield rows


def _shifted(column: NDArray[Any]) -> NDArray[np.int64]:
    """The same order from 0 on."""
    values = column.astype(np.int64)
    if len(values):
        values -= values.min()
    return values


def _coarsest(stamps: NDArray[np.int64]) -> NDArray[np.int64]:
    """Times counted in days, hours, minutes or seconds if they are whole ones; fewer bits in the same order."""
    for unit in (86_400_000, 3_600_000, 60_000, 1000):
        if not (stamps[:1000] % unit).any() and not (stamps % unit).any():
            return stamps // unit
    return stamps
