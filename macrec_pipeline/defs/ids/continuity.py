"""Whether semantic IDs go on from the table that is there, or are made anew.

In: the settings of `identity`, and the newest quantizer and ID table of the store. Out: the choice with its reason, and
the IDs of a catalogue that is met again.
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
from macrec_pipeline.defs.assets.embeddings import MADE_BY
from macrec_pipeline.defs.ids.quality import quality
from macrec_pipeline.defs.ids.tables import anchors, owned_ids
from macrec_pipeline.errors import SemanticIdError

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids import AppendedIds, FittedQuantizer
    from macrec_pipeline.semantic_ids.assignment import Quantize

logger = logging.getLogger(__name__)

IDENTITY = "identity"
DAY_MS = 86_400_000
_MUST_AGREE = ("method", "num_levels", "codebook_size")
_ANEW = "Run once with identity.mode=new to quantize the whole catalogue"


@dataclass(frozen=True)
class Choice:
    """Whether the IDs that are there are kept, under which `identity.mode`, and why."""

    mode: str
    append: bool
    reason: str


def keeps_quantizer(work: AssetContext) -> bool:
    """Whether it is certain, before anything is computed, that this run fits no quantizer."""
    return work.config.identity.mode == "append" and _first_missing(work) is None


def choose(work: AssetContext, vectors: Mapping[str, np.ndarray], device: "torch.device") -> Choice:
    """What becomes of the quantizer that is there.

    Raises:
        SemanticIdError: append is asked for, and settings, encoders or ID table are not those of the quantizer.
    """
    mode = work.config.identity.mode
    if mode == "new":
        return Choice(mode, append=False, reason="identity.mode is new")
    if missing := _first_missing(work):
        return _anew(mode, f"there is no {missing} yet to go on from")
    problem = _mismatch(work, vectors)
    if problem and mode == "append":
        raise SemanticIdError(f"No IDs can be appended: {problem}. {_ANEW}.")
    if problem:
        return _anew(mode, problem)
    if mode == "auto":
        crossed = _crossed_by_appending(work, vectors, device)
        if crossed:
            return _anew(mode, " ".join(crossed))
    return Choice(mode, append=True, reason="the quantizer is kept, and old items keep their IDs")


def choice_of_quantizer(work: AssetContext) -> Choice:
    """What the ID table has to do, which the quantizer's asset decided.

    Raises:
        SemanticIdError: the IDs that are there are not of the quantizer that is there, and it is not known why.
    """
    mode, manifest = work.config.identity.mode, work.store.manifest("quantizer")
    if mode == "new":
        return Choice(mode, append=False, reason="identity.mode is new")
    if not work.store.has("semantic_ids"):
        return Choice(mode, append=False, reason="there is no semantic_ids yet to go on from")
    if work.store.manifest("semantic_ids").details.get("quantizer") == manifest.digest:
        return Choice(mode, append=True, reason="the quantizer is the one that the IDs before were made with")
    made = Choice(**manifest.details.get(IDENTITY, {"mode": "unknown", "append": False, "reason": "unknown"}))
    if made.mode != mode:
        raise SemanticIdError(
            f"No IDs can be appended: semantic_ids of {work.dataset} are not of the quantizer that is there, which was "
            f"made with identity.mode={made.mode}. {_ANEW}."
        )
    return Choice(mode, append=False, reason=made.reason)


def origin(work: AssetContext) -> dict[str, Any]:
    """What a manifest of `semantic_ids` keeps for the next run: which quantizer made it, and which encoders."""
    return {"quantizer": work.store.manifest("quantizer").digest, MADE_BY: _encoders(work)}


def append_ids(
    work: AssetContext,
    quantizer: "FittedQuantizer",
    vectors: Mapping[str, np.ndarray],
    device: "torch.device",
    quantize_by: "Quantize | None" = None,
) -> "AppendedIds":
    """IDs for the catalogue as it is now, going on from the table and the retired IDs that are there."""
    from macrec_pipeline.semantic_ids import RetiredIds, append_semantic_ids

    previous = owned_ids(work.store.read_table("semantic_ids"))
    retired = work.store.read_beside("semantic_ids", "retired_ids")
    nobody = previous.rows(np.zeros(0, dtype=np.int64))
    return append_semantic_ids(
        quantizer,
        vectors.get("text"),
        vectors.get("image"),
        item_ids=work.table("items")["item_id"].to_list(),
        previous=previous,
        retired=RetiredIds(owned_ids(retired) if retired.height else nobody, retired["retired_at"].to_numpy()),
        now=today(),
        retire_for_days=work.config.identity.retire_for_days,
        device=device,
        collaborative_vectors=anchors(work, quantizer, vectors),
        quantize_by=quantize_by,
    )


def today() -> int:
    """This day's beginning, UTC, in ms since the epoch: two runs on one day write the same bytes."""
    return int(time.time() * 1000) // DAY_MS * DAY_MS


