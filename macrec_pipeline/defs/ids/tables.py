"""Converts between the stored ID tables and the numeric core: retired IDs, collaborative anchors.

Shapes (docs/notation.md): N items, F width of a collaborative vector.
"""

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
    from pathlib import Path

    from macrec_pipeline.semantic_ids import Anchors, FittedQuantizer, IdsByItem, LearnedVectors, RetiredIds

logger = logging.getLogger(__name__)

MIN_INTERACTIONS = 10
"""From how many interactions on what SASRec has learned about a new item places it better than its content does, as
measured on MovieLens-100K (docs/decisions/030)."""


def ids_by_item(table: pl.DataFrame) -> "IdsByItem":
    """Convert `SEMANTIC_IDS` or `RETIRED_IDS` to item IDs, codes and flags."""
    from macrec_pipeline.semantic_ids import IdsByItem

    codes = codes_by_modality(table)
    moved = {modality: table[f"{modality}_moved"].to_numpy() for modality in codes}
    return IdsByItem(table["item_id"].to_list(), codes, moved)


def previous_ids(asset: AssetContext) -> "IdsByItem | None":
    """Return the ID table before this run; None if there is none or it cannot be read."""
    if not asset.store.has("semantic_ids"):
        return None
    try:
        return ids_by_item(asset.store.read_table("semantic_ids"))
    except (StorageError, SchemaError) as error:
        logger.warning("The new IDs are not compared with the previous ones, which cannot be read: %s", error)
        return None


def retired_table(retired: "RetiredIds") -> pl.DataFrame:
    """Convert retired IDs to `RETIRED_IDS`."""
    retired_ids = retired.ids
    columns: dict[str, Any] = {"item_id": pl.Series(retired_ids.item_ids, dtype=pl.String)}
    for modality, codes in retired_ids.codes.items():
        columns[f"{modality}_codes"] = pl.Series(codes.tolist(), dtype=pl.List(pl.Int64))
        columns[f"{modality}_moved"] = pl.Series(retired_ids.moved[modality], dtype=pl.Boolean)
    columns["retired_at"] = pl.Series(retired.retired_at, dtype=pl.Int64)
    return with_all_columns(pl.DataFrame(columns), RETIRED_IDS).sort("item_id")


def with_all_columns(table: pl.DataFrame, schema: TableSchema) -> pl.DataFrame:
    """Complete a table to the columns of a schema; those of a modality that the catalogue lacks are null."""
    return pl.concat([schema.empty(), table], how="diagonal")


def sasrec_anchors(asset: AssetContext) -> "Anchors | None":
    """SASRec's embeddings of the items that have interactions, if the settings let the quantizer use them."""
    from macrec_pipeline.recommender.sasrec.fitted import load_item_embeddings
    from macrec_pipeline.semantic_ids import Anchors

    config = asset.config.quantizer
    if not (config.collaborative_input_weight or config.collaborative_contrast_weight):
        return None
    embeddings, items = load_item_embeddings(asset.folder("sasrec")), asset.read_table("items")
    has_interactions = (items["num_interactions"] > 0).to_numpy()
    if embeddings is None:
        return None
    return Anchors(items.filter(has_interactions)["item_id"].to_list(), embeddings[has_interactions])


def anchor_vectors(
    asset: AssetContext,
    quantizer: "FittedQuantizer",
    vectors: Mapping[str, np.ndarray],
    *,
    folder: "Path | None" = None,
) -> np.ndarray | None:
    """Return a collaborative vector for every item, float32 [N, F]; None if the quantizer's input has none.

    Args:
        asset: the asset that needs the vectors.
        quantizer: the quantizer.
        vectors: the embeddings of each modality, float32 [N, D].
        folder: of the quantizer; None: that of the present one.
    """
    from macrec_pipeline.semantic_ids import Anchors

    if not quantizer.collaborative_dim:
        return None
    items = asset.read_table("items")
    return Anchors.load(folder or asset.store.folder("quantizer")).for_items(
        items["item_id"].to_list(), vectors, learned=_learned_vectors(asset, items)
    )


def _learned_vectors(asset: AssetContext, items: pl.DataFrame) -> "LearnedVectors | None":
    """Return the vectors that today's SASRec has learned; None if it was not trained."""
    from macrec_pipeline.recommender.sasrec.fitted import load_item_embeddings
    from macrec_pipeline.semantic_ids import LearnedVectors

    embeddings = load_item_embeddings(asset.folder("sasrec"))
    if embeddings is None:
        return None
    return LearnedVectors(embeddings, (items["num_interactions"] >= MIN_INTERACTIONS).to_numpy())
