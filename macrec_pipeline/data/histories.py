"""Clean interactions and the catalogue -> one history a user, oldest item first (leave-one-out, MACRec section 4.1).

The last item is the test target, the one before it the validation target, the rest is for training. Interactions at one
time stay in the order in which the table has them: cleaning chose it.
"""

import polars as pl

from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import HISTORIES, INTERACTIONS


def build_histories(interactions: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Gather each user's interactions in the order of the table, which is that of time.

    Args:
        interactions: `INTERACTIONS`.
        items: `ITEMS`.

    Returns:
        `HISTORIES`; user_index is 0..U-1 in the order of user_id.

    Raises:
        SchemaError: the interactions are not in order, or an item is not in the catalogue.
    """
    INTERACTIONS.check(interactions, "for histories")
    joined = interactions.join(items.select("item_id", "item_index"), on="item_id", how="left", maintain_order="left")
    strangers = joined.filter(pl.col("item_index").is_null())
    if not strangers.is_empty():
        raise SchemaError(
            f"interactions: item {strangers['item_id'][0]!r} of user {strangers['user_id'][0]!r} is not in items "
            f"({strangers.height} rows). Materialize interactions and items together."
        )
    histories = (
        joined.group_by("user_id", maintain_order=True)
        .agg(pl.col("item_index").alias("item_indices"), pl.col("timestamp").alias("timestamps"))
        .select(pl.int_range(pl.len(), dtype=pl.Int64).alias("user_index"), "user_id", "item_indices", "timestamps")
    )
    return HISTORIES.check(histories)
