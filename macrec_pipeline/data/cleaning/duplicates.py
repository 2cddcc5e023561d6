"""Find the duplicates of an encoded log: of each group of rows with the same key, all but the one that is kept.

All rows of a user are looked at together, and a million rows at once, so the memory beside the log does not grow with
the number of duplicates. Within a group, no row is sorted: the best time, the best rating and the first position are
minima.

Shapes (docs/notation.md): M rows of the log.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.encoded_log import KEPT, EncodedLog, iterate_user_slices

# Pairs are compared in chunks of this size. It limits the memory for temporary arrays, and changes no result.
_CHUNK_ROWS = 4_000_000


def duplicate_key(config: CleaningConfig) -> list[str]:
    """Return the columns in which duplicates agree; with `duplicates: keep` the timestamp is one of them."""
    return ["user_id", "item_id"] if config.duplicates != "keep" else ["user_id", "item_id", "timestamp"]


def rows_with_repeated_sides(log: EncodedLog) -> NDArray[np.bool_]:
    """Return the kept rows whose user and whose item each occur in a repeated (user, item) pair: bool [M].

    All rows of repeated pairs are among them. Most other rows are ruled out by their user or their item alone, which is
    cheaper than looking up the pair.
    """
    pairs = np.full(len(log), -1, dtype=np.int64)
    for chunk in _chunks(len(log)):
        pairs[chunk] = np.where(log.reasons[chunk] == KEPT, _pair_numbers(log, chunk), -1)
    pairs.sort()
    has_repeat_user, has_repeat_item = (np.zeros(len(ids), dtype=bool) for ids in (log.user_ids, log.item_ids))
    for chunk in _chunks(len(log) - 1):
        these, following = pairs[chunk], pairs[chunk.start + 1 : chunk.stop + 1]
        repeated = these[(these == following) & (these >= 0)]
        has_repeat_user[repeated // len(log.item_ids)] = has_repeat_item[repeated % len(log.item_ids)] = True
    del pairs
    candidates = np.zeros(len(log), dtype=bool)
    if has_repeat_user.any():
        for chunk in _chunks(len(log)):
            is_repeated = has_repeat_user[log.users[chunk]] & has_repeat_item[log.items[chunk]]
            candidates[chunk] = is_repeated & (log.reasons[chunk] == KEPT)
    return candidates


def duplicate_rows(
    log: EncodedLog, candidates: NDArray[np.bool_], positions: NDArray[np.int64], config: CleaningConfig
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows to drop: of each group of rows with the same key, all but the one that is kept.

    Args:
        log: the encoded log.
        candidates: bool [M], rows that break no rule, with all rows of every repeated pair among them.
        positions: int64 [M], the order of the rows in the source.
        config: whether the first or the last row is kept. Rows are ordered by time, and at the same time by rating and
            then source, or by source alone with `ties: position`. A row without a rating is the last choice among rows
            at the same time.
    """
    for rows in iterate_user_slices(log.users, candidates):
        order, starts = _groups(log, rows, by_time=config.duplicates == "keep")
        rows = rows[order]
        values: list[NDArray[Any]] = [log.timestamps[rows], log.ratings[rows], positions[rows]]
        if config.duplicates == "last":
            values = [-each for each in values]
        values[1] = np.where(np.isnan(values[1]), np.inf, values[1])
        if config.ties == "position":
            del values[1]
        is_kept = np.ones(len(rows), dtype=bool)
        for each in values:
            is_kept &= each == _least_of_groups(each, is_kept, starts)
        yield rows[~is_kept]


def _groups(log: EncodedLog, rows: NDArray[np.int64], *, by_time: bool) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the order in which rows of the same group are next to each other, and where each group starts in it."""
    pairs = log.users[rows].astype(np.int64) * len(log.item_ids) + log.items[rows]
    order = np.lexsort((log.timestamps[rows], pairs)) if by_time else np.argsort(pairs)
    pairs, times = pairs[order], log.timestamps[rows][order]
    starts_group = pairs[1:] != pairs[:-1]
    if by_time:
        starts_group |= times[1:] != times[:-1]
    return order, np.flatnonzero(np.append(True, starts_group))


def _least_of_groups(values: NDArray[Any], is_kept: NDArray[np.bool_], starts: NDArray[np.int64]) -> NDArray[Any]:
    """Return, for each row, the least value among the rows of its group that are kept."""
    largest = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    least = np.minimum.reduceat(np.where(is_kept, values, largest), starts)
    return np.repeat(least, np.diff(np.append(starts, len(values))))


def _pair_numbers(log: EncodedLog, chunk: slice) -> NDArray[np.int64]:
    """Return one number per row of a chunk that stands for its (user, item) pair."""
    return log.users[chunk].astype(np.int64) * len(log.item_ids) + log.items[chunk]


def _chunks(num_rows: int) -> list[slice]:
    return [slice(start, min(start + _CHUNK_ROWS, num_rows)) for start in range(0, num_rows, _CHUNK_ROWS)]
