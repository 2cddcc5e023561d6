"""Decides whether semantic IDs continue from the existing table or are assigned from scratch.

The decision depends on `identity.mode` and on the newest quantizer and ID table in the store. It is made once, by the
quantizer's asset; the ID table's asset follows it. This module also appends IDs to an existing table.

Shapes (docs/notation.md): N items, D width of an embedding.
"""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import AssetContext
from macrec_pipeline.defs.ids.quality import measure_quality
from macrec_pipeline.defs.ids.tables import anchor_vectors, ids_by_item
from macrec_pipeline.defs.manifest_keys import IDENTITY, MADE_BY
from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.runtime.time_units import DAY_MS

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids import AppendedIds, FittedQuantizer
    from macrec_pipeline.semantic_ids.assignment import QuantizeModality

logger = logging.getLogger(__name__)

_SETTINGS_THAT_MUST_AGREE = ("method", "num_levels", "codebook_size")
_START_OVER = "Run once with identity.mode=new to assign new IDs to the whole catalogue"


@dataclass(frozen=True)
class Decision:
    """Whether the existing IDs are kept and new ones appended.

    Attributes:
        mode: the `identity.mode` that the decision was made under.
        append: whether IDs are appended to the existing table.
        reason: why, for a person.
    """

    mode: str
    append: bool
    reason: str

    def as_details(self) -> dict[str, Any]:
        """Return the decision as it is kept in a manifest."""
        return {IDENTITY: asdict(self)}


def will_keep_quantizer(asset: AssetContext) -> bool:
    """Return whether it is certain, before anything is computed, that this run fits no quantizer."""
    return asset.config.identity.mode == "append" and _first_missing(asset) is None


def decide(asset: AssetContext, vectors: Mapping[str, np.ndarray], device: "torch.device") -> Decision:
    """Decide whether the existing quantizer is kept.

    Args:
        asset: the quantizer's asset.
        vectors: the embeddings of each modality, float32 [N, D].
        device: where to compute.

    Raises:
        SemanticIdError: the mode is `append`, but the settings, encoders or ID table do not match the quantizer.
    """
    mode = asset.config.identity.mode
    if mode == "new":
        return Decision(mode, append=False, reason="identity.mode is new")
    if missing := _first_missing(asset):
        return _start_over(mode, f"there is no {missing} yet to continue from")
    mismatch = _find_mismatch(asset, vectors)
    if mismatch and mode == "append":
        raise SemanticIdError(f"No IDs can be appended: {mismatch}. {_START_OVER}.")
    if mismatch:
        return _start_over(mode, mismatch)
    if mode == "auto":
        violations = _violations_after_appending(asset, vectors, device)
        if violations:
            return _start_over(mode, " ".join(violations))
    return Decision(mode, append=True, reason="the quantizer is kept, and existing items keep their IDs")


def decision_for_ids(asset: AssetContext) -> Decision:
    """Return the decision of the quantizer's asset, as the ID table's asset must follow it.

    Raises:
        SemanticIdError: the existing IDs were not made with the existing quantizer, and its manifest does not say why.
    """
    mode, manifest = asset.config.identity.mode, asset.store.manifest("quantizer")
    if mode == "new":
        return Decision(mode, append=False, reason="identity.mode is new")
    if not asset.store.has("semantic_ids"):
        return Decision(mode, append=False, reason="there is no semantic_ids yet to continue from")
    if asset.store.manifest("semantic_ids").details.get("quantizer") == manifest.digest:
        return Decision(mode, append=True, reason="the existing IDs were made with this quantizer")
    unknown = {"mode": "unknown", "append": False, "reason": "unknown"}
    quantizer_decision = Decision(**manifest.details.get(IDENTITY, unknown))
    if quantizer_decision.mode != mode:
        raise SemanticIdError(
            f"No IDs can be appended: semantic_ids of {asset.dataset} were not made with the existing quantizer, which "
            f"was made with identity.mode={quantizer_decision.mode}. {_START_OVER}."
        )
    return Decision(mode, append=False, reason=quantizer_decision.reason)


def provenance(asset: AssetContext) -> dict[str, Any]:
    """Return what the manifest of `semantic_ids` keeps for later runs: quantizer and encoders of the IDs."""
    return {"quantizer": asset.store.manifest("quantizer").digest, MADE_BY: _encoders(asset)}


