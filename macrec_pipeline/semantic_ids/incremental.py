"""Append mode: keeps the IDs of a catalogue stable while items come and go.

The quantizer stays as it is. An item that has an ID keeps it, and a new item gets the nearest free one. The ID of an
item that leaves the catalogue is retired: for some days no other item gets it, and an item that returns within that
time gets it back.

Shapes (docs/notation.md): D embedding width, F width of a collaborative vector, L levels, N items in the catalogue now.
Other axes are written in words: `[taken, L]` is one row per ID that is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.runtime.time_units import DAY_MS
from macrec_pipeline.semantic_ids.assignment import AssignedIds, QuantizeModality, quantizer_inputs
from macrec_pipeline.semantic_ids.collision_resolution import resolve_collisions
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer


@dataclass(frozen=True)
class IdsByItem:
    """Semantic IDs with the items that have them; row i of every array belongs to item i.

    A modality that the catalogue lacks is in none of the mappings.

    Attributes:
        item_ids: distinct item IDs.
        codes: modality -> int64 [items, L], distinct rows.
        moved: modality -> bool [items], True where the resolution of collisions changed the ID when it was assigned.
    """

    item_ids: Sequence[str]
    codes: Mapping[str, np.ndarray]
    moved: Mapping[str, np.ndarray]

    def select(self, rows: np.ndarray) -> IdsByItem:
        """Return the items at some rows, given as indices or as a boolean mask."""
        index = np.arange(len(self.item_ids))[rows]
        return IdsByItem(
            [self.item_ids[row] for row in index],
            {modality: codes[index] for modality, codes in self.codes.items()},
            {modality: moved[index] for modality, moved in self.moved.items()},
        )

    def followed_by(self, other: IdsByItem) -> IdsByItem:
        """Return these items and then those of another table."""
        return IdsByItem(
            [*self.item_ids, *other.item_ids],
            {modality: np.concatenate([codes, other.codes[modality]]) for modality, codes in self.codes.items()},
            {modality: np.concatenate([moved, other.moved[modality]]) for modality, moved in self.moved.items()},
        )


@dataclass(frozen=True)
class RetiredIds:
    """The IDs of items that have left the catalogue.

    Attributes:
        ids: the IDs with the items that had them.
        retired_at: int64 [items], when a run first missed the item, in milliseconds since the epoch.
    """

    ids: IdsByItem
    retired_at: np.ndarray


@dataclass(frozen=True)
class AppendedIds:
    """The result of append mode.

    Attributes:
        assigned: the IDs of all N items. Its collision rate before resolution is that of the nearest codes.
        retired: the IDs that are retired now, for the next run.
        is_new: bool [N], True for items that had no ID.
        num_returned: number of items that got their retired ID back.
        drift: modality -> share of the old items whose ID was their nearest codes and no longer is, because their
            embedding has changed. They keep the ID. 0 if no old item had its nearest codes.
    """

    assigned: AssignedIds
    retired: RetiredIds
    is_new: np.ndarray
    num_returned: int
    drift: dict[str, float]


def append_semantic_ids(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    *,
    item_ids: Sequence[str],
    previous: IdsByItem,
    retired: RetiredIds,
    now: int,
    retire_for_days: int,
    device: torch.device,
    collaborative_vectors: np.ndarray | None = None,
    quantize_modality: QuantizeModality | None = None,
) -> AppendedIds:
    """Assign IDs to the items that have none, and leave all other IDs unchanged.

    Args:
        quantizer: the quantizer that `previous` and `retired` were assigned with.
        text_vectors, image_vectors: float32 [N, D]; None for a modality that the catalogue and the quantizer lack.
        item_ids: N item IDs, in the order of the vectors.
        previous: the IDs of the previous table.
        retired: the IDs that were retired by then; their items are not in `previous`.
        now: the current time, in milliseconds since the epoch.
        retire_for_days: how long the ID of an item that has left is kept for it.
        device: device of the quantizer.
        collaborative_vectors: float32 [N, F]; required if the quantizer's `collaborative_dim` F is above 0.
        quantize_modality: finds the nearest codes, for example in worker processes; None to do it in this process.

    Raises:
        SemanticIdError: a new item finds no free ID near it, or the vectors do not match the quantizer.
    """
    is_reserved = now - retired.retired_at < retire_for_days * DAY_MS
    existing = previous.followed_by(retired.ids.select(is_reserved))
    left_at = np.concatenate([np.full(len(previous.item_ids), now), retired.retired_at[is_reserved]])
    row_of = {item_id: row for row, item_id in enumerate(existing.item_ids)}
    existing_row = np.array([row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
    is_gone = np.ones(len(existing.item_ids), dtype=bool)
    is_gone[existing_row[existing_row >= 0]] = False
    results = {}
    for modality, inputs in quantizer_inputs(quantizer, text_vectors, image_vectors, collaborative_vectors).items():
        module = quantizer.modules[modality]
        nearest, residuals = (
            quantize(module, inputs, device=device)
            if quantize_modality is None
            else quantize_modality(modality, inputs)
        )
        results[modality] = _append(module, nearest, residuals, existing_row, existing, modality=modality)
    assigned = AssignedIds(
        {modality: result.codes for modality, result in results.items()},
        {modality: result.moved for modality, result in results.items()},
        {
            modality: {"before": collision_rate(result.nearest), "after": collision_rate(result.codes)}
            for modality, result in results.items()
        },
        quantizer.codebook_size,
    )
    return AppendedIds(
        assigned,
        RetiredIds(existing.select(is_gone), left_at[is_gone]),
        existing_row < 0,
        int((existing_row >= len(previous.item_ids)).sum()),
        {modality: result.drift for modality, result in results.items()},
    )


def ids_of_new_items(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    *,
    taken: Mapping[str, np.ndarray],
    device: torch.device,
    collaborative_vectors: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the IDs that the next run would assign to items that are in no table yet, if nothing else is new.

    Args:
        quantizer: the quantizer that the IDs of `taken` were assigned with.
        text_vectors, image_vectors: float32 [N, D] of the new items, from the same encoders as those of the others.
        taken: modality -> int64 [taken, L], the IDs of other items, including retired ones.
        device: device of the quantizer.
        collaborative_vectors: float32 [N, F]; required if the quantizer's `collaborative_dim` F is above 0.

    Returns:
        modality -> int64 [N, L], distinct rows, none of them taken.

    Raises:
        SemanticIdError: an item finds no free ID near it, or the vectors do not match the quantizer.
    """
    ids = {}
    for modality, inputs in quantizer_inputs(quantizer, text_vectors, image_vectors, collaborative_vectors).items():
        module = quantizer.modules[modality]
        nearest, residuals = quantize(module, inputs, device=device)
        ids[modality] = _free_ids(module, nearest, residuals, modality=modality, occupied=taken[modality])
    return ids


