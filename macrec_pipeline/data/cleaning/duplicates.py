"""Which rows of the log repeat another one, and which of them stays: one row a user and item, or a moment of theirs."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.encoded_log import KEPT, EncodedLog, RawLog, batches

_SOURCE = ("source_file", "source_row")
_ROWS_AT_ONCE = 16_000_000


def duplicate_key(config: CleaningConfig) -> list[str]:
    """The columns that make two rows copies; with `keep`, only the same moment twice is one."""
    return ["user_id", "item_id"] if config.duplicates != "keep" else ["user_id", "item_id", "timestamp"]


def surplus_rows(raw: RawLog, log: EncodedLog, config: CleaningConfig) -> NDArray[np.int64]:
    """Of each group of copies all rows but the one that stays.

    Args:
        raw: the log as it was read, for where its rows came from.
        log: the same rows; those with a reason take no part.
        config: the policy, by time and then by what the rows hold, or by their lines with `ties: position`.
    """
    rows = _rows_of_repeated_pairs(log)
    if not len(rows):
        return rows
    last = config.duplicates == "last"
    repeated = _rows_at(raw, rows, *_SOURCE).with_columns(
        pl.Series("row", rows),
        pl.Series("user_id", log.users[rows]),
        pl.Series("item_id", log.items[rows]),
        pl.Series("timestamp", log.timestamps[rows]),
        pl.Series("rating", log.ratings[rows], nan_to_null=True),
    )
    # Only the repeated rows are put in order: sorting the whole log would cost more than everything else here.
    ties = _SOURCE if config.ties == "position" else ("rating", *_SOURCE)
    ordered = repeated.sort("timestamp", *ties, nulls_last=True, descending=last)
    return ordered.filter(~pl.struct(duplicate_key(config)).is_first_distinct())["row"].to_numpy()


def _rows_of_repeated_pairs(log: EncodedLog) -> NDArray[np.int64]:
    """The rows whose user and item are in another row too, ascending."""
    keys = np.full(len(log), -1, dtype=np.int64)
    for part in _parts(len(log)):
        keys[part] = np.where(log.reasons[part] == KEPT, _keys(log, part), -1)
    keys.sort()
    pairs = np.unique(keys[1:][keys[1:] == keys[:-1]])
    del keys
    pairs = pairs[pairs >= 0]
    if not len(pairs):
        return pairs
    users, items = (np.zeros(len(ids), dtype=bool) for ids in (log.user_ids, log.item_ids))
    users[pairs // len(items)] = items[pairs % len(items)] = True
    wanted = pl.Series(pairs).implode()
    found = []
    for part in _parts(len(log)):
        possible = np.flatnonzero(users[log.users[part]] & items[log.items[part]] & (log.reasons[part] == KEPT))
        own = pl.Series(_keys(log, part)[possible])
        found.append(possible[own.is_in(wanted).to_numpy()] + part.start)
    return np.concatenate(found)


def _keys(log: EncodedLog, part: slice) -> NDArray[np.int64]:
    return log.users[part].astype(np.int64) * len(log.item_ids) + log.items[part]


def _rows_at(raw: RawLog, rows: NDArray[np.int64], *columns: str) -> pl.DataFrame:
    """Some columns of some rows, which ascend."""
    found = []
    for start, part in batches(raw, *columns):
        low, high = np.searchsorted(rows, [start, start + part.height])
        found.append(part[rows[low:high] - start])
    return pl.concat(found)


def _parts(size: int) -> list[slice]:
    return [slice(start, min(start + _ROWS_AT_ONCE, size)) for start in range(0, size, _ROWS_AT_ONCE)]
