"""Gives every item of today's catalogue a semantic ID that the champion understands.

The items that the champion knows keep the IDs that they have in its bundle. If today's ID table continues that of the
champion, as after a refresh, the table is taken as it is. Otherwise, as after a run that gave all items new IDs, the
new items are placed by the quantizer in the champion's bundle.

Shapes (docs/notation.md): L levels, N items.
"""

from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.ids.continuity import today
from macrec_pipeline.defs.ids.tables import anchor_vectors
from macrec_pipeline.defs.ids.vectors import item_vectors
from macrec_pipeline.defs.table_conversion import codes_by_modality
from macrec_pipeline.errors import SemanticIdError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from macrec_pipeline.recommender import BundleContents

MAX_DRIFT = 0.5
"""Largest share of the champion's items that may have other nearest codes with today's embeddings than their ID."""


def champion_codes(
    asset: AssetContext, champion: "BundleContents", device: "torch.device"
) -> "Mapping[str, np.ndarray]":
    """Return the codes of today's items in the champion's ID table, int64 [N, L] per modality.

    Args:
        asset: the asset that needs them.
        champion: the bundle that the champion serves.
        device: where to compute.

    Raises:
        SemanticIdError: the champion's quantizer cannot place new items, because it is missing or does not fit today's
            embeddings, or because no code near an item is free.
    """
    items, table = asset.read_table("items")["item_id"].to_list(), asset.read_table("semantic_ids")
    codes = codes_by_modality(table)
    row_of = {item_id: row for row, item_id in enumerate(champion.item_ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in items], dtype=np.int64)
    known = rows >= 0
    same_size = asset.store.manifest("semantic_ids").details["codebook_size"] == champion.description["codebook_size"]
    if (
        same_size
        and known.any()
        and codes.keys() == champion.codes.keys()
        and all(np.array_equal(codes[modality][known], champion.codes[modality][rows[known]]) for modality in codes)
    ):
        return codes
    return _extended(asset, champion, items, device)


def _extended(
    asset: AssetContext, champion: "BundleContents", items: list[str], device: "torch.device"
) -> "Mapping[str, np.ndarray]":
    """Place the items that the champion does not know with its own quantizer."""
    from macrec_pipeline.semantic_ids import FittedQuantizer, IdsByItem, RetiredIds, append_semantic_ids

    if champion.quantizer is None or asset.has_given_ids:
        raise SemanticIdError("The data set provides its semantic IDs, and they are no longer those of the champion.")
    quantizer, vectors = FittedQuantizer.load(champion.quantizer, device=device), item_vectors(asset)
    for modality, matrix in vectors.items():
        module = quantizer.modules.get(modality)
        width = module.input_dim - quantizer.collaborative_dim if module else 0
        if matrix.shape[1] != width:
            raise SemanticIdError(
                f"The champion's quantizer was fitted to {modality} embeddings with {width} dimensions, but they now "
                f"have {matrix.shape[1]}."
            )
    unmoved = {modality: np.zeros(len(champion.item_ids), dtype=np.bool_) for modality in champion.codes}
    ids = IdsByItem(champion.item_ids, champion.codes, unmoved)
    appended = append_semantic_ids(
        quantizer,
        vectors.get("text"),
        vectors.get("image"),
        item_ids=items,
        previous=ids,
        retired=RetiredIds(ids.select(np.zeros(0, dtype=np.int64)), np.zeros(0, dtype=np.int64)),
        now=today(),
        retire_for_days=asset.config.identity.retire_for_days,
        device=device,
        collaborative_vectors=anchor_vectors(asset, quantizer, vectors, folder=champion.quantizer),
    )
    modality, drift = max(appended.drift.items(), key=lambda entry: entry[1])
    if drift > MAX_DRIFT:
        raise SemanticIdError(
            f"With today's {modality} embeddings, {drift:.0%} of the items that the champion knows have other nearest "
            "codes than their ID, so the encoder or most of the contents have changed since."
        )
    return appended.assigned.codes
