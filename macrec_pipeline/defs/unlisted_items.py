"""Items that have left the catalogue: they stay in histories and are trained on, but nothing may recommend them.

Such an item is no test target either: no system could be right about it. Its user is left out of the evaluation, and
the item itself stays held out.
"""

import logging

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.errors import DataError

logger = logging.getLogger(__name__)


def unlisted_items(asset: AssetContext) -> NDArray[np.int64]:
    """The rows in `items` of the items that have left the catalogue, int64, ascending."""
    return asset.store.read_beside("items", "unlisted_items")["item_index"].to_numpy()


def listed_mask(asset: AssetContext, *, num_items: int) -> NDArray[np.bool_] | None:
    """Which items are in the catalogue, bool [N]; None if all are."""
    unlisted = unlisted_items(asset)
    if not len(unlisted):
        return None
    listed = np.ones(num_items, dtype=np.bool_)
    listed[unlisted] = False
    return listed


def evaluation_histories(asset: AssetContext) -> pl.DataFrame:
    """`HISTORIES`, in which a user whose test target has left the catalogue is not tested and lacks that target.

    Raises:
        DataError: the test target of every user has left.
    """
    histories = asset.read_table("histories")
    unlisted = unlisted_items(asset)
    has_left = pl.col("tested") & pl.col("item_indices").list.last().is_in(unlisted.tolist())
    num_left = histories.filter(has_left).height if len(unlisted) else 0
    if not num_left:
        return histories
    num_tested = int(histories["tested"].sum())
    if num_left == num_tested:
        raise DataError(
            f"No user of {asset.dataset} can be tested: the test targets of all {num_tested:,} have left the "
            "catalogue. Check that raw_items was read from the right file, and that it is complete."
        )
    logger.info(
        "%s of %s test users are left out, because the item to predict has left the catalogue.",
        f"{num_left:,}",
        f"{num_tested:,}",
    )
    without_last = (
        pl.when(has_left).then(pl.col(name).list.head(pl.col(name).list.len() - 1)).otherwise(name)
        for name in ("item_indices", "timestamps")
    )
    return histories.with_columns(
        *without_last,
        tested=pl.col("tested") & ~has_left,
        num_at_target_time=pl.when(~has_left).then("num_at_target_time"),
    )
