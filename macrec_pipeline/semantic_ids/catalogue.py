"""What the quantizers are fitted to: every item's vectors and pseudo-labels, checked and put side by side.

Shapes: N items, D embedding, C collaborative vector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.semantic_ids.collaborative import anchored, wanted_collaborative_vectors

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


def present(text: np.ndarray | None, image: np.ndarray | None) -> dict[str, np.ndarray]:
    """What there is of a modality, by its name; None stands for one that the catalogue lacks."""
    return {name: values for name, values in (("text", text), ("image", image)) if values is not None}


@dataclass(frozen=True)
class Catalogue:
    """All items, row i of every array being the same one.

    Attributes:
        vectors: {modality: float32 [N, D]}, or [N, D + C] if collaborative vectors anchor the input.
        clusters: {modality: int64 [N]}, pseudo-labels.
        collaborative: float32 [N, C], what the latents are contrasted with; None without that term.
        collaborative_dim: C of the last columns of `vectors`; 0 if nothing anchors the input.
    """

    vectors: Mapping[str, np.ndarray]
    clusters: Mapping[str, np.ndarray]
    collaborative: np.ndarray | None
    collaborative_dim: int

    @classmethod
    def of(
        cls,
        vectors: Mapping[str, np.ndarray],
        clusters: Mapping[str, np.ndarray],
        collaborative: np.ndarray | None,
        config: QuantizerConfig,
    ) -> Catalogue:
        """Put together raw embeddings float32 [N, D], pseudo-labels, and what is wanted of the collaborative vectors.

        Raises:
            ConfigError: a collaborative weight is above 0, and there are no vectors.
            SemanticIdError: the collaborative vectors do not fit the items.
        """
        num_items = len(next(iter(vectors.values())))
        wanted = wanted_collaborative_vectors(collaborative, config, num_items=num_items)
        collaborative_dim = wanted.shape[1] if wanted is not None and config.collaborative_input_weight else 0
        return cls(
            {name: anchored(own, wanted, collaborative_dim=collaborative_dim) for name, own in vectors.items()},
            clusters,
            wanted if config.collaborative_contrast_weight else None,
            collaborative_dim,
        )

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def only(self, modalities: Sequence[str]) -> Catalogue:
        """The same items with some of the modalities."""
        return Catalogue(
            {name: self.vectors[name] for name in modalities},
            {name: self.clusters[name] for name in modalities},
            self.collaborative,
            self.collaborative_dim,
        )
