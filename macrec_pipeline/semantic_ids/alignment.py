"""Turns the vectors of a model that was trained again into the space of an earlier one.

Two trainings of one model find a similar geometry, but each has axes of its own. Orthogonal Procrustes (Schoenemann,
Psychometrika 1966) finds the rotation, possibly with a reflection, that brings the vectors of the items that both
models know closest to each other. Distances and angles among the new vectors stay as they are.

Shapes (docs/notation.md): F width of a collaborative vector, N items, Z anchors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from macrec_pipeline.errors import SemanticIdError


@dataclass(frozen=True)
class Alignment:
    """A rigid motion from one space into another.

    Attributes:
        rotation: float64 [F, F], orthogonal.
        source_mean, target_mean: float64 [F], the centres that are brought together.
        residual: what the motion leaves unexplained: the squared distances after it, divided by the squared distances
            of the target's vectors from their mean. 0 if both spaces are the same but for their axes.
    """

    rotation: np.ndarray
    source_mean: np.ndarray
    target_mean: np.ndarray
    residual: float

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Move float [N, F] from the source into the target space; returns float32."""
        moved: np.ndarray = (vectors - self.source_mean) @ self.rotation + self.target_mean
        return moved.astype(np.float32)


def align(source: np.ndarray, target: np.ndarray) -> Alignment:
    """Find the rigid motion that brings the source's vectors closest to the target's in the sense of least squares.

    Args:
        source: float [Z, F], vectors of the common items in the new space.
        target: float [Z, F], vectors of the same items in the same order in the old space.

    Raises:
        SemanticIdError: the shapes differ, or there is no common item.
    """
    if source.shape != target.shape or source.ndim != 2 or not len(source):
        raise SemanticIdError(
            f"Vectors of shape {source.shape} cannot be aligned with vectors of shape {target.shape}: both must have "
            "one row for each common item, at least one, and the same width."
        )
    source_mean, target_mean = source.mean(axis=0, dtype=np.float64), target.mean(axis=0, dtype=np.float64)
    centred_source, centred_target = source - source_mean, target - target_mean  # [Z, F]
    left, _, right = np.linalg.svd(centred_source.T @ centred_target)
    rotation = left @ right  # [F, F]
    spread = float(np.square(centred_target).sum())
    unexplained = float(np.square(centred_source @ rotation - centred_target).sum())
    return Alignment(rotation, source_mean, target_mean, unexplained / spread if spread else 0.0)
