"""Semantic IDs between tables and arrays: who owns which, which are retired, what anchors the quantizer's input."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.table_conversion import codes_by_modality
from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.schemas import RETIRED_IDS, TableSchema

if TYPE_CHECKING:
    from macrec_pipeline.semantic_ids import Anchors, FittedQuantizer, OwnedIds, RetiredIds

logger = logging.getLogger(__name__)


def owned_ids(table: pl.DataFrame) -> "OwnedIds":
    """Item ids, codes and flags of `SEMANTIC_IDS` or `RETIRED_IDS`."""
    from macrec_pipeline.semantic_ids import OwnedIds

    codes = codes_by_modality(table)
    return OwnedIds(table["item_id"].to_list(), codes, {route: table[f"{route}_moved"].to_numpy() for route in codes})


def previous_ids(work: AssetContext) -> "OwnedIds | None":
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
    for route, codes in owned.codes.items():
        columns[f"{route}_codes"] = pl.Series(codes.tolist(), dtype=pl.List(pl.Int64))
        columns[f"{route}_moved"] = pl.Series(owned.moved[route], dtype=pl.Boolean)
    columns["retired_at"] = pl.Series(retired.retired_at, dtype=pl.Int64)
    return with_every_column(pl.DataFrame(columns), RETIRED_IDS).sort("item_id")


def with_every_column(table: pl.DataFrame, schema: TableSchema) -> pl.DataFrame:
    """The table in the schema's columns, those of a modality that the catalogue lacks without a value."""
    return pl.concat([schema.empty(), table], how="diagonal")


def known_anchors(work: AssetContext) -> "Anchors | None":
    """SASRec's embeddings of the items that anybody touched, if the quantizer is told to look at them."""
    from macrec_pipeline.recommender.sasrec.fitted import load_item_embeddings
    from macrec_pipeline.semantic_ids import Anchors

    config = work.config.quantizer
    if not (config.collaborative_input_weight or config.collaborative_contrast_weight):
        return None
    embeddings, items = load_item_embeddings(work.folder("sasrec")), work.table("items")
    touched = (items["num_interactions"] > 0).to_numpy()
    return None if embeddings is None else Anchors(items.filter(touched)["item_id"].to_list(), embeddings[touched])


def anchors(work: AssetContext, quantizer: "FittedQuantizer", vectors: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """An anchor for every item, float32 [N, C], if the quantizer's input has them."""
    from macrec_pipeline.semantic_ids import Anchors

    if not quantizer.collaborative_dim:
        return None
    return Anchors.load(work.store.folder("quantizer")).of(work.table("items")["item_id"].to_list(), vectors)
