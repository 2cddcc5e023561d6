"""The quality report of semantic IDs: how well they separate and describe the items, what changed, and broken limits.

The report is a mapping of plain numbers, per modality and overall. `limit_violations` compares its worst figures with
the limits in `identity.limits`.

Shapes (docs/notation.md): D embedding width, F width of a collaborative vector, K codes per level, L levels, N items,
Q query vectors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.semantic_ids.catalogue import MODALITIES
from macrec_pipeline.semantic_ids.collaborative import with_collaborative_columns
from macrec_pipeline.semantic_ids.diagnostics import code_usage, gini, perplexity
from macrec_pipeline.semantic_ids.neighbours import nearest_by_cosine

if TYPE_CHECKING:
    from macrec_pipeline.config import LimitsConfig
    from macrec_pipeline.semantic_ids.assignment import AssignedIds
    from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
    from macrec_pipeline.semantic_ids.incremental import IdsByItem
    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer

# For at most MAX_QUERIES items, the nearest neighbours are searched among at most MAX_CANDIDATES items. This bounds the
# time and memory for a large catalogue.
MAX_QUERIES, MAX_CANDIDATES, NUM_NEIGHBOURS = 2_000, 200_000, 10
_ITEMS_PER_CHUNK = 8192


def quality_report(
    assigned: AssignedIds,
    *,
    item_ids: Sequence[str],
    is_cold: np.ndarray,
    previous: IdsByItem | None = None,
    quantizer: FittedQuantizer | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    collaborative_vectors: np.ndarray | None = None,
    drift: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Compute all figures about an ID table, as plain JSON values.

    Args:
        assigned: the IDs of the catalogue.
        item_ids: N item IDs.
        is_cold: bool [N], True for items without an interaction in the training parts.
        previous: the previous ID table; None if there is none.
        quantizer: the quantizer that assigned the IDs; None if the data set brings its IDs along.
        vectors: the embeddings behind the IDs, modality -> float32 [N, D]; None if the data set brings its IDs along.
        collaborative_vectors: float32 [N, F]; required if the quantizer's `collaborative_dim` F is above 0.
        drift: modality -> share of items, from append mode.

    Returns:
        The figures of `id_quality` and `changes_since`; per modality also `reconstruction_error`,
        `neighbour_agreement` and `drift_share` where they can be computed; and `worst`, the figures that
        `limit_violations` compares with the limits.
    """
    report = id_quality(assigned, is_cold=is_cold)
    if previous is not None:
        report |= changes_since(previous, assigned, item_ids)
    for modality, matrix in (vectors or {}).items():
        codes = assigned.codes[modality]
        report[modality]["neighbour_agreement"] = neighbour_agreement(matrix, codes)
        if quantizer is not None:
            inputs = with_collaborative_columns(
                matrix, collaborative_vectors, collaborative_dim=quantizer.collaborative_dim
            )
            report[modality]["reconstruction_error"] = reconstruction_error(quantizer.modules[modality], inputs, codes)
    for modality, share in (drift or {}).items():
        report[modality]["drift_share"] = share
    return report | {"worst": worst_figures(report, codebook_size=assigned.codebook_size)}


def id_quality(assigned: AssignedIds, *, is_cold: np.ndarray) -> dict[str, Any]:
    """Compute the figures that need only the ID table.

    Args:
        assigned: the IDs of the catalogue.
        is_cold: bool [N], True for items without an interaction in the training parts.

    Returns:
        {"num_items", "cold_items", "cold_share", "text": {...}, "image": {...}}. A modality has the collision rate
        before and after resolution and, per level, the number of codes in use, their perplexity (1 to K) and their
        Gini coefficient (0 if all codes are used equally). A modality without IDs is left out.
    """
    report: dict[str, Any] = {
        "num_items": len(is_cold),
        "cold_items": int(is_cold.sum()),
        "cold_share": float(is_cold.mean()),
    }
    for modality, codes in assigned.codes.items():
        usage = code_usage(codes, codebook_size=assigned.codebook_size)
        rates = assigned.collision_rate[modality]
        report[modality] = {
            "collision_rate_before": rates["before"],
            "collision_rate_after": rates["after"],
            "codes_used": (usage > 0).sum(axis=1).tolist(),
            "perplexity": perplexity(usage).tolist(),
            "gini": gini(usage).tolist(),
        }
    return report


