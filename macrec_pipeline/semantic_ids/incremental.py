"""Semantic IDs that last: the quantizer is frozen, who has an ID keeps it, and new items get what is free.

In: a fitted quantizer, the IDs of the table before and those of items that have gone, both by item id, and the
embeddings of the catalogue as it is now. Out: an ID for every item of it, and which IDs are retired from now on.

An ID is never given to another item while its owner is in the catalogue, nor for some days after. An owner who comes
back in that time gets it back.

Shapes: N items now, M with an ID before, R retired, L levels, D embedding, C collaborative vector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.semantic_ids.assignment import AssignedIds, Quantize, inputs_of, resolve
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer

DAY_MS = 86_400_000


@dataclass(frozen=True)
class OwnedIds:
    """IDs and whose they are; row i of everything is one item.

    Attributes:
        item_ids: M distinct keys of the shop.
        codes: {"text" | "image": int64 [M, L]}, rows distinct; without a modality that the catalogue lacks.
        moved: {"text" | "image": bool [M]}, True where resolution changed the ID when it was given.
    """

    item_ids: Sequence[str]
    codes: Mapping[str, np.ndarray]
    moved: Mapping[str, np.ndarray]

    def rows(self, chosen: np.ndarray) -> OwnedIds:
        """The owners at int64 or bool [..]."""
        index = np.arange(len(self.item_ids))[chosen]
        return OwnedIds(
            [self.item_ids[row] for row in index],
            {modality: codes[index] for modality, codes in self.codes.items()},
            {modality: moved[index] for modality, moved in self.moved.items()},
        )

    def and_those_of(self, other: OwnedIds) -> OwnedIds:
        """Both, one after the other."""
        return OwnedIds(
            [*self.item_ids, *other.item_ids],
            {modality: np.concatenate([codes, other.codes[modality]]) for modality, codes in self.codes.items()},
            {modality: np.concatenate([moved, other.moved[modality]]) for modality, moved in self.moved.items()},
        )


@dataclass(frozen=True)
class RetiredIds:
    """IDs whose items have left the catalogue, and when that was seen: int64 [R], ms since the epoch."""

    owned: OwnedIds
    retired_at: np.ndarray


@dataclass(frozen=True)
class AppendedIds:
    """What append mode made of a catalogue.

    Attributes:
        assigned: the ID table, N rows; its collision rate before resolution is that of the nearest codes of all items.
        retired: what the next run has to be told.
        is_new: bool [N], True for items that had no ID.
        num_returned: items whose retired ID was given back to them.
        drift: {"text" | "image": share of the old items whose ID was their nearest codes, and is no more}; such an
            item keeps its ID although its embedding has changed. 0 where there is no such item.
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
    previous: OwnedIds,
    retired: RetiredIds,
    now: int,
    retire_for_days: int,
    device: torch.device,
    collaborative_vectors: np.ndarray | None = None,
    quantize_by: Quantize | None = None,
) -> AppendedIds:
    """Give IDs to those items only that have none.

    Args:
        quantizer: the one that `previous` and `retired` were made with; it is not changed.
        text_vectors, image_vectors: float32 [N, D]; None for a modality that the catalogue and so the quantizer lacks.
        item_ids: N keys of the shop, in the order of the vectors.
        previous: the ID table before.
        retired: IDs of items that had gone by then; none of them in `previous`.
        now: ms since the epoch.
        retire_for_days: how long an ID is kept for an item that is gone.
        collaborative_vectors: float32 [N, C], needed if the quantizer's `collaborative_dim` C is above 0.
        quantize_by: who finds the nearest codes, such as worker processes; None: this process.

    Raises:
        SemanticIdError: a new item finds no free ID near it, or the vectors do not fit the quantizer.
    """
    held = now - retired.retired_at < retire_for_days * DAY_MS
    owned = previous.and_those_of(retired.owned.rows(held))
    left_at = np.concatenate([np.full(len(previous.item_ids), now), retired.retired_at[held]])
    row_of = {item_id: row for row, item_id in enumerate(owned.item_ids)}
    owner = np.array([row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
    gone = np.ones(len(owned.item_ids), dtype=bool)
    gone[owner[owner >= 0]] = False
    sides = {}
    for modality, inputs in inputs_of(quantizer, text_vectors, image_vectors, collaborative_vectors).items():
        module = quantizer.modules[modality]
        nearest = quantize(module, inputs, device=device) if quantize_by is None else quantize_by(modality, inputs)
        sides[modality] = _append(module, *nearest, owner, owned, modality=modality)
    assigned = AssignedIds(
        {modality: side.codes for modality, side in sides.items()},
        {modality: side.moved for modality, side in sides.items()},
        {
            modality: {"before": collision_rate(side.nearest), "after": collision_rate(side.codes)}
            for modality, side in sides.items()
        },
        quantizer.config.codebook_size,
    )
    return AppendedIds(
        assigned,
        RetiredIds(owned.rows(gone), left_at[gone]),
        owner < 0,
        int((owner >= len(previous.item_ids)).sum()),
        {modality: side.drift for modality, side in sides.items()},
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
    """IDs for items that are in no table yet, as the next run gives them if they are all that is new.

    Args:
        quantizer: the one that the IDs of `taken` were made with.
        text_vectors, image_vectors: float32 [N, D] of the new items, by the encoders of the others.
        taken: {"text" | "image": int64 [M, L]}, IDs of other items, retired ones among them.
        collaborative_vectors: float32 [N, C], needed if the quantizer's `collaborative_dim` C is above 0.

    Returns:
        {"text" | "image": int64 [N, L]}, rows distinct and none of them taken.

    Raises:
        SemanticIdError: an item finds no free ID near it, or the vectors do not fit the quantizer.
    """
    ids = {}
    for modality, inputs in inputs_of(quantizer, text_vectors, image_vectors, collaborative_vectors).items():
        module = quantizer.modules[modality]
        nearest, residuals = quantize(module, inputs, device=device)
        ids[modality] = _free_ids(module, nearest, residuals, modality=modality, occupied=taken[modality])
    return ids


@dataclass(frozen=True)
class _Side:
    """One modality: IDs and nearest codes int64 [N, L], flags bool [N], and the drift."""

    codes: np.ndarray
    nearest: np.ndarray
    moved: np.ndarray
    drift: float


def _append(
    module: ModalityQuantizer,
    nearest: np.ndarray,
    residuals: torch.Tensor,
    owner: np.ndarray,
    owned: OwnedIds,
    *,
    modality: str,
) -> _Side:
    """IDs of one modality, from what `quantize` gives; `owner` int64 [N] is a row in `owned`, -1 for a new item."""
    is_new = owner < 0
    codes = nearest.copy()
    codes[~is_new] = owned.codes[modality][owner[~is_new]]
    if is_new.any():
        codes[is_new] = _free_ids(
            module, nearest[is_new], residuals[is_new], modality=modality, occupied=owned.codes[modality]
        )
    differs = (codes != nearest).any(axis=1)
    moved = differs.copy()
    moved[~is_new] = owned.moved[modality][owner[~is_new]]
    return _Side(codes, nearest, moved, _share(differs, among=~is_new & ~moved))


def _free_ids(
    module: ModalityQuantizer, nearest: np.ndarray, residuals: torch.Tensor, *, modality: str, occupied: np.ndarray
) -> np.ndarray:
    codebooks = module.quantizer.codebooks.detach().cpu()
    return resolve(nearest, residuals, codebooks, modality=modality, occupied=occupied)


def _share(flags: np.ndarray, *, among: np.ndarray) -> float:
    return float(flags[among].mean()) if among.any() else 0.0
