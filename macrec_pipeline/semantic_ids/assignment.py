"""Semantic IDs for a catalogue: nearest codes, then collisions resolved until every ID is unique (section 3.2).

Of the items that share a whole ID, the one nearest to its last code keeps it; the others take their next-nearest free
code at the last level and, when their prefix is full, at the level before. All items move in rounds of tensor
operations: in a round every unplaced item asks for its next choice, and of those that ask for one ID the nearest gets
it, ties to the lower item index.

Shapes: N items, L levels, K codes a level, U items not placed yet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids.collaborative import anchored
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances

if TYPE_CHECKING:
    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer


@dataclass(frozen=True)
class AssignedIds:
    """The semantic ID table.

    Attributes:
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size), rows distinct.
        text_moved, image_moved: bool [N], True where resolution changed the ID.
        collision_rate: {"text" | "image": {"before": rate, "after": rate}}.
        codebook_size: K.
    """

    text_codes: np.ndarray
    image_codes: np.ndarray
    text_moved: np.ndarray
    image_moved: np.ndarray
    collision_rate: dict[str, dict[str, float]]
    codebook_size: int


def assign_semantic_ids(
    quantizer: FittedQuantizer,
    text_vectors: np.ndarray,
    image_vectors: np.ndarray,
    *,
    device: torch.device,
    collaborative_vectors: np.ndarray | None = None,
) -> AssignedIds:
    """Quantize both modalities and resolve the collisions of each.

    Args:
        quantizer: fitted; its text and image weights may come from different epochs.
        text_vectors, image_vectors: float32 [N, D].
        collaborative_vectors: float32 [N, C], needed if the quantizer's `collaborative_dim` C is above 0.

    Raises:
        SemanticIdError: a modality's IDs cannot be made unique, or the collaborative vectors do not fit.
    """
    before, after = {}, {}
    for modality, vectors in (("text", text_vectors), ("image", image_vectors)):
        module: ModalityQuantizer = getattr(quantizer, modality)
        inputs = anchored(vectors, collaborative_vectors, collaborative_dim=quantizer.collaborative_dim)
        before[modality], residuals = quantize(module, inputs, device=device)
        after[modality] = _resolve(
            before[modality], residuals, module.quantizer.codebooks.detach().cpu(), modality=modality
        )
    return _assigned(before, after, codebook_size=quantizer.config.codebook_size)


def resolve_given_ids(text_codes: np.ndarray, image_codes: np.ndarray, *, codebook_size: int) -> AssignedIds:
    """Make IDs unique that come from elsewhere, without the vectors behind them.

    Codes count as points on a line: an item that must move takes the nearest free number, the lower of two equals.

    Args:
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size).

    Raises:
        SemanticIdError: a modality's IDs cannot be made unique.
    """
    line = torch.arange(codebook_size, dtype=torch.float32)[:, None]
    after = {}
    before = {"text": text_codes, "image": image_codes}
    for modality, codes in before.items():
        codebooks = line.expand(codes.shape[1], -1, -1)
        residuals = torch.from_numpy(codes[:, -2:].astype(np.float32))[..., None]
        after[modality] = _resolve(codes, residuals, codebooks, modality=modality, independent=True)
    return _assigned(before, after, codebook_size=codebook_size)


def _resolve(
    codes: np.ndarray,
    residuals: torch.Tensor,
    codebooks: torch.Tensor,
    *,
    modality: str,
    independent: bool = False,
) -> np.ndarray:
    """Unique IDs int64 [N, L]; `independent` levels do not change what enters the next one."""
    placing = _Placing(torch.from_numpy(codes), codebook_size=codebooks.shape[1])
    placing.rounds(squared_distances(residuals[:, 1], codebooks[-1]))
    num_levels = codes.shape[1]
    if len(placing.unplaced) and num_levels > 1:
        # the prefix is full: the level before moves to its next-nearest code, one alternative after the other
        alternatives = squared_distances(residuals[:, 0], codebooks[-2]).argsort(dim=1, stable=True)
        for rank in range(1, codebooks.shape[1]):
            items = placing.unplaced
            if not len(items):
                break
            chosen = alternatives[items, rank]
            placing.codes[items, num_levels - 2] = chosen
            entering = residuals[:, 1].clone()
            if not independent:
                entering[items] = residuals[items, 0] - codebooks[-2][chosen]
            placing.rounds(squared_distances(entering, codebooks[-1]))
    if len(placing.unplaced):
        raise SemanticIdError(
            f"{len(placing.unplaced)} of {len(codes)} items have no free {modality} ID near them: too many share their "
            "first codes. Raise quantizer.codebook_size or quantizer.num_levels, or train the quantizer longer."
        )
    return placing.codes.numpy()


class _Placing:
    """The state of the resolution: each item's codes, the taken IDs, the items that have none yet."""

    def __init__(self, codes: torch.Tensor, *, codebook_size: int) -> None:
        self.codes = codes.clone()
        self.codebook_size = codebook_size
        self.unplaced = torch.arange(len(codes))
        self._taken = torch.empty(0, dtype=torch.int64)
        # codes of all levels but the last two never change, so they are numbered once
        self._stem = torch.zeros(len(codes), dtype=torch.int64)
        if codes.shape[1] > 2:
            _, self._stem = torch.unique(codes[:, :-2], dim=0, return_inverse=True)

    def rounds(self, distances: torch.Tensor) -> None:
        """Every unplaced item asks for last codes in the order of `distances` float [N, K], until placed or refused."""
        self._ask(distances.argmin(dim=1), distances)
        waiting = self.unplaced
        order = distances[waiting].argsort(dim=1, stable=True)  # only few are left, so only few are sorted
        for rank in range(1, self.codebook_size):
            if not len(self.unplaced):
                return
            choice = torch.empty(len(distances), dtype=torch.int64)
            choice[waiting] = order[:, rank]
            self._ask(choice, distances)

    def _ask(self, choice: torch.Tensor, distances: torch.Tensor) -> None:
        """One round: unplaced items ask for the last codes `choice` int64 [N]; who gets one is placed."""
        items = self.unplaced
        asked = choice[items]
        keys = self._keys(items, asked)
        free = ~torch.isin(keys, self._taken)
        winners = self._nearest_of_each(keys, distances[items, asked]) & free
        self.codes[items[winners], -1] = asked[winners]
        self._taken = torch.cat([self._taken, keys[winners]])
        self.unplaced = items[~winners]

    def _keys(self, items: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        before = self.codes[items, -2] if self.codes.shape[1] > 1 else torch.zeros_like(items)
        keys: torch.Tensor = (self._stem[items] * self.codebook_size + before) * self.codebook_size + last
        return keys

    @staticmethod
    def _nearest_of_each(keys: torch.Tensor, distances: torch.Tensor) -> torch.Tensor:
        """Bool [U]: for each key, the one asking item with the smallest distance; ties to the lower item index."""
        order = distances.argsort(stable=True)  # items are in ascending order already
        order = order[keys[order].argsort(stable=True)]
        first = torch.ones(len(order), dtype=torch.bool)
        first[1:] = keys[order][1:] != keys[order][:-1]
        winners = torch.zeros(len(keys), dtype=torch.bool)
        winners[order[first]] = True
        return winners


def _assigned(before: dict[str, np.ndarray], after: dict[str, np.ndarray], *, codebook_size: int) -> AssignedIds:
    moved = {modality: (before[modality] != after[modality]).any(axis=1) for modality in before}
    rates = {
        modality: {"before": collision_rate(before[modality]), "after": collision_rate(after[modality])}
        for modality in before
    }
    return AssignedIds(after["text"], after["image"], moved["text"], moved["image"], rates, codebook_size)