def append_ids(
    asset: AssetContext,
    quantizer: "FittedQuantizer",
    vectors: Mapping[str, np.ndarray],
    device: "torch.device",
    quantize_modality: "QuantizeModality | None" = None,
) -> "AppendedIds":
    """Assign IDs to the present catalogue, continuing from the existing table and its retired IDs."""
    from macrec_pipeline.semantic_ids import RetiredIds, append_semantic_ids

    previous = ids_by_item(asset.store.read_table("semantic_ids"))
    retired = asset.store.read_beside("semantic_ids", "retired_ids")
    no_ids = previous.select(np.zeros(0, dtype=np.int64))
    return append_semantic_ids(
        quantizer,
        vectors.get("text"),
        vectors.get("image"),
        item_ids=asset.read_table("items")["item_id"].to_list(),
        previous=previous,
        retired=RetiredIds(ids_by_item(retired) if retired.height else no_ids, retired["retired_at"].to_numpy()),
        now=today(),
        retire_for_days=asset.config.identity.retire_for_days,
        device=device,
        collaborative_vectors=anchor_vectors(asset, quantizer, vectors),
        quantize_modality=quantize_modality,
    )


def today() -> int:
    """Return the start of this day (UTC) in ms since the epoch, so that two runs on one day write the same bytes."""
    return int(time.time() * 1000) // DAY_MS * DAY_MS


def _first_missing(asset: AssetContext) -> str | None:
    """Return the first asset that append mode continues from and that does not exist yet."""
    return next((name for name in ("quantizer", "semantic_ids") if not asset.store.has(name)), None)


def _start_over(mode: str, reason: str) -> Decision:
    logger.warning("identity.mode is %s, but every item gets a new semantic ID: %s", mode, reason)
    return Decision(mode, append=False, reason=reason)


def _find_mismatch(asset: AssetContext, vectors: Mapping[str, np.ndarray]) -> str | None:
    """Return the first of the settings, embeddings or IDs that does not match the existing quantizer, as a clause."""
    description = json.loads((asset.store.folder("quantizer") / "quantizer.json").read_text(encoding="utf-8"))
    fitted_config, config = description["config"], asset.config.quantizer
    for name in _SETTINGS_THAT_MUST_AGREE:
        if fitted_config[name] != getattr(config, name):
            return f"the quantizer has {name} {fitted_config[name]}, but quantizer.{name} is {getattr(config, name)}"
    if bool(description["collaborative_dim"]) != (config.collaborative_input_weight > 0):
        return (
            f"the quantizer's input has {description['collaborative_dim']} collaborative dimensions, but "
            f"quantizer.collaborative_input_weight is {config.collaborative_input_weight}"
        )
    dimensions = description["embedding_dim"]
    if dimensions.keys() != vectors.keys():
        return (
            f"the quantizer was fitted to {' and '.join(dimensions)} embeddings, but the catalogue has "
            f"{' and '.join(vectors)} embeddings"
        )
    for modality, matrix in vectors.items():
        if dimensions[modality] != matrix.shape[1]:
            return (
                f"the quantizer was fitted to {modality} embeddings with {dimensions[modality]} dimensions, but they "
                f"now have {matrix.shape[1]}"
            )
    details, digest = asset.store.manifest("semantic_ids").details, asset.store.manifest("quantizer").digest
    if details.get("quantizer") != digest:
        used_quantizer = str(details.get("quantizer", "unknown"))[:12]
        return f"semantic_ids were made with another quantizer ({used_quantizer}) than the stored one ({digest[:12]})"
    previous = details.get(MADE_BY, {})
    changed = [modality for modality, encoder in _encoders(asset).items() if previous.get(modality) != encoder]
    return f"the encoder of {' and '.join(changed)} has changed since the existing IDs were made" if changed else None


def _violations_after_appending(
    asset: AssetContext, vectors: Mapping[str, np.ndarray], device: "torch.device"
) -> list[str]:
    """Return the limits that the table would break if IDs were appended, one sentence per limit."""
    from macrec_pipeline.semantic_ids import FittedQuantizer, limit_violations

    quantizer = FittedQuantizer.load(asset.store.folder("quantizer"), device=device)
    try:
        appended = append_ids(asset, quantizer, vectors, device)
    except SemanticIdError as error:  # no free code is left, which is a reason to start over
        return [str(error)]
    report = measure_quality(asset, appended.assigned, quantizer=quantizer, vectors=vectors, drift=appended.drift)
    return [violation.message for violation in limit_violations(report["worst"], asset.config.identity.limits)]


def _encoders(asset: AssetContext) -> dict[str, Any]:
    """Return the encoder of each modality's embeddings; None if the data set provides them."""
    return {modality: asset.store.manifest(f"{modality}_embeddings").details.get(MADE_BY) for modality in ROUTES}
