"""Assigns semantic IDs to a catalogue: the nearest codes of each item, then unique IDs (MACRec section 3.2).

`collision_resolution` makes the IDs unique.
Shapes (docs/notation.md): D embedding width, F width of a collaborative vector, K codes per level, L levels, N items.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids.catalogue import by_modality
from macrec_pipeline.semantic_ids.collaborative import with_collaborative_columns
from macrec_pipeline.semantic_ids.collision_resolution import resolve_collisions
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import quantize

QuantizeModality = Callable[[str, np.ndarray], tuple[np.ndarray, torch.Tensor]]
"""Quantizes a whole catalogue: (modality, the input of its quantizer) -> what `modality_quantizer.quantize` returns."""


@dataclass(frozen=True)
class AssignedIds:
    """The semantic IDs of a catalogue. A modality that the catalogue lacks is in none of the mappings.

    Attributes:
        codes: modality -> int64 [N, L], distinct rows, each code in [0, codebook_size).
        moved: modality -> bool [N], True where the resolution of collisions changed the ID.
        collision_rate: modality -> {"before": rate, "after": rate} of the resolution.
        codebook_size: K.
    """

    codes: dict[str, np.ndarray]
    moved: dict[str, np.ndarray]
    collision_rate: dict[str, dict[str, float]]
    codebook_size: int

    @property
    def text_codes(self) -> np.ndarray:
        """int64 [N, L]; only for a catalogue with texts."""
        return self.codes["text"]

    @property
    def image_codes(self) -> np.ndarray:
        """int64 [N, L]; only for a catalogue with images."""
        return self.codes["image"]

    @property
    def text_moved(self) -> np.ndarray:
        """bool [N]; only for a catalogue with texts."""
        return self.moved["text"]

    @property
    def image_moved(self) -> np.ndarray:
        """bool [N]; only for a catalogue with images."""
        return self.moved["image"]


def assign_semantic_ids(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    *,
    device: torch.device,
    collaborative_vectors: np.ndarray | None = None,
    quantize_modality: QuantizeModality | None = None,
) -> AssignedIds:
    """Quantize each modality and resolve its collisions.

    Args:
        quantizer: the fitted quantizer. Its text and image weights may come from different epochs.
        text_vectors, image_vectors: float32 [N, D]; None for a modality that the catalogue and the quantizer lack.
        device: device of the quantizer.
        collaborative_vectors: float32 [N, F]; required if the quantizer's `collaborative_dim` F is above 0.
        quantize_modality: finds the nearest codes, for example in worker processes; None to do it in this process.

    Raises:
        SemanticIdError: the IDs of a modality cannot be made unique, or the vectors do not match the quantizer.
    """
    nearest, resolved = {}, {}
    for modality, inputs in quantizer_inputs(quantizer, text_vectors, image_vectors, collaborative_vectors).items():
        module = quantizer.modules[modality]
        nearest[modality], residuals = (
            quantize(module, inputs, device=device)
            if quantize_modality is None
            else quantize_modality(modality, inputs)
        )
        resolved[modality] = resolve_collisions(
            nearest[modality], residuals, module.quantizer.codebooks.detach().cpu(), modality=modality
        )
    return _assigned_ids(nearest, resolved, codebook_size=quantizer.codebook_size)


def quantizer_inputs(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    collaborative_vectors: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return the input of each modality's quantizer.

    Args:
        quantizer, text_vectors, image_vectors, collaborative_vectors: see `assign_semantic_ids`.

    Returns:
        modality -> float32 [N, D + F].

    Raises:
        SemanticIdError: the quantizer and the catalogue have different modalities, or the collaborative vectors are
            missing or have the wrong shape.
    """
    vectors = by_modality(text_vectors, image_vectors)
    if vectors.keys() != quantizer.modules.keys():
        raise SemanticIdError(
            f"The quantizer was fitted to {' and '.join(quantizer.modules)}, but the catalogue has "
            f"{' and '.join(vectors)}. Materialize `quantizer` again, with identity.mode=new."
        )
    return {
        modality: with_collaborative_columns(
            matrix, collaborative_vectors, collaborative_dim=quantizer.collaborative_dim
        )
        for modality, matrix in vectors.items()
    }


def resolve_given_ids(
    text_codes: np.ndarray | None, image_codes: np.ndarray | None, *, codebook_size: int
) -> AssignedIds:
    """Make IDs unique that the data set brings along, without the embeddings that they were computed from.

    Codes count as points on a line: an item whose ID is taken gets the nearest free number, and the lower one of two
    that are equally near.

    Args:
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size); None for a modality that is not used.
        codebook_size: K.

    Raises:
        SemanticIdError: the IDs of a modality cannot be made unique.
    """
    line = torch.arange(codebook_size, dtype=torch.float32)[:, None]
    given = by_modality(text_codes, image_codes)
    resolved = {}
    for modality, codes in given.items():
        codebooks = line.expand(codes.shape[1], -1, -1)
        residuals = torch.from_numpy(codes[:, -2:].astype(np.float32))[..., None]
        resolved[modality] = resolve_collisions(codes, residuals, codebooks, modality=modality, independent_levels=True)
    return _assigned_ids(given, resolved, codebook_size=codebook_size)


def _assigned_ids(before: dict[str, np.ndarray], after: dict[str, np.ndarray], *, codebook_size: int) -> AssignedIds:
    moved = {modality: (before[modality] != after[modality]).any(axis=1) for modality in before}
    rates = {
        modality: {"before": collision_rate(before[modality]), "after": collision_rate(after[modality])}
        for modality in before
    }
    return AssignedIds(after, moved, rates, codebook_size)