def changes_since(previous: IdsByItem, assigned: AssignedIds, item_ids: Sequence[str]) -> dict[str, Any]:
    """Count the items that were in the previous table, and compute the share of them whose ID has changed.

    Returns:
        {"known_items", "moved_share", "text_moved_share", "image_moved_share"}, the last two for the modalities that
        have IDs now. `moved_share` counts an item whose ID changed in any modality. Only `known_items` is present if
        it is 0.
    """
    row_of = {item_id: row for row, item_id in enumerate(previous.item_ids)}
    previous_rows = np.array([row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
    is_known = previous_rows >= 0
    if not is_known.any():
        return {"known_items": 0}
    moved = {}
    for modality, codes in assigned.codes.items():
        now, before = codes[is_known], previous.codes.get(modality, codes[:, :0])
        same_length = now.shape[1] == before.shape[1]
        moved[modality] = (
            (now != before[previous_rows[is_known]]).any(axis=1) if same_length else np.ones(len(now), dtype=bool)
        )
    return {
        "known_items": int(is_known.sum()),
        "moved_share": float(np.any(list(moved.values()), axis=0).mean()),
        **{f"{modality}_moved_share": float(flags.mean()) for modality, flags in moved.items()},
    }


@torch.no_grad()
def reconstruction_error(module: ModalityQuantizer, vectors: np.ndarray, codes: np.ndarray) -> float:
    """Return the mean squared error of the standardized inputs as decoded from the IDs.

    Over the items of the fit, standardized inputs have mean square one, so an error of 1 means that the IDs carry no
    information.

    Args:
        module: the quantizer of the modality.
        vectors: float32 [N, D + F], the input of the quantizer, not standardized.
        codes: int64 [N, L].
    """
    total, device = 0.0, module.centre.device
    for begin in range(0, len(vectors), _ITEMS_PER_CHUNK):
        part = slice(begin, begin + _ITEMS_PER_CHUNK)
        part_codes = torch.from_numpy(codes[part]).to(device)
        latents = sum(codebook[part_codes[:, level]] for level, codebook in enumerate(module.quantizer.codebooks))
        assert isinstance(latents, torch.Tensor), "there is at least one level"
        target = module.standardized(torch.tensor(vectors[part], device=device))
        total += float((module.decode(latents) - target).square().sum(dtype=torch.float64))
    return total / vectors.size


def neighbour_agreement(vectors: np.ndarray, codes: np.ndarray) -> list[float]:
    """Compute how often the ten nearest neighbours of an item (by cosine) share the first codes of its ID.

    In a large catalogue, evenly spaced items are examined.

    Args:
        vectors: float32 [N, D], the embeddings.
        codes: int64 [N, L].

    Returns:
        The share for the first 1, 2, ... and L - 1 codes (for one code if L is 1), which can only fall. Empty if there
        is only one item.
    """
    if len(codes) < 2:
        return []
    candidates = _evenly_spaced(len(codes), MAX_CANDIDATES)
    queries = _evenly_spaced(len(candidates), MAX_QUERIES)
    found = nearest_by_cosine(  # [Q, neighbours + 1], the item itself included
        vectors[candidates[queries]], vectors[candidates], count=NUM_NEIGHBOURS + 1
    )
    is_other = found != queries[:, None]
    # of an item with so many copies that the search did not find the item itself, the last neighbour is dropped
    is_other[is_other.all(axis=1), -1] = False
    neighbours = found[is_other].reshape(len(queries), -1)
    same = codes[candidates[neighbours]] == codes[candidates[queries]][:, None]  # [Q, neighbours, L]
    shared = np.logical_and.accumulate(same, axis=2).mean(axis=(0, 1))
    return [float(share) for share in shared[: max(1, codes.shape[1] - 1)]]


def worst_figures(report: Mapping[str, Any], *, codebook_size: int) -> dict[str, float]:
    """Return the figure for each limit, from the worse modality and its worst level, if it was computed."""
    modalities = [report[modality] for modality in MODALITIES if modality in report]
    highest: dict[str, list[float]] = {
        "collision_rate": [figures["collision_rate_before"] for figures in modalities],
        "gini": [max(figures["gini"]) for figures in modalities],
        "reconstruction_error": [
            figures["reconstruction_error"] for figures in modalities if "reconstruction_error" in figures
        ],
        "drift_share": [figures["drift_share"] for figures in modalities if "drift_share" in figures],
        "moved_share": [report["moved_share"]] if "moved_share" in report else [],
        "cold_share": [report["cold_share"]],
    }
    lowest = {
        "perplexity_share": [min(figures["perplexity"]) / codebook_size for figures in modalities],
        "neighbour_agreement": [
            figures["neighbour_agreement"][0] for figures in modalities if figures.get("neighbour_agreement")
        ],
    }
    return {name: max(values) for name, values in highest.items() if values} | {
        name: min(values) for name, values in lowest.items() if values
    }


@dataclass(frozen=True)
class LimitViolation:
    """A figure beyond its limit.

    Attributes:
        message: names the figure, its value and the limit.
        blocks: True if the violation stops the run, False if it is only reported.
    """

    message: str
    blocks: bool


def limit_violations(figures: Mapping[str, float], limits: LimitsConfig) -> list[LimitViolation]:
    """Return the limits that the `worst_figures` of a report violate, in the order of the settings."""
    violations = []
    for name, limit in vars(limits).items():
        bound, _, figure = name.partition("_")
        if limit is None or figure not in figures:
            continue
        value = figures[figure]
        if (value > limit.value) if bound == "max" else (value < limit.value):
            side = "above" if bound == "max" else "below"
            message = f"{figure} is {value:.4g}, {side} the limit identity.limits.{name} = {limit.value:.4g}."
            violations.append(LimitViolation(message, limit.blocks))
    return violations


def _evenly_spaced(size: int, count: int) -> np.ndarray:
    """Return up to `count` of `size` rows, int64, ascending."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.int64))
