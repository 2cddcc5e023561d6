"""Simulate how often items share a semantic ID as the catalogue grows, for several codebook sizes.

    python -m benchmarks.scaling.collisions

A catalogue consists of random products in a space of 32 dimensions, and of variants close to a product, like sizes and
colours in a shop. It is quantized by residual k-means, fitted on a sample as a trained quantizer would be. Collisions
are counted before they are resolved. The distance of variants is chosen so that 6,250 items with 4 levels of 256 codes
collide as often as the published IDs of Musical Instruments (2.4% to 3.7%). The command writes
`results/collisions.json`, and prints the table.

Shapes (docs/notation.md): N items.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from macrec_pipeline.config import QuantizerConfig
from macrec_pipeline.semantic_ids.diagnostics import code_usage, collision_rate, perplexity
from macrec_pipeline.semantic_ids.modality_quantizer import QuantizerSpec, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans

RESULTS = Path(__file__).parent / "results" / "collisions.json"
SIZES = (6_250, 25_000, 100_000, 400_000, 1_600_000)
CODEBOOKS = ((3, 256), (4, 256), (4, 1024), (5, 256))
LATENT_DIM, SAMPLE_SIZE = 32, 100_000
# A third of the items are variants, at VARIANT_DISTANCE standard deviations of the products from another item.
VARIANT_SHARE, VARIANT_DISTANCE = 1 / 3, 0.35


def catalogue(num_items: int, generator: np.random.Generator) -> np.ndarray:
    """Draw latents, float32 [N, 32]: products with a decaying spectrum, as in learned spaces, and variants of some."""
    scale = np.arange(1, LATENT_DIM + 1, dtype=np.float32) ** -0.5
    num_products = round(num_items * (1 - VARIANT_SHARE))
    products = generator.standard_normal((num_products, LATENT_DIM), dtype=np.float32)
    parents = generator.integers(num_products, size=num_items - num_products)
    noise = generator.standard_normal((len(parents), LATENT_DIM), dtype=np.float32)
    latents: np.ndarray = np.concatenate([products, products[parents] + VARIANT_DISTANCE * noise]) * scale
    return latents


def measure(latents: np.ndarray, *, num_levels: int, codebook_size: int) -> dict[str, float]:
    """Measure the collision rate, the first level's perplexity, and the most items that share all but the last code."""
    config = QuantizerConfig(method="residual_k_means", num_levels=num_levels, codebook_size=codebook_size)
    module = ResidualKMeans(LATENT_DIM, QuantizerSpec.from_settings(vars(config)))
    sample = torch.from_numpy(latents[np.random.default_rng(1).permutation(len(latents))[:SAMPLE_SIZE]])
    module.fit_standardization(sample)
    module.fit(sample, seed=1)
    codes, _ = quantize(module.eval(), latents, device=torch.device("cpu"))
    perplexities = perplexity(code_usage(codes, codebook_size=codebook_size))
    _, counts = np.unique(codes[:, :-1], axis=0, return_counts=True)
    return {
        "collision_rate": collision_rate(codes),
        "first_level_perplexity": float(perplexities[0]),
        "most_under_one_prefix": int(counts.max()),  # must not exceed the codebook size
    }


def main() -> None:
    """Simulate every size with every codebook, and print the collision rates."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    print("| items | " + " | ".join(f"{levels} x {size}" for levels, size in CODEBOOKS) + " |")
    print("| --- |" + " --- |" * len(CODEBOOKS))
    for num_items in arguments.sizes:
        latents = catalogue(num_items, np.random.default_rng(1))
        results = [measure(latents, num_levels=levels, codebook_size=size) for levels, size in CODEBOOKS]
        rows += [
            {"num_items": num_items, "num_levels": levels, "codebook_size": size} | row
            for (levels, size), row in zip(CODEBOOKS, results, strict=True)
        ]
        print(
            f"| {num_items:,} | " + " | ".join(f"{100 * row['collision_rate']:.1f}%" for row in results) + " |",
            flush=True,
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
