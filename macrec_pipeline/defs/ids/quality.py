"""The quality report of an ID table: what goes into it, and how a person sees it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.ids.tables import anchors, previous_ids
from macrec_pipeline.defs.table_conversion import training_sequences

if TYPE_CHECKING:
    from macrec_pipeline.semantic_ids import AssignedIds, FittedQuantizer


def quality(
    work: AssetContext,
    assigned: "AssignedIds",
    *,
    quantizer: "FittedQuantizer | None" = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    drift: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The quality report of an ID table, with what is known of the embeddings behind it; plain JSON."""
    from macrec_pipeline.semantic_ids import quality_report

    item_ids = work.table("items")["item_id"].to_list()
    training = [sequence[:-2] for sequence in training_sequences(work.table("histories"))]
    return quality_report(
        assigned,
        item_ids=item_ids,
        is_cold=np.bincount(np.concatenate(training), minlength=len(item_ids)) == 0,
        previous=previous_ids(work),
        quantizer=quantizer,
        vectors=vectors,
        collaborative_vectors=None if quantizer is None or vectors is None else anchors(work, quantizer, vectors),
        drift=drift,
    )


def quality_facts(report: Mapping[str, Any]) -> dict[str, Any]:
    """The quality report, flat: `text_collision_rate_before`, `text_perplexity_1`, ..."""
    facts = {name: value for name, value in report.items() if not isinstance(value, dict)}
    for route in ROUTES:
        for name, value in report.get(route, {}).items():
            levels = (
                {f"_{level}": each for level, each in enumerate(value, 1)} if isinstance(value, list) else {"": value}
            )
            facts |= {f"{route}_{name}{level}": each for level, each in levels.items()}
    return facts