@dataclass(frozen=True)
class _ModalityResult:
    """One modality: IDs and nearest codes, int64 [N, L], the flag whether they differ, bool [N], and the drift."""

    codes: np.ndarray
    nearest: np.ndarray
    moved: np.ndarray
    drift: float


def _append(
    module: ModalityQuantizer,
    nearest: np.ndarray,
    residuals: torch.Tensor,
    existing_row: np.ndarray,
    existing: IdsByItem,
    *,
    modality: str,
) -> _ModalityResult:
    """Assign the IDs of one modality.

    Args:
        module: the quantizer of the modality.
        nearest, residuals: what `quantize` returns for all items.
        existing_row: int64 [N], the row of each item in `existing`, or -1 for a new item.
        existing: the IDs that items have or that are reserved for them.
        modality: "text" or "image".
    """
    is_new = existing_row < 0
    codes = nearest.copy()
    codes[~is_new] = existing.codes[modality][existing_row[~is_new]]
    if is_new.any():
        codes[is_new] = _free_ids(
            module, nearest[is_new], residuals[is_new], modality=modality, occupied=existing.codes[modality]
        )
    differs = (codes != nearest).any(axis=1)
    moved = differs.copy()
    moved[~is_new] = existing.moved[modality][existing_row[~is_new]]
    return _ModalityResult(codes, nearest, moved, _share(differs, among=~is_new & ~moved))


def _free_ids(
    module: ModalityQuantizer, nearest: np.ndarray, residuals: torch.Tensor, *, modality: str, occupied: np.ndarray
) -> np.ndarray:
    codebooks = module.quantizer.codebooks.detach().cpu()
    return resolve_collisions(nearest, residuals, codebooks, modality=modality, occupied=occupied)


def _share(flags: np.ndarray, *, among: np.ndarray) -> float:
    return float(flags[among].mean()) if among.any() else 0.0
