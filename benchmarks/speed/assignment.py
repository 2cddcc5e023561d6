"""Assignment of unique semantic IDs in both modalities: `assign_semantic_ids`, including collision resolution.

With 6,250 items, it starts from raw embeddings of the published widths, and runs the encoders. With a million items, it
starts from latents (32 numbers per item), since the encoders alone would take about 20 TFLOP. The baseline resolves the
same collisions item by item, with a set of the IDs that are taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from macrec_pipeline.config import QuantizerConfig
from macrec_pipeline.semantic_ids import FittedQuantizer, assign_semantic_ids
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, QuantizerSpec, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances
from macrec_pipeline.semantic_ids.rq_vae import RqVae

_CPU = torch.device("cpu")
_LATENT = {"text": 32, "image": 32}
_RAW = {"text": 4096, "image": 768}
_FITTED_ON = 20_000


def cases() -> list[Case]:
    """Return the cases of the table."""
    return [
        _case(6_250, dims=_RAW, target=1, repeats=7, baseline_repeats=3),
        _case(6_250, dims=_LATENT, target=1, repeats=7, baseline_repeats=3),
        _case(1_000_000, dims=_LATENT, target=60, peak_limit_mb=4000, repeats=3, baseline_repeats=0),
    ]


def growing() -> list[Case]:
    """Return cases for the cost by number of items."""
    sizes = (8_000, 32_000, 128_000, 512_000)
    return [_case(size, dims=_LATENT, repeats=2, baseline_repeats=int(size <= 32_000)) for size in sizes]


def tiny() -> list[Case]:
    """Return cases for the tests, with so few codes that all codes of some prefixes are taken."""
    return [_case(1_500, dims={"text": 3, "image": 2}, codebook_size=10, repeats=1, baseline_repeats=1)]


def write_catalogue(folder: Path, items: int, dims: dict[str, int], config: QuantizerConfig) -> None:
    """Write embeddings around centres, with items as close as variants of a product, and a quantizer for them."""
    generator = np.random.default_rng(1)
    modules: dict[str, ModalityQuantizer] = {}
    torch.manual_seed(1)
    for name, dim in dims.items():
        centres = generator.standard_normal((max(items // 3, 1), dim), dtype=np.float32)
        vectors = centres[generator.integers(0, len(centres), items)]
        vectors += 0.3 * generator.standard_normal((items, dim), dtype=np.float32)
        np.save(folder / f"{name}.npy", vectors)
        module = (ResidualKMeans if config.method == "residual_k_means" else RqVae)(
            dim, QuantizerSpec.from_settings(vars(config))
        )
        sample = torch.from_numpy(vectors[:_FITTED_ON])
        module.fit_standardization(sample)
        with torch.no_grad():
            module.quantizer.initialize_codebooks(module.encode(sample), seed=1)
        modules[name] = module.eval()
    FittedQuantizer(modules["text"], modules["image"], vars(config), {"text": 0, "image": 0}, []).save(folder)


def _pipeline(folder: Path) -> Timed:
    quantizer, vectors = _read(folder)

    def run() -> dict[str, np.ndarray]:
        assigned = assign_semantic_ids(quantizer, vectors["text"], vectors["image"], device=_CPU)
        return {"text": assigned.text_codes, "image": assigned.image_codes}

    return run


def _baseline(folder: Path) -> Timed:
    quantizer, vectors = _read(folder)
    return lambda: {name: _resolve_item_by_item(getattr(quantizer, name), values) for name, values in vectors.items()}


def _read(folder: Path) -> tuple[FittedQuantizer, dict[str, np.ndarray]]:
    return FittedQuantizer.load(folder, device=_CPU), {name: np.load(folder / f"{name}.npy") for name in _LATENT}


def _resolve_item_by_item(module: ModalityQuantizer, vectors: np.ndarray) -> np.ndarray:
    codes, residuals = quantize(module, vectors, device=_CPU)
    codebooks = module.quantizer.codebooks.detach()
    result = codes.copy()
    taken: set[tuple[int, ...]] = set()
    waiting = _place(result, range(len(codes)), squared_distances(residuals[:, 1], codebooks[-1]).numpy(), taken)
    ranked_codes = squared_distances(residuals[:, 0], codebooks[-2]).argsort(dim=1, stable=True).numpy()
    for rank in range(1, codebooks.shape[1]):
        if not waiting:
            break
        new_residuals = residuals[:, 1].clone()
        for item in waiting:
            result[item, -2] = ranked_codes[item, rank]
            new_residuals[item] = residuals[item, 0] - codebooks[-2][ranked_codes[item, rank]]
        waiting = _place(result, waiting, squared_distances(new_residuals, codebooks[-1]).numpy(), taken)
    assert not waiting, "some items have no free ID"
    return result


def _place(result: np.ndarray, waiting: Iterable[int], distances: np.ndarray, taken: set[tuple[int, ...]]) -> list[int]:
    """Give items their nearest free last code, the closest item first; return the items without one."""
    remaining = list(waiting)
    order = {item: np.argsort(distances[item], kind="stable") for item in remaining}
    for rank in range(distances.shape[1]):
        claims: dict[tuple[int, ...], int] = {}
        for item in remaining:
            key = (*result[item, :-1].tolist(), int(order[item][rank]))
            best = claims.get(key)
            if key not in taken and (best is None or distances[item, key[-1]] < distances[best, key[-1]]):
                claims[key] = item
        for key, item in claims.items():
            result[item] = key
        taken.update(claims)
        placed = set(claims.values())
        remaining = [item for item in remaining if item not in placed]
    return remaining


def _check_equal(pipeline: Any, baseline: Any) -> None:
    for name in _LATENT:
        np.testing.assert_array_equal(pipeline[name], baseline[name])


def _case(items: int, *, dims: dict[str, int], codebook_size: int = 256, **kwargs: Any) -> Case:
    method = "cross_modal" if dims == _RAW else "residual_k_means"
    config = QuantizerConfig(method=method, codebook_size=codebook_size)

    def limit(machine: Machine) -> float:
        flops = sum(_encoder_flops(dim, config) + _distance_flops(dim, config) for dim in dims.values())
        return items * flops / machine.gigaflops / 1e9

    source = "raw embeddings" if dims == _RAW else "latents"
    return Case(
        name=f"ID assignment from {source}, {items:,} items",
        size=items,
        size_of="items",
        prepare=lambda folder: write_catalogue(folder, items, dims, config),
        pipeline=_pipeline,
        baseline=_baseline,
        check_equal=_check_equal,
        limit=limit,
        **kwargs,
    )


def _encoder_flops(dim: int, config: QuantizerConfig) -> int:
    if config.method == "residual_k_means":
        return 0
    sizes = [dim, config.projection_dim, *config.hidden_dims, config.latent_dim]
    return sum(2 * a * b for a, b in pairwise(sizes))


def _distance_flops(dim: int, config: QuantizerConfig) -> int:
    """Count distances to all codes of every level, and again to those of the last level for collisions."""
    latent = dim if config.method == "residual_k_means" else config.latent_dim
    return 2 * latent * config.codebook_size * (config.num_levels + 1)
