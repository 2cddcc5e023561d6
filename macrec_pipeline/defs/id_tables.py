"""Semantic IDs between tables and arrays: who owns which, which are retired, what anchors the quantizer's input."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.tracked import Stage, codes_of
from macrec_pipeline.errors import SchemaError, StorageError

if TYPE_CHECKING:
    from macrec_pipeline.semantic_ids import Anchors, FittedQuantizer, OwnedIds, RetiredIds

logger = logging.getLogger(__name__)


def owned_ids(table: pl.DataFrame) -> "OwnedIds":
    """Item ids, codes and flags of `SEMANTIC_IDS` or `RETIRED_IDS`."""
    from macrec_pipeline.semantic_ids import OwnedIds

    return OwnedIds(
        table["item_id"].to_list(),
        {route: codes_of(table, f"{route}_codes") for route in ROUTES},
        {route: table[f"{route}_moved"].to_numpy() for route in ROUTES},
    )


def previous_ids(work: Stage) -> "OwnedIds | None":
    """The ID table before this run; none where there is none, or it cannot be read."""
    if not work.store.has("semantic_ids"):
        return None
    try:
        return owned_ids(work.store.read_table("semantic_ids"))
    except (StorageError, SchemaError) as error:
        logger.warning("Nothing is compared with the IDs before, since they cannot be read: %s", error)
        return None


def retired_table(retired: "RetiredIds") -> pl.DataFrame:
    """`RETIRED_IDS`."""
    owned = retired.owned
    columns: dict[str, Any] = {"item_id": pl.Series(owned.item_ids, dtype=pl.String)}
    for route in ROUTES:
        columns[f"{route}_codes"] = pl.Series(owned.codes[route].tolist(), dtype=pl.List(pl.Int64))
    columns |= {f"{route}_moved": pl.Series(owned.moved[route], dtype=pl.Boolean) for route in ROUTES}
    return pl.DataFrame(columns).with_columns(retired_at=pl.Series(retired.retired_at, dtype=pl.Int64)).sort("item_id")


def known_anchors(work: Stage) -> "Anchors | None":
    """SASRec's embeddings of the items that anybody touched, if the quantizer is told to look at them."""
    from macrec_pipeline.recommender.fitted_sasrec import load_item_embeddings
    from macrec_pipeline.semantic_ids import Anchors

    config = work.config.quantizer
    if not (config.collaborative_input_weight or config.collaborative_contrast_weight):
        return None
    embeddings, items = load_item_embeddings(work.folder("sasrec")), work.table("items")
    touched = (items["num_interactions"] > 0).to_numpy()
    return None if embeddings is None else Anchors(items.filter(touched)["item_id"].to_list(), embeddings[touched])


def anchors(work: Stage, quantizer: "FittedQuantizer", vectors: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """An anchor for every item, float32 [N, C], if the quantizer's input has them."""
    from macrec_pipeline.semantic_ids import Anchors

    if not quantizer.collaborative_dim:
        return None
    return Anchors.load(work.store.folder("quantizer")).of(work.table("items")["item_id"].to_list(), vectors)
