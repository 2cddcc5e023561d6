"""The quality report: how well IDs separate and describe the catalogue, what changed, and which limits that breaks.

In: the ID table, the quantizer and the embeddings behind it where there are any, and the table before. Out: plain
numbers, a modality and in all, and the limits of `identity.limits` that they cross.

Shapes: N items, M items before, L levels, K codes a level, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.semantic_ids.collaborative import anchored
from macrec_pipeline.semantic_ids.diagnostics import code_usage, gini, perplexity
from macrec_pipeline.semantic_ids.fitted_quantizer import MODALITIES, FittedQuantizer
from macrec_pipeline.semantic_ids.neighbours import nearest_by_cosine

if TYPE_CHECKING:
    from macrec_pipeline.config import LimitsConfig
    from macrec_pipeline.semantic_ids.assignment import AssignedIds
    from macrec_pipeline.semantic_ids.incremental import OwnedIds
    from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer

# Nearest neighbours of so many items, among so many, are looked up: it bounds time and memory in a large catalogue.
QUERIES, CANDIDATES, NEIGHBOURS = 2_000, 200_000, 10
_ITEMS_AT_ONCE = 8192


def quality_report(
    assigned: AssignedIds,
    *,
    item_ids: Sequence[str],
    is_cold: np.ndarray,
    previous: OwnedIds | None = None,
    quantizer: FittedQuantizer | None = None,
    vectors: Mapping[str, np.ndarray] | None = None,
    collaborative_vectors: np.ndarray | None = None,
    drift: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All that is known of an ID table, as plain JSON.

    Args:
        item_ids: N keys of the shop.
        is_cold: bool [N], True for items without an interaction in the training parts.
        previous: the table before; None if there is none.
        quantizer, vectors: what the IDs were made with, {modality: float32 [N, D]}; None if they were given.
        collaborative_vectors: float32 [N, C], needed if the quantizer's `collaborative_dim` C is above 0.
        drift: {modality: share}, of append mode.

    Returns:
        What `id_quality` and `moved_share` say; in each modality also `reconstruction_error`, `neighbour_agreement`
        and `drift_share` where they are known; and `worst`, the figures that `breaches` judges.
    """
    report = id_quality(assigned, is_cold=is_cold)
    if previous is not None:
        report |= moved_share(assigned, item_ids, previous)
    for modality, matrix in (vectors or {}).items():
        codes = assigned.codes[modality]
        report[modality]["neighbour_agreement"] = neighbour_agreement(matrix, codes)
        if quantizer is not None:
            inputs = anchored(matrix, collaborative_vectors, collaborative_dim=quantizer.collaborative_dim)
            report[modality]["reconstruction_error"] = reconstruction_error(quantizer.modules[modality], inputs, codes)
    for modality, share in (drift or {}).items():
        report[modality]["drift_share"] = share
    return report | {"worst": worst_figures(report, codebook_size=assigned.codebook_size)}


