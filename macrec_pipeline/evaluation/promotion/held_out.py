"""The test users of a split, identified by item id, for models that number the items differently.

The input is the `histories` table and the catalogue that its item indices refer to. The output is `HeldOutUsers`.
Shapes (docs/notation.md): U users, N items in the catalogue.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.evaluation.baselines import recommend_popular
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, flat_histories

_NUM_POPULAR = 10


@dataclass(frozen=True)
class HeldOutUsers:
    """U test users.

    Attributes:
        inputs: the item ids of each user's history before the last item, oldest first.
        targets: the last item id of each user.
        popular: for each user, the ten most popular items of the training parts, most popular first.
        catalogue: all N item ids.
    """

    inputs: list[list[str]]
    targets: list[str]
    popular: list[list[str]]
    catalogue: frozenset[str]


def held_out_users(
    histories: pl.DataFrame, item_ids: Sequence[str], *, listed: NDArray[np.bool_] | None = None
) -> HeldOutUsers:
    """Collect the tested users of a `histories` table.

    Args:
        histories: schema HISTORIES; the users keep its order.
        item_ids: the item ids of the catalogue, in the order of the item index.
        listed: bool [N], the items that may be recommended; None for all. The others have left the catalogue.

    Raises:
        DataError: there are no test users, or an item index is outside the catalogue.
    """
    untested, histories = histories.filter(~pl.col("tested")), histories.filter("tested")
    flat = flat_histories(histories, num_items=len(item_ids), untested=untested)
    popular = recommend_popular(flat, num_items=len(item_ids), top_k=_NUM_POPULAR, listed=listed)[False]
    rows = [[item_ids[index] for index in row] for row in histories["item_indices"].to_list()]
    return HeldOutUsers(
        inputs=[row[:-1] for row in rows],
        targets=[row[-1] for row in rows],
        popular=[[item_ids[index] for index in row if index != NO_ITEM] for row in popular],
        catalogue=frozenset(item_ids if listed is None else np.array(item_ids, dtype=object)[listed].tolist()),
    )


def test_targets(histories: pl.DataFrame, item_ids: Sequence[str]) -> pl.DataFrame:
    """List the interactions that the tested users of a `histories` table are tested on, in the order of the table.

    Args:
        histories: schema HISTORIES.
        item_ids: the item ids of the catalogue, in the order of the item index.

    Returns:
        The columns user_id, item_id and timestamp (ms).
    """
    tested = histories.filter("tested").select(
        "user_id", pl.col("item_indices").list.last().alias("item"), pl.col("timestamps").list.last().alias("timestamp")
    )
    ids = pl.Series("item_id", [item_ids[index] for index in tested["item"]], dtype=pl.String)
    return tested.select("user_id", ids, "timestamp")


def newest_interaction(histories: pl.DataFrame) -> int:
    """Return the time of the newest interaction in a `histories` table with at least one row, in ms."""
    return int(histories.select(pl.col("timestamps").list.max().max()).item())
