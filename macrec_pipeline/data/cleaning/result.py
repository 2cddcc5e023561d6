"""The decided log -> `INTERACTIONS` and `QUARANTINE`, slice by slice in their order; neither need fit into memory.

M rows, U users.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.data.cleaning.encoded_log import KEPT, EncodedLog, RawLog, Rule, batches
from macrec_pipeline.data.cleaning.k_core import KCoreRound, count_codes, needed_of_user
from macrec_pipeline.data.cleaning.user_slices import order_of, slices_of_users
from macrec_pipeline.schemas import INTERACTIONS, QUARANTINE

# So many slices are made ahead of the one that is written.
_SLICES_AT_ONCE = 1
_NO_DETAIL = pl.lit(None, dtype=pl.String)


@dataclass(frozen=True)
class CleaningResult:
    """What cleaning decided.

    Attributes:
        raw: `RAW_INTERACTIONS`, read again for the rows that go to quarantine.
        log: the same rows as numbers, each with its reason.
        rules: what the reasons are, in the order of their numbers.
        peeled: the rounds of the k-core.
        k_core: interactions that a user and an item must keep.
        positions: int64 [M], what orders a user's rows at one time; None: the item, then the rating.
        items: `ITEMS`.
        dropped_items: `QUARANTINE`, the rows of `raw_items` that are not in the catalogue.
    """

    raw: RawLog
    log: EncodedLog
    rules: Sequence[Rule]
    peeled: Sequence[KCoreRound]
    k_core: int
    positions: NDArray[np.int64] | None
    items: pl.DataFrame
    dropped_items: pl.DataFrame

    @property
    def num_kept(self) -> int:
        """Rows of `INTERACTIONS`."""
        return int(np.count_nonzero(self.log.reasons == KEPT))

    def interactions_of_user(self) -> NDArray[np.int64]:
        """Kept rows of each user who has any, in the order of user_id."""
        counts = count_codes(self.log.users, self.log.reasons == KEPT)
        return counts[counts > 0]

    def period(self) -> tuple[int, int]:
        """The first and the last time that is kept, in ms since the epoch."""
        stamps = self.log.timestamps[self.log.reasons == KEPT]
        return int(stamps.min()), int(stamps.max())

    def reasons(self) -> list[tuple[str, str, int]]:
        """Rows in quarantine by table and reason, the most frequent first."""
        numbers = self.log.broken_by_rule(len(self.rules)).tolist()
        counts = [
            ("raw_interactions", rule.reason, count) for rule, count in zip(self.rules, numbers, strict=True) if count
        ]
        counts += self.dropped_items.group_by("table", "reason").len().rows()
        return sorted(counts, key=lambda row: (row[0], -row[2], row[1]))

    def interactions(self) -> Iterator[pl.DataFrame]:
        """`INTERACTIONS` in order, whole users at a time."""
        with ThreadPoolExecutor() as pool:  # sorting frees the interpreter
            made: deque[Future[pl.DataFrame]] = deque()
            for own in slices_of_users(self.log.users, self.log.reasons == KEPT):
                made.append(pool.submit(self._interactions_of, own))
                if len(made) > _SLICES_AT_ONCE:
                    yield made.popleft().result()
            for slice_ in made:
                yield slice_.result()

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
        users, items, stamps, ratings = log.users[rows], log.items[rows], log.timestamps[rows], log.ratings[rows]
        order = order_of(users, stamps, *((items, ratings) if self.positions is None else (self.positions[rows],)))
        return pl.DataFrame(
            {
                "user_id": log.user_ids.gather(users[order]),
                "item_id": log.item_ids.gather(items[order]),
                "rating": pl.Series(ratings[order], nan_to_null=True),
                "timestamp": stamps[order],
            },
            schema=INTERACTIONS.columns,
        )

    def _dropped_rows(self, start: int, part: pl.DataFrame) -> pl.DataFrame:
        reasons = self.log.reasons[start : start + part.height]
        places = np.flatnonzero(reasons != KEPT)
        dropped = part[places].with_columns(pl.Series("_reason", reasons[places]))
        names = pl.Series(["", *(rule.reason for rule in self.rules)])
        of_session = np.array([False, *(rule.of_session for rule in self.rules)])[reasons[places]]
        if of_session.any():
            sessions = self.log.user_ids.gather(self.log.users[places + start])
            dropped = dropped.with_columns(user_id=pl.when(pl.Series(of_session)).then(sessions).otherwise("user_id"))
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
    """Why the k-core took a row, from what `CleaningResult` knows of its round."""
    needed = needed_of_user(k_core)
    of_user, of_item, number = pl.col("_of_user"), pl.col("_of_item"), pl.col("_number")
    return (
        pl.when(of_user < needed)
        .then(pl.format("its user has {} of {} interactions in round {}", of_user, pl.lit(needed), number))
        .otherwise(pl.format("its item has {} of {} interactions in round {}", of_item, pl.lit(k_core), number))
    )
