"""The quality report of an ID table: collects its inputs from the store, and flattens it for Dagster.

Shapes (docs/notation.md): N items, D width of an embedding.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.ids.tables import anchor_vectors, previous_ids
from macrec_pipeline.defs.table_conversion import training_sequences

if TYPE_CHECKING:
    from macrec_pipeline.semantic_ids import AssignedIds, FittedQuantizer


def measure_quality(
    asset: AssetContext,
    assigned: "AssignedIds",
    *,
    quantizer: "FittedQuantizer | None" = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    drift: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Compute the quality report of an ID table, as plain JSON.

    Args:
        asset: an asset that is made from `items` and `histories`.
        assigned: the IDs.
        quantizer: what assigned them; None if the data set provides them.
        vectors: the embeddings of each modality, float32 [N, D]; None if the data set provides the IDs.
        drift: what appending found out about codes that would be different today.
    """
    from macrec_pipeline.semantic_ids import quality_report

    item_ids = asset.read_table("items")["item_id"].to_list()
    training_parts = [sequence[:-2] for sequence in training_sequences(asset.read_table("histories"))]
    collaborative = None if quantizer is None or vectors is None else anchor_vectors(asset, quantizer, vectors)
    return quality_report(
        assigned,
        item_ids=item_ids,
        is_cold=np.bincount(np.concatenate(training_parts), minlength=len(item_ids)) == 0,
        previous=previous_ids(asset),
        quantizer=quantizer,
        vectors=vectors,
        collaborative_vectors=collaborative,
        drift=drift,
    )


def flatten_quality_report(report: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a quality report to one level of names: `text_collision_rate_before`, `text_perplexity_1`, ..."""
    flat = {name: value for name, value in report.items() if not isinstance(value, dict)}
    for modality in ROUTES:
        for name, value in report.get(modality, {}).items():
            if isinstance(value, list):
                flat |= {f"{modality}_{name}_{level}": figure for level, figure in enumerate(value, start=1)}
            else:
                flat[f"{modality}_{name}"] = value
    return flat
