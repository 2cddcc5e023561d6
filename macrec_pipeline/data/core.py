"""Interactions -> their k-core: every user and every item keeps at least k interactions, repeated to the fixpoint.

Users must also be long enough for leave-one-out: a training item, a validation target and a test target.
"""

from collections.abc import Iterator

import polars as pl

MIN_HISTORY = 3
"""Interactions that leave-one-out needs of a user."""


def iterate_k_core(rows: pl.DataFrame, *, k_core: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """Peel off the rows outside the core, a round at a time; the core itself does not depend on the order.

    Args:
        rows: a table with user_id and item_id; a repeated pair counts each time.
        k_core: interactions that a user and an item must keep.

    Yields:
        Rows dropped in this round, with reason (`k_core`, or `too_short` where only leave-one-out asks for more) and
        detail; and the rows that are left. Ends when nothing more is dropped.
    """
    needed = max(k_core, MIN_HISTORY)
    # Counting dense integers over and over is several times faster than counting strings.
    alive = rows.with_columns(
        pl.col("user_id").rank("dense").alias("_user"), pl.col("item_id").rank("dense").alias("_item")
    )
    number = 0
    while True:
        number += 1
        counted = alive.with_columns(pl.len().over("_user").alias("_of_user"), pl.len().over("_item").alias("_of_item"))
        bad = (pl.col("_of_user") < needed) | (pl.col("_of_item") < k_core)
        dropped = counted.filter(bad)
        if dropped.is_empty():
            return
        alive = counted.filter(~bad).drop("_of_user", "_of_item")
        yield (
            _with_reason(dropped, k_core=k_core, needed=needed, number=number).select(
                *rows.columns, "reason", "detail"
            ),
            alive.select(rows.columns),
        )


def _with_reason(dropped: pl.DataFrame, *, k_core: int, needed: int, number: int) -> pl.DataFrame:
    of_user, of_item = pl.col("_of_user"), pl.col("_of_item")
    in_core = (of_user >= k_core) & (of_item >= k_core)
    return dropped.with_columns(
        pl.when(in_core).then(pl.lit("too_short")).otherwise(pl.lit("k_core")).alias("reason"),
        pl.when(of_user < needed)
        .then(pl.format("its user has {} of {} interactions in round {}", of_user, pl.lit(needed), pl.lit(number)))
        .otherwise(pl.format("its item has {} of {} interactions in round {}", of_item, pl.lit(k_core), pl.lit(number)))
        .alias("detail"),
    )
