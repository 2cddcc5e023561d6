"""Time until the quantizer is as good as the reference's recipe of 1,000 epochs makes it, on a real catalogue.

    macrec run movielens-100k --data ../shared/data --until pseudo_labels
    python -m benchmarks.speed.quantizer_quality movielens-100k

The recipe is the published one: seven hidden layers, batches of 2,048, a constant learning rate. It hands over the
weights of the epoch with the lowest collision rate, a modality; that rate, and the reconstruction error of the whole
catalogue then, are what the others have to reach, all four figures at once and with the same losses. Writes
`results/quantizer-quality.json`, and leaves out what that file has already; measuring is not in the times.
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
    # one hidden layer, whose reconstructions need hundreds of steps where seven need thousands
    "one hidden layer, smaller batches, falling rate": {
        "num_epochs": 400,
        "projection_dim": 512,
        "hidden_dims": (256,),
        "schedule": "cosine",
        "batch_size": 256,
        "learning_rate": 2e-3,
    },
}
_EVERY = 5
"""Epochs between two measurements."""


def load(store: AssetStore) -> Catalogue:
    """The vectors and pseudo-labels of a data set that was run until `pseudo_labels`."""
    labels = store.read_table("pseudo_labels")
    vectors = {name: vectors_of(store.read_table(f"{name}_embeddings")) for name in ("text", "image")}
    return Catalogue(vectors, {name: labels[f"{name}_cluster"].to_numpy(writable=True) for name in vectors}, None, 0)


def trained(catalogue: Catalogue, config: QuantizerConfig, *, threads: int) -> dict[str, Any]:
    """Train as `fit_quantizer` does, by a clock that stands still while the catalogue is measured."""
    device = prepare_device(RuntimeConfig(device="cpu", num_threads=threads))
    begun = time.perf_counter()
    training = RqVaeTraining(catalogue, config, seed=1, name="quantizer", device=device)
    seconds, log = time.perf_counter() - begun, []
    for epoch in range(1, config.num_epochs + 1):
        begun = time.perf_counter()
        training.one_epoch(epoch)
        seconds += time.perf_counter() - begun
        if epoch % _EVERY == 0 or epoch == config.num_epochs:
            log.append({"epoch": epoch, "seconds": round(seconds, 4), **measured(training)})
    return {"seconds": round(seconds, 4), "log": log}


@torch.no_grad()
def measured(training: RqVaeTraining) -> dict[str, float]:
    """Collision rate and reconstruction error of all items, a modality; the error in variances of the input."""
    figures = {}
    for name, module in training.model.rq_vaes():
        vectors = training.items.vectors[name]
        quantized = module.quantizer(module.latents(vectors))
        error = F.mse_loss(module.decoded(quantized.latent), module.standardized(vectors))
        figures[f"{name}_collision_rate"] = collision_rate(quantized.codes.numpy())
        figures[f"{name}_reconstruction"] = float(error)
    return figures


def handed_over(log: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What is handed over: of each modality the figures of its epoch with the lowest collision rate."""
    quality: dict[str, float] = {}
    for name in ("text", "image"):
        best = min(log, key=lambda row: row[f"{name}_collision_rate"])
        quality |= {key: best[key] for key in (f"{name}_collision_rate", f"{name}_reconstruction")}
    return quality


def reached(log: Sequence[Mapping[str, float]], quality: Mapping[str, float]) -> float | None:
    """Seconds until all figures of one measurement were as low as `quality`, or None."""
    good = (row["seconds"] for row in log if all(row[name] <= value for name, value in quality.items()))
    return next(good, None)


def main() -> None:
    """Train by every recipe and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("dataset")
    parser.add_argument("--home", type=Path, default=Path(".macrec"), help="a folder")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "quantizer-quality.json")
    arguments = parser.parse_args()
    catalogue = load(AssetStore(arguments.home, arguments.dataset))
    run = {"machine": machine_name(), "threads": arguments.threads, "items": len(catalogue)}
    document = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else run
    if any(document[name] != value for name, value in run.items()):
        parser.error(f"{arguments.out} is of another machine or catalogue: name another file, or remove it")
    for name, recipe in RECIPES.items():
        if name not in document:
            document[name] = trained(catalogue, QuantizerConfig(**recipe), threads=arguments.threads)
        reference = document["reference"]
        document["quality"] = handed_over(reference["log"])
        seconds = reached(document[name]["log"], document["quality"]) if name != "reference" else reference["seconds"]
        document[name]["as_good_after"] = seconds
        document[name]["ratio"] = seconds and round(reference["seconds"] / seconds, 2)
        last = document[name]["log"][-1]
        print(f"{name}: {document[name]['seconds']} s, as good after {seconds} s; in the end {last}", flush=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
