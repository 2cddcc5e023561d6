"""The test users of a split by item id, for models that number the items otherwise.

In: `histories` and the catalogue that its indices are of. Out: `HeldOut`. U users, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from macrec_pipeline.evaluation.baselines import recommend_popular
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, flat_histories

_NUM_POPULAR = 10


@dataclass(frozen=True)
class HeldOut:
    """U test users.

    Attributes:
        inputs: the item ids that each user took before the last, oldest first.
        targets: the last item id of each.
        popular: the ten most popular items of the training parts, best first, a user.
        catalogue: all N item ids.
    """

    inputs: list[list[str]]
    targets: list[str]
    popular: list[list[str]]
    catalogue: frozenset[str]


def held_out(histories: pl.DataFrame, item_ids: Sequence[str]) -> HeldOut:
    """Every tested user of `HISTORIES`, in its order; `item_ids` in that of the item index. Raises `DataError`."""
    untested, histories = histories.filter(~pl.col("tested")), histories.filter("tested")
    flat = flat_histories(histories, num_items=len(item_ids), untested=untested)
    popular = recommend_popular(flat, num_items=len(item_ids), top_k=_NUM_POPULAR)[False]
    rows = [[item_ids[index] for index in row] for row in histories["item_indices"].to_list()]
    return HeldOut(
        inputs=[row[:-1] for row in rows],
        targets=[row[-1] for row in rows],
        popular=[[item_ids[index] for index in row if index != NO_ITEM] for row in popular],
        catalogue=frozenset(item_ids),
    )
