"""How often two items get one semantic ID as the catalogue grows, for several sizes of the codebooks: a simulation.

    python -m benchmarks.scaling.collisions

A catalogue is drawn as products in a space of 32 numbers, and variants near each product, as sizes and colours are in a
shop. Quantized by residual k-means that is fitted on a sample, as a learnt quantizer would be; collisions are counted
before they are resolved. The distance of variants is set so that 6,250 items with 4 levels of 256 codes collide as
often as the published IDs of Musical Instruments (2.4% to 3.7%). Writes `results/collisions.json`, prints the table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from macrec_pipeline.semantic_ids.diagnostics import code_usage, collision_rate, perplexity
from macrec_pipeline.semantic_ids.modality_quantizer import quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans

RESULTS = Path(__file__).parent / "results" / "collisions.json"
SIZES = (6_250, 25_000, 100_000, 400_000, 1_600_000)
CODEBOOKS = ((3, 256), (4, 256), (4, 1024), (5, 256))
LATENT_DIM, FITTED_ON = 32, 100_000
# A third of the items are variants of another one, VARIANT_DISTANCE standard deviations of all products away.
VARIANT_SHARE, VARIANT_DISTANCE = 1 / 3, 0.35


def catalogue(num_items: int, generator: np.random.Generator) -> np.ndarray:
    """Latents float32 [N, 32]: products with a falling spectrum, as learnt spaces have, and variants of some."""
    scale = np.arange(1, LATENT_DIM + 1, dtype=np.float32) ** -0.5
    num_products = round(num_items * (1 - VARIANT_SHARE))
    products = generator.standard_normal((num_products, LATENT_DIM), dtype=np.float32)
    parents = generator.integers(num_products, size=num_items - num_products)
    noise = generator.standard_normal((len(parents), LATENT_DIM), dtype=np.float32)
    latents: np.ndarray = np.concatenate([products, products[parents] + VARIANT_DISTANCE * noise]) * scale
    return latents


def measure(latents: np.ndarray, *, num_levels: int, codebook_size: int) -> dict[str, float]:
    """Collision rate of a catalogue, the share of items that have to move, and how many last codes are in use."""
    config: Any = SimpleNamespace(
        num_levels=num_levels,
        codebook_size=codebook_size,
        commitment_weight=0.25,
        variant="as_intended",
        collaborative_input_weight=0.0,
    )
    module = ResidualKMeans(LATENT_DIM, config)
    sample = torch.from_numpy(latents[np.random.default_rng(1).permutation(len(latents))[:FITTED_ON]])
    module.standardize(sample)
    module.fit(sample, seed=1)
    codes, _ = quantize(module.eval(), latents, device=torch.device("cpu"))
    used = perplexity(code_usage(codes, codebook_size=codebook_size))
    _, counts = np.unique(codes[:, :-1], axis=0, return_counts=True)
    return {
        "collision_rate": collision_rate(codes),
        "first_level_perplexity": float(used[0]),
        "most_under_one_prefix": int(counts.max()),  # more than the codebook's size would not fit
    }


def main() -> None:
    """Simulate every size with every codebook and print the collision rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    print("| items | " + " | ".join(f"{levels} x {size}" for levels, size in CODEBOOKS) + " |")
    print("| --- |" + " --- |" * len(CODEBOOKS))
    for num_items in arguments.sizes:
        latents = catalogue(num_items, np.random.default_rng(1))
        found = [measure(latents, num_levels=levels, codebook_size=size) for levels, size in CODEBOOKS]
        rows += [
            {"num_items": num_items, "num_levels": levels, "codebook_size": size} | row
            for (levels, size), row in zip(CODEBOOKS, found, strict=True)
        ]
        print(
            f"| {num_items:,} | " + " | ".join(f"{100 * row['collision_rate']:.1f}%" for row in found) + " |",
            flush=True,
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
