"""Measure how long recipes take to train a quantizer as good as the published recipe of 1,000 epochs does.

    macrec run movielens-100k --data ../shared/data --until pseudo_labels
    python -m benchmarks.speed.quantizer_quality movielens-100k

The reference is the published recipe: seven hidden layers, batches of 2,048, a constant learning rate. For each
modality it keeps the weights of the epoch with the lowest collision rate. The other recipes have to reach that rate,
and the reconstruction error of the whole catalogue in that epoch, in both modalities at once and with the same losses.
The command writes `results/quantizer-quality.json`, and skips recipes that the file already contains. Times exclude
the measurements.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.speed.machine import machine_name
from macrec_pipeline.config import QuantizerConfig, RuntimeConfig
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.semantic_ids.catalogue import Catalogue
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.rq_vae_training import RqVaeTraining
from macrec_pipeline.storage import AssetStore, vectors_of

RECIPES: dict[str, dict[str, Any]] = {
    "reference": {"num_epochs": 1000},
    "reference in bfloat16, smaller batches, falling rate": {
        "num_epochs": 100,
        "precision": "bfloat16",
        "schedule": "cosine",
        "batch_size": 256,
    },
    # with one hidden layer, reconstruction needs hundreds of steps instead of thousands with seven
    "one hidden layer, smaller batches, falling rate": {
        "num_epochs": 400,
        "projection_dim": 512,
        "hidden_dims": (256,),
        "schedule": "cosine",
        "batch_size": 256,
        "learning_rate": 2e-3,
    },
}
# Epochs between two measurements.
_MEASURE_EVERY = 5


def load(store: AssetStore) -> Catalogue:
    """Read the vectors and pseudo-labels of a data set that was run until `pseudo_labels`."""
    labels = store.read_table("pseudo_labels")
    vectors = {name: vectors_of(store.read_table(f"{name}_embeddings")) for name in ("text", "image")}
    return Catalogue(vectors, {name: labels[f"{name}_cluster"].to_numpy(writable=True) for name in vectors}, None, 0)


def train(catalogue: Catalogue, config: QuantizerConfig, *, threads: int) -> dict[str, Any]:
    """Train as `fit_quantizer` does; the clock stops while the catalogue is measured."""
    device = prepare_device(RuntimeConfig(device="cpu", num_threads=threads))
    start = time.perf_counter()
    training = RqVaeTraining(catalogue, config, seed=1, name="quantizer", device=device)
    seconds, log = time.perf_counter() - start, []
    for epoch in range(1, config.num_epochs + 1):
        start = time.perf_counter()
        training.train_epoch(epoch)
        seconds += time.perf_counter() - start
        if epoch % _MEASURE_EVERY == 0 or epoch == config.num_epochs:
            log.append({"epoch": epoch, "seconds": round(seconds, 4), **measure(training)})
    return {"seconds": round(seconds, 4), "log": log}


@torch.no_grad()
def measure(training: RqVaeTraining) -> dict[str, float]:
    """Measure collision rate and reconstruction error of all items; the error is in variances of the input."""
    metrics = {}
    for name, module in training.model.rq_vaes():
        vectors = training.items.vectors[name]
        quantized = module.quantizer(module.encode(vectors))
        error = F.mse_loss(module.decode(quantized.latent), module.standardized(vectors))
        metrics[f"{name}_collision_rate"] = collision_rate(quantized.codes.numpy())
        metrics[f"{name}_reconstruction"] = float(error)
    return metrics


def kept_quality(log: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the metrics of the kept weights: those of each modality's epoch with the lowest collision rate."""
    quality: dict[str, float] = {}
    for name in ("text", "image"):
        best = min(log, key=lambda row: row[f"{name}_collision_rate"])
        quality |= {key: best[key] for key in (f"{name}_collision_rate", f"{name}_reconstruction")}
    return quality


def seconds_to_reach(log: Sequence[Mapping[str, float]], quality: Mapping[str, float]) -> float | None:
    """Return the seconds until all metrics of one measurement are as low as `quality`, or None."""
    times = (row["seconds"] for row in log if all(row[name] <= value for name, value in quality.items()))
    return next(times, None)


def main() -> None:
    """Train by every recipe, and write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--home", type=Path, default=Path(".macrec"), help="folder of the pipeline's results")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quantizer-quality.json")
    arguments = parser.parse_args()
    catalogue = load(AssetStore(arguments.home, arguments.dataset))
    run = {"machine": machine_name(), "threads": arguments.threads, "items": len(catalogue)}
    document = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else run
    if any(document[name] != value for name, value in run.items()):
        parser.error(
            f"{arguments.out} is from another machine or catalogue: choose another file with --out, or remove it"
        )
    for name, recipe in RECIPES.items():
        if name not in document:
            document[name] = train(catalogue, QuantizerConfig(**recipe), threads=arguments.threads)
        reference = document["reference"]
        document["quality"] = kept_quality(reference["log"])
        seconds = (
            seconds_to_reach(document[name]["log"], document["quality"])
            if name != "reference"
            else reference["seconds"]
        )
        document[name]["as_good_after"] = seconds
        document[name]["ratio"] = seconds and round(reference["seconds"] / seconds, 2)
        last = document[name]["log"][-1]
        print(
            f"{name}: {document[name]['seconds']} s, as good as the reference after {seconds} s; last: {last}",
            flush=True,
        )
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
