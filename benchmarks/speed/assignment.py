"""Unique semantic IDs of a catalogue in both modalities: `assign_semantic_ids`, collisions and rates included.

With 6,250 items it begins at raw embeddings of the published sizes, through the encoders. With a million it begins at
the latents (32 numbers an item): the encoders alone would be some 20 TFLOP there. The baseline resolves the same
collisions item by item with a dictionary of what is taken.
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
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from macrec_pipeline.semantic_ids.residual_quantizer import squared_distances
from macrec_pipeline.semantic_ids.rq_vae import RqVae

_CPU = torch.device("cpu")
_LATENT = {"text": 32, "image": 32}
_RAW = {"text": 4096, "image": 768}
_FITTED_ON = 20_000


def cases() -> list[Case]:
    """The table."""
    return [
        _case(6_250, dims=_RAW, target=1, repeats=7, baseline_repeats=3),
        _case(6_250, dims=_LATENT, target=1, repeats=7, baseline_repeats=3),
        _case(1_000_000, dims=_LATENT, target=60, peak_limit_mb=4000, repeats=3, baseline_repeats=0),
    ]


def growing() -> list[Case]:
    """The cost by items."""
    sizes = (8_000, 32_000, 128_000, 512_000)
    return [_case(size, dims=_LATENT, repeats=2, baseline_repeats=int(size <= 32_000)) for size in sizes]


def tiny() -> list[Case]:
    """For the tests: so few codes that prefixes are full."""
    return [_case(1_500, dims={"text": 3, "image": 2}, codebook_size=10, repeats=1, baseline_repeats=1)]


def write_catalogue(folder: Path, items: int, dims: dict[str, int], config: QuantizerConfig) -> None:
    """Embeddings around centres, some items near each other as variants of a product are, and a quantizer of them."""
    draw = np.random.default_rng(1)
    modules: dict[str, ModalityQuantizer] = {}
    torch.manual_seed(1)
    for name, dim in dims.items():
        centres = draw.standard_normal((max(items // 3, 1), dim), dtype=np.float32)
        vectors = centres[draw.integers(0, len(centres), items)]
        vectors += 0.3 * draw.standard_normal((items, dim), dtype=np.float32)
        np.save(folder / f"{name}.npy", vectors)
        module = (ResidualKMeans if config.method == "residual_k_means" else RqVae)(dim, config)
        sample = torch.from_numpy(vectors[:_FITTED_ON])
        module.standardize(sample)
        with torch.no_grad():
            module.quantizer.initialise(module.latents(sample), seed=1)
        modules[name] = module.eval()
    FittedQuantizer(modules["text"], modules["image"], config, {"text": 0, "image": 0}, []).save(folder)


def _ours(folder: Path) -> Timed:
    quantizer, vectors = _read(folder)

    def run() -> dict[str, np.ndarray]:
        found = assign_semantic_ids(quantizer, vectors["text"], vectors["image"], device=_CPU)
        return {"text": found.text_codes, "image": found.image_codes}

    return run


def _item_by_item(folder: Path) -> Timed:
    quantizer, vectors = _read(folder)
    return lambda: {name: _resolve_plainly(getattr(quantizer, name), values) for name, values in vectors.items()}


def _read(folder: Path) -> tuple[FittedQuantizer, dict[str, np.ndarray]]:
    return FittedQuantizer.load(folder, device=_CPU), {name: np.load(folder / f"{name}.npy") for name in _LATENT}


def _resolve_plainly(module: ModalityQuantizer, vectors: np.ndarray) -> np.ndarray:
    codes, residuals = quantize(module, vectors, device=_CPU)
    books = module.quantizer.codebooks.detach()
    result = codes.copy()
    taken: set[tuple[int, ...]] = set()
    waiting = _ask(result, range(len(codes)), squared_distances(residuals[:, 1], books[-1]).numpy(), taken)
    before = squared_distances(residuals[:, 0], books[-2]).argsort(dim=1, stable=True).numpy()
    for rank in range(1, books.shape[1]):
        if not waiting:
            break
        entering = residuals[:, 1].clone()
        for item in waiting:
            result[item, -2] = before[item, rank]
            entering[item] = residuals[item, 0] - books[-2][before[item, rank]]
        waiting = _ask(result, waiting, squared_distances(entering, books[-1]).numpy(), taken)
    assert not waiting, "no free ID"
    return result


def _ask(result: np.ndarray, waiting: Iterable[int], distances: np.ndarray, taken: set[tuple[int, ...]]) -> list[int]:
    """Let items ask for their nearest last codes in turn, the nearest of those that ask for one ID first."""
    left = list(waiting)
    order = {item: np.argsort(distances[item], kind="stable") for item in left}
    for rank in range(distances.shape[1]):
        asking: dict[tuple[int, ...], int] = {}
        for item in left:
            key = (*result[item, :-1].tolist(), int(order[item][rank]))
            best = asking.get(key)
            if key not in taken and (best is None or distances[item, key[-1]] < distances[best, key[-1]]):
                asking[key] = item
        for key, item in asking.items():
            result[item] = key
        taken.update(asking)
        placed = set(asking.values())
        left = [item for item in left if item not in placed]
    return left


def _same(ours: Any, theirs: Any) -> None:
    for name in _LATENT:
        np.testing.assert_array_equal(ours[name], theirs[name])


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
        ours=_ours,
        baseline=_item_by_item,
        same=_same,
        limit=limit,
        **kwargs,
    )


def _encoder_flops(dim: int, config: QuantizerConfig) -> int:
    if config.method == "residual_k_means":
        return 0
    sizes = [dim, config.projection_dim, *config.hidden_dims, config.latent_dim]
    return sum(2 * a * b for a, b in pairwise(sizes))


def _distance_flops(dim: int, config: QuantizerConfig) -> int:
    """Distances to all codes of every level, and once more to the last to resolve collisions."""
    latent = dim if config.method == "residual_k_means" else config.latent_dim
    return 2 * latent * config.codebook_size * (config.num_levels + 1)