def as_details(choice: Choice) -> dict[str, Any]:
    """A choice as it is kept in a manifest."""
    return {IDENTITY: asdict(choice)}


def _first_missing(work: AssetContext) -> str | None:
    """The first of what append mode goes on from that is not there."""
    return next((name for name in ("quantizer", "semantic_ids") if not work.store.has(name)), None)


def _anew(mode: str, reason: str) -> Choice:
    logger.warning("identity.mode is %s, but all semantic IDs are made anew: %s", mode, reason)
    return Choice(mode, append=False, reason=reason)


def _mismatch(work: AssetContext, vectors: Mapping[str, np.ndarray]) -> str | None:
    """What of the settings, the embeddings or the ID table is not the quantizer's, in words."""
    description = json.loads((work.store.folder("quantizer") / "quantizer.json").read_text(encoding="utf-8"))
    made, wanted = description["config"], work.config.quantizer
    for name in _MUST_AGREE:
        if made[name] != getattr(wanted, name):
            return f"the quantizer has {name} {made[name]}, but quantizer.{name} is {getattr(wanted, name)}"
    if bool(description["collaborative_dim"]) != (wanted.collaborative_input_weight > 0):
        return (
            f"the quantizer's input has {description['collaborative_dim']} collaborative numbers, but "
            f"quantizer.collaborative_input_weight is {wanted.collaborative_input_weight}"
        )
    known = description["embedding_dim"]
    if known.keys() != vectors.keys():
        return f"the quantizer knows {' and '.join(known)} embeddings, and the catalogue has {' and '.join(vectors)}"
    for route, matrix in vectors.items():
        if known[route] != matrix.shape[1]:
            return f"the quantizer knows {route} embeddings of {known[route]} numbers, and they have {matrix.shape[1]}"
    details, digest = work.store.manifest("semantic_ids").details, work.store.manifest("quantizer").digest
    if details.get("quantizer") != digest:
        other = str(details.get("quantizer", "not known"))[:12]
        return f"semantic_ids were made with another quantizer ({other}) than the one that is there ({digest[:12]})"
    changed = [route for route, by in _encoders(work).items() if details.get(MADE_BY, {}).get(route) != by]
    return f"the encoder of {' and '.join(changed)} is another one than for the IDs that are there" if changed else None


def _crossed_by_appending(work: AssetContext, vectors: Mapping[str, np.ndarray], device: "torch.device") -> list[str]:
    """Which limits the table would cross if IDs were appended, in words."""
    from macrec_pipeline.semantic_ids import FittedQuantizer, breaches

    quantizer = FittedQuantizer.load(work.store.folder("quantizer"), device=device)
    try:
        appended = append_ids(work, quantizer, vectors, device)
    except SemanticIdError as error:  # there is no room left: a reason to quantize anew
        return [str(error)]
    report = quality(work, appended.assigned, quantizer=quantizer, vectors=vectors, drift=appended.drift)
    return [breach.message for breach in breaches(report["worst"], work.config.identity.limits)]


def _encoders(work: AssetContext) -> dict[str, Any]:
    """By what each route's embeddings were made; None where the data set brings them."""
    return {route: work.store.manifest(f"{route}_embeddings").details.get(MADE_BY) for route in ROUTES}
