"""The data that quantizers are fitted to: every item's vectors and pseudo-labels, checked and aligned.

Shapes (docs/notation.md): D embedding width, F width of a collaborative vector, N items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.semantic_ids.collaborative import required_collaborative_vectors, with_collaborative_columns

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

MODALITIES = ("text", "image")


def by_modality(text: np.ndarray | None, image: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return {modality: array} without the modalities that the catalogue lacks, whose array is None."""
    return {name: values for name, values in zip(MODALITIES, (text, image), strict=True) if values is not None}


@dataclass(frozen=True)
class Catalogue:
    """All items; row i of every array belongs to the same item.

    Attributes:
        vectors: {modality: float32 [N, D]}, or [N, D + F] if collaborative vectors are part of the input.
        clusters: {modality: int64 [N]}, pseudo-labels.
        collaborative: float32 [N, F], the vectors that latents are contrasted with; None without that loss.
        collaborative_dim: F, the number of collaborative columns at the end of `vectors`; 0 if there are none.
    """

    vectors: Mapping[str, np.ndarray]
    clusters: Mapping[str, np.ndarray]
    collaborative: np.ndarray | None
    collaborative_dim: int

    @classmethod
    def from_arrays(
        cls,
        vectors: Mapping[str, np.ndarray],
        clusters: Mapping[str, np.ndarray],
        collaborative: np.ndarray | None,
        config: QuantizerConfig,
    ) -> Catalogue:
        """Build the catalogue of a fit, with the collaborative vectors wherever the settings use them.

        Args:
            vectors: {modality: float32 [N, D]}, raw embeddings.
            clusters: {modality: int64 [N]}, pseudo-labels.
            collaborative: float32 [N, F], or None.
            config: the section `quantizer`.

        Raises:
            ConfigError: the settings use collaborative vectors, and there are none.
            SemanticIdError: the collaborative vectors do not match the items.
        """
        num_items = len(next(iter(vectors.values())))
        required = required_collaborative_vectors(collaborative, config, num_items=num_items)
        collaborative_dim = required.shape[1] if required is not None and config.collaborative_input_weight else 0
        return cls(
            {
                modality: with_collaborative_columns(embeddings, required, collaborative_dim=collaborative_dim)
                for modality, embeddings in vectors.items()
            },
            clusters,
            required if config.collaborative_contrast_weight else None,
            collaborative_dim,
        )

    def __len__(self) -> int:
        return len(next(iter(self.vectors.values())))

    def only(self, modalities: Sequence[str]) -> Catalogue:
        """Return the same items with only these modalities."""
        return Catalogue(
            {modality: self.vectors[modality] for modality in modalities},
            {modality: self.clusters[modality] for modality in modalities},
            self.collaborative,
            self.collaborative_dim,
        )