def id_quality(assigned: AssignedIds, *, is_cold: np.ndarray) -> dict[str, Any]:
    """What the ID table alone tells.

    Args:
        is_cold: bool [N], True for items without an interaction in the training parts.

    Returns:
        {"num_items", "cold_items", "cold_share", "text": {..}, "image": {..}}; of each modality that has IDs the
        collision rate before and after resolution, and a level the codes in use, their perplexity (1 to K) and Gini
        coefficient (0 even).
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


def moved_share(assigned: AssignedIds, item_ids: Sequence[str], previous: OwnedIds) -> dict[str, Any]:
    """How many items of the table before are still there, and the share of them whose ID is another one.

    Returns:
        {"known_items", "moved_share": in any modality, "text_moved_share", "image_moved_share"}, of the modalities that
        have IDs now; only the first if there is no such item.
    """
    row_of = {item_id: row for row, item_id in enumerate(previous.item_ids)}
    rows = np.array([row_of.get(item_id, -1) for item_id in item_ids], dtype=np.int64)
    known = rows >= 0
    if not known.any():
        return {"known_items": 0}
    moved = {}
    for modality, codes in assigned.codes.items():
        now, before = codes[known], previous.codes.get(modality, codes[:, :0])
        same_shape = now.shape[1] == before.shape[1]
        moved[modality] = (now != before[rows[known]]).any(axis=1) if same_shape else np.ones(len(now), dtype=bool)
    return {
        "known_items": int(known.sum()),
        "moved_share": float(np.any(list(moved.values()), axis=0).mean()),
        **{f"{modality}_moved_share": float(flags.mean()) for modality, flags in moved.items()},
    }


@torch.no_grad()
def reconstruction_error(module: ModalityQuantizer, vectors: np.ndarray, codes: np.ndarray) -> float:
    """Mean squared error of what IDs say of the input, which has mean square one over the items of the fit.

    Args:
        vectors: float32 [N, D], raw, with the collaborative vectors beside them if those anchor the input.
        codes: int64 [N, L].
    """
    total, device = 0.0, module.centre.device
    for begin in range(0, len(vectors), _ITEMS_AT_ONCE):
        part = slice(begin, begin + _ITEMS_AT_ONCE)
        chosen = torch.from_numpy(codes[part]).to(device)
        latents = sum(book[chosen[:, level]] for level, book in enumerate(module.quantizer.codebooks))
        assert isinstance(latents, torch.Tensor), "there is at least one level"
        target = module.standardized(torch.tensor(vectors[part], device=device))
        total += float((module.decoded(latents) - target).square().sum(dtype=torch.float64))
    return total / vectors.size


def neighbour_agreement(vectors: np.ndarray, codes: np.ndarray) -> list[float]:
    """How often an item's ten nearest neighbours (cosine) share the first codes of its ID with it.

    Args:
        vectors: float32 [N, D], raw embeddings.
        codes: int64 [N, L].

    Returns:
        A share for each number of first codes from 1 to L - 1 (1 if L is 1); falling. Of a large catalogue evenly
        spaced items are looked at. Empty if there is only one item.
    """
    if len(codes) < 2:
        return []
    among = _evenly_spaced(len(codes), CANDIDATES)
    asked = _evenly_spaced(len(among), QUERIES)
    found = nearest_by_cosine(vectors[among[asked]], vectors[among], count=NEIGHBOURS + 1)  # [Q, neighbours + 1]
    other = found != asked[:, None]
    other[other.all(axis=1), -1] = False  # an item with so many copies that it was not found itself
    neighbours = found[other].reshape(len(asked), -1)
    same = codes[among[neighbours]] == codes[among[asked]][:, None]  # [Q, neighbours, L]
    shared = np.logical_and.accumulate(same, axis=2).mean(axis=(0, 1))
    return [float(share) for share in shared[: max(1, codes.shape[1] - 1)]]


def worst_figures(report: Mapping[str, Any], *, codebook_size: int) -> dict[str, float]:
    """The figure of each limit, of the worse modality and its worst level; what was not measured is not in it."""
    sides = [report[modality] for modality in MODALITIES if modality in report]
    figures: dict[str, list[float]] = {
        "collision_rate": [side["collision_rate_before"] for side in sides],
        "gini": [max(side["gini"]) for side in sides],
        "reconstruction_error": [side["reconstruction_error"] for side in sides if "reconstruction_error" in side],
        "drift_share": [side["drift_share"] for side in sides if "drift_share" in side],
        "moved_share": [report["moved_share"]] if "moved_share" in report else [],
        "cold_share": [report["cold_share"]],
    }
    lowest = {
        "perplexity_share": [min(side["perplexity"]) / codebook_size for side in sides],
        "neighbour_agreement": [side["neighbour_agreement"][0] for side in sides if side.get("neighbour_agreement")],
    }
    return {name: max(values) for name, values in figures.items() if values} | {
        name: min(values) for name, values in lowest.items() if values
    }


@dataclass(frozen=True)
class Breach:
    """A limit that is crossed: what is said of it, and whether it blocks what follows."""

    message: str
    blocks: bool


def breaches(figures: Mapping[str, float], limits: LimitsConfig) -> list[Breach]:
    """The limits that `worst_figures` cross, in the order of the settings."""
    found = []
    for name, limit in vars(limits).items():
        bound, _, figure = name.partition("_")
        if limit is None or figure not in figures:
            continue
        got, wanted = figures[figure], limit.value
        if (got > wanted) if bound == "max" else (got < wanted):
            side = "above" if bound == "max" else "below"
            found.append(Breach(f"{figure} is {got:.4g}, {side} identity.limits.{name} = {wanted:.4g}.", limit.blocks))
    return found


def _evenly_spaced(size: int, count: int) -> np.ndarray:
    """Up to `count` of `size` rows, ascending: int64."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.int64))
