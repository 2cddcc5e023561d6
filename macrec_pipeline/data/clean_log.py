"""The decided log -> `INTERACTIONS` and `QUARANTINE`, slice by slice in their order, so that neither need fit in memory.

M rows, U users.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.coded_log import KEPT, CodedLog, RawLog, Rule, batches
from macrec_pipeline.data.core import Peeled, count_codes, needed_of_user
from macrec_pipeline.schemas import INTERACTIONS, QUARANTINE

_ROWS_A_SLICE = 4_000_000
_NO_DETAIL = pl.lit(None, dtype=pl.String)


@dataclass(frozen=True)
class CleanLog:
    """What cleaning decided.

    Attributes:
        raw: `RAW_INTERACTIONS`, read again for the rows that go to quarantine.
        log: the same rows as numbers, each with its reason.
        rules: what the reasons are, in the order of their numbers.
        peeled: the rounds of the k-core.
        k_core: interactions that a user and an item must keep.
        items: `ITEMS`.
        dropped_items: `QUARANTINE`, the rows of `raw_items` that are not in the catalogue.
    """

    raw: RawLog
    log: CodedLog
    rules: Sequence[Rule]
    peeled: Sequence[Peeled]
    k_core: int
    items: pl.DataFrame
    dropped_items: pl.DataFrame

    def interactions(self) -> Iterator[pl.DataFrame]:
        """`INTERACTIONS` in order, whole users at a time."""
        log = self.log
        alive = log.reasons == KEPT
        ends = np.cumsum(count_codes(log.users, alive))
        first = 0
        while first < len(ends):
            done = int(ends[first - 1]) if first else 0
            beyond = max(int(np.searchsorted(ends, done + _ROWS_A_SLICE, side="right")), first + 1)
            rows = _rows_between(log.users, alive, first, beyond)
            first = beyond
            if len(rows):
                yield self._interactions_of(rows)

    def quarantine(self) -> Iterator[pl.DataFrame]:
        """`QUARANTINE` in the order of table, file and row."""
        slices = (self._dropped_rows(start, part) for start, part in batches(self.raw))
        if self.log.in_order:
            yield from slices
        else:
            yield pl.concat([QUARANTINE.empty(), *slices]).sort("source_file", "source_row")
        yield self.dropped_items

    def _interactions_of(self, rows: NDArray[np.int64]) -> pl.DataFrame:
        log = self.log
        table = pl.DataFrame(
            {
                "user_id": log.users[rows],
                "item_id": log.items[rows],
                "rating": pl.Series(log.ratings[rows], nan_to_null=True),
                "timestamp": log.timestamps[rows],
            }
        ).sort("user_id", "timestamp", "item_id", "rating", nulls_last=True)
        ids = {"user_id": log.user_ids, "item_id": log.item_ids}
        return table.with_columns(series.gather(table[name]).alias(name) for name, series in ids.items()).select(
            *INTERACTIONS.columns
        )

    def _dropped_rows(self, start: int, part: pl.DataFrame) -> pl.DataFrame:
        reasons = self.log.reasons[start : start + part.height]
        places = np.flatnonzero(reasons != KEPT)
        dropped = part[places].with_columns(pl.Series("_reason", reasons[places]))
        names = pl.Series(["", *(rule.reason for rule in self.rules)])
        detail = _NO_DETAIL
        for number, rule in enumerate(self.rules, start=1):
            detail = pl.when(pl.col("_reason") == number).then(rule.detail).otherwise(detail)
        return (
            dropped.with_columns(*self._rounds_of(places + start))
            .with_columns(
                pl.lit("raw_interactions").alias("table"),
                names.gather(dropped["_reason"]).alias("reason"),
                detail.alias("detail"),
            )
            .select(*QUARANTINE.columns)
        )

    def _rounds_of(self, rows: NDArray[np.int64]) -> list[pl.Series]:
        """What the details of `core_detail` look at, for rows that ascend; 0 where the k-core took no part."""
        columns = {name: np.zeros(len(rows), dtype=np.int64) for name in ("_of_user", "_of_item", "_number")}
        for round_ in self.peeled:
            if len(rows):
                low, high = np.searchsorted(round_.rows, [rows[0], rows[-1] + 1])
                places = np.searchsorted(rows, round_.rows[low:high])
                columns["_of_user"][places] = round_.of_user[low:high]
                columns["_of_item"][places] = round_.of_item[low:high]
                columns["_number"][places] = round_.number
        return [pl.Series(name, values) for name, values in columns.items()]


def core_detail(k_core: int) -> pl.Expr:
    """Why the k-core took a row, from what `CleanLog` knows of its round."""
    needed = needed_of_user(k_core)
    of_user, of_item, number = pl.col("_of_user"), pl.col("_of_item"), pl.col("_number")
    return (
        pl.when(of_user < needed)
        .then(pl.format("its user has {} of {} interactions in round {}", of_user, pl.lit(needed), number))
        .otherwise(pl.format("its item has {} of {} interactions in round {}", of_item, pl.lit(k_core), number))
    )


def _rows_between(users: NDArray[np.uint32], alive: NDArray[np.bool_], first: int, beyond: int) -> NDArray[np.int64]:
    """The rows that are kept of the users [first, beyond), ascending."""
    found = []
    for start in range(0, len(users), _ROWS_A_SLICE):
        own = users[start : start + _ROWS_A_SLICE]
        chosen = (own >= first) & (own < beyond) & alive[start : start + _ROWS_A_SLICE]
        found.append(np.flatnonzero(chosen) + start)
    return np.concatenate(found)
