"""Semantic IDs for a catalogue: nearest codes, then collisions resolved until every ID is unique (section 3.2).

Of the items that share a whole ID, the one nearest to its last code keeps it; the others take their next-nearest free
code at the last level and, when their prefix is full, at the level before (`placing`).

Shapes: N items, L levels, K codes a level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids.catalogue import present
from macrec_pipeline.semantic_ids.collaborative import anchored
from macrec_pipeline.semantic_ids.collision_resolution import CollisionResolution
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import quantize

Quantize = Callable[[str, np.ndarray], tuple[np.ndarray, torch.Tensor]]
"""(modality, what its quantizer takes: float32 [N, D]) -> what `quantize` gives for them, by whoever computes it."""


@dataclass(frozen=True)
class AssignedIds:
    """The semantic ID table.

    Attributes:
        codes: {"text" | "image": int64 [N, L]}, each in [0, codebook_size), rows distinct; without a modality that the
            catalogue lacks.
        moved: {"text" | "image": bool [N]}, True where resolution changed the ID.
        collision_rate: {"text" | "image": {"before": rate, "after": rate}}.
        codebook_size: K.
    """

    codes: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    collision_rate: dict[str, dict[str, float]]
    codebook_size: int

    @property
    def text_codes(self) -> np.ndarray:
        """int64 [N, L], of a catalogue with texts."""
        return self.codes["text"]

    @property
    def image_codes(self) -> np.ndarray:
        """int64 [N, L], of a catalogue with pictures."""
        return self.codes["image"]

    @property
    def text_moved(self) -> np.ndarray:
        """bool [N], of a catalogue with texts."""
        return self.moved["text"]

    @property
    def image_moved(self) -> np.ndarray:
        """bool [N], of a catalogue with pictures."""
        return self.moved["image"]


def assign_semantic_ids(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    *,
    device: torch.device,
    collaborative_vectors: np.ndarray | None = None,
    quantize_by: Quantize | None = None,
) -> AssignedIds:
    """Quantize both modalities and resolve the collisions of each.

    Args:
        quantizer: fitted; its text and image weights may come from different epochs.
        text_vectors, image_vectors: float32 [N, D]; None for a modality that the catalogue and so the quantizer lacks.
        collaborative_vectors: float32 [N, C], needed if the quantizer's `collaborative_dim` C is above 0.
        quantize_by: who finds the nearest codes, such as worker processes; None: this process.

    Raises:
        SemanticIdError: a modality's IDs cannot be made unique, or the vectors do not fit the quantizer.
    """
    before, after = {}, {}
    for modality, inputs in inputs_of(quantizer, text_vectors, image_vectors, collaborative_vectors).items():
        module = quantizer.modules[modality]
        before[modality], residuals = (
            quantize(module, inputs, device=device) if quantize_by is None else quantize_by(modality, inputs)
        )
        after[modality] = resolve(
            before[modality], residuals, module.quantizer.codebooks.detach().cpu(), modality=modality
        )
    return _assigned(before, after, codebook_size=quantizer.config.codebook_size)


def inputs_of(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    collaborative_vectors: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """What each modality's quantizer takes: float32 [N, D + C]; the arguments are those of `assign_semantic_ids`.

    Raises:
        SemanticIdError: the quantizer has other modalities than the catalogue, or the collaborative vectors do not fit.
    """
    vectors = present(text_vectors, image_vectors)
    if vectors.keys() != quantizer.modules.keys():
        raise SemanticIdError(
            f"The quantizer was fitted to {' and '.join(quantizer.modules)}, but the catalogue has "
            f"{' and '.join(vectors)}. Materialize `quantizer` again, with identity.mode=new."
        )
    return {
        modality: anchored(matrix, collaborative_vectors, collaborative_dim=quantizer.collaborative_dim)
        for modality, matrix in vectors.items()
    }


def resolve_given_ids(
    text_codes: np.ndarray | None, image_codes: np.ndarray | None, *, codebook_size: int
) -> AssignedIds:
    """Make IDs unique that come from elsewhere, without the vectors behind them.

    Codes count as points on a line: an item that must move takes the nearest free number, the lower of two equals.

    Args:
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size); None for a modality that is not used.

    Raises:
        SemanticIdError: a modality's IDs cannot be made unique.
    """
    line = torch.arange(codebook_size, dtype=torch.float32)[:, None]
    after = {}
    before = present(text_codes, image_codes)
    for modality, codes in before.items():
        codebooks = line.expand(codes.shape[1], -1, -1)
        residuals = torch.from_numpy(codes[:, -2:].astype(np.float32))[..., None]
        after[modality] = resolve(codes, residuals, codebooks, modality=modality, independent=True)
    return _assigned(before, after, codebook_size=codebook_size)


def resolve(
    codes: np.ndarray,
    residuals: torch.Tensor,
    codebooks: torch.Tensor,
    *,
    modality: str,
    independent: bool = False,
    occupied: np.ndarray | None = None,
) -> np.ndarray:
    """Unique IDs for codes that are not; the arguments are those of `CollisionResolution`.

    Returns:
        int64 [N, L], rows distinct, none of them among `occupied`.

    Raises:
        SemanticIdError: there is no free ID near an item; says what to change.
    """
    placing = CollisionResolution(codes, residuals, codebooks, independent=independent, occupied=occupied)
    placing.last_level()
    placing.level_before()
    if len(placing.unplaced):
        remedy = "Raise quantizer.codebook_size or quantizer.num_levels, or train the quantizer longer."
        if occupied is not None:
            remedy = (
                f"{len(occupied)} IDs are taken or retired: quantize anew with identity.mode=new, if need be with a "
                "larger quantizer.codebook_size, or lower identity.retire_for_days."
            )
        raise SemanticIdError(
            f"{len(placing.unplaced)} of {len(codes)} items have no free {modality} ID near them: too many share their "
            f"first codes. {remedy}"
        )
    return placing.codes


def _assigned(before: dict[str, np.ndarray], after: dict[str, np.ndarray], *, codebook_size: int) -> AssignedIds:
    moved = {modality: (before[modality] != after[modality]).any(axis=1) for modality in before}
    rates = {
        modality: {"before": collision_rate(before[modality]), "after": collision_rate(after[modality])}
        for modality in before
    }
    return AssignedIds(after, moved, rates, codebook_size)
