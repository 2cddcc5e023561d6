"""Reads the embeddings of today's items for the numeric core.

Shapes (docs/notation.md): N items, D width of an embedding.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.storage import vectors_of


def read_embeddings(asset: AssetContext) -> dict[str, pl.DataFrame]:
    """Read the embeddings of each modality that the catalogue has."""
    tables = {modality: asset.read_table(f"{modality}_embeddings") for modality in ROUTES}
    return {modality: table for modality, table in tables.items() if table.height}


def complete_vectors(tables: Mapping[str, pl.DataFrame]) -> dict[str, np.ndarray]:
    """Return the embeddings of each modality, writable float32 [N, D], with missing ones imputed from neighbours."""
    from macrec_pipeline.semantic_ids import impute_from_neighbours

    return impute_from_neighbours(
        {modality: vectors_of(table).copy() for modality, table in tables.items()},
        {modality: table["imputed"].to_numpy() for modality, table in tables.items()},
    )


def item_vectors(asset: AssetContext) -> dict[str, np.ndarray]:
    """Read the embeddings of each modality that the catalogue has, and complete them."""
    return complete_vectors(read_embeddings(asset))
