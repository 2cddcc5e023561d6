"""Measure the heavy stages on one GPU, at the sizes of Amazon Musical Instruments, with the published models.

    python benchmarks/speed/accelerator.py --data ../shared/data

The command only needs torch, transformers, numpy and faiss, like `benchmarks/accuracy/instruments.py`, which times
whole trainings. It writes `results/accelerator.json`, without a baseline. First it measures the GPU's own rates, to
compare with, and how far results on the GPU agree with those on the CPU. Operations are counted by torch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

if not __package__:  # run as a script: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmarks.accuracy.instruments import CODEBOOK_SIZE, PUBLISHED, load
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training import train
from macrec_pipeline.runtime.training import EagerBackward
from macrec_pipeline.semantic_ids.assignment import resolve_given_ids
from macrec_pipeline.semantic_ids.fitting import fit_quantizer

# The published quantizer (MACRec section 4.1), in full: without pydantic, nothing fills in the defaults.
QUANTIZER: dict[str, Any] = {
    "method": "cross_modal",
    "variant": "as_intended",
    "num_levels": 4,
    "codebook_size": CODEBOOK_SIZE,
    "latent_dim": 32,
    "projection_dim": 768,
    "hidden_dims": (2048, 1024, 512, 256, 128, 64),
    "commitment_weight": 0.25,
    "contrast_from_level": 3,
    "contrast_weight": 0.1,
    "alignment_weight": 0.001,
    "collaborative_input_weight": 0.0,
    "collaborative_contrast_weight": 0.0,
    "temperature": 0.1,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "schedule": "constant",
    "batch_size": 2048,
    "num_epochs": 1000,
    "precision": "bfloat16",
    "evaluate_every": 10,
    "best_epoch": "per_modality",
    "revive_dead_codes": False,
    "revive_every": 10,
}
_ITEMS, _DIMS, _CLUSTERS = 6_250, {"text": 4096, "image": 768}, 512
_AGREEMENT_USERS, _BEAM_WIDTH, _CPU = 64, 20, torch.device("cpu")
Codes = dict[str, np.ndarray]


def rates(device: torch.device) -> dict[str, float]:
    """Measure the device: bfloat16 products of 8192 x 8192 in TFLOP/s, and copies in GB/s, read plus written."""
    size = 8192 if device.type == "cuda" else 512
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    block = torch.randn(size * size * 4, device=device)
    copy = torch.empty_like(block)
    products = _median(lambda: left @ right, device, repeats=10)
    copies = _median(lambda: copy.copy_(block), device, repeats=10)
    return {"tflops": 2 * size**3 / products / 1e12, "gigabytes": 2 * 4 * block.numel() / copies / 1e9}


def agreement(histories: list[np.ndarray], codes: Codes, device: torch.device) -> dict[str, float]:
    """Compare the losses of one float32 epoch, and the lists after it, with those of the CPU."""
    users = histories[:_AGREEMENT_USERS]
    devices = (_CPU, device)
    fitted = [_train(users, codes, each, {"num_epochs": 1, "dropout": 0.0, "precision": "float32"}) for each in devices]
    cpu_log, device_log = (model.log[0] for model in fitted)
    worst = max(abs(cpu_log[name] - device_log[name]) / max(abs(cpu_log[name]), 1e-9) for name in cpu_log)
    lists = [_lists(model, users, codes, each, batch_size=32)[0] for each, model in zip(devices, fitted, strict=True)]
    same = np.mean([set(on_cpu) == set(on_device) for on_cpu, on_device in zip(*lists, strict=True)])
    return {"largest_difference_of_losses": float(worst), "users_with_the_same_20": float(same)}


def training(histories: list[np.ndarray], codes: Codes, device: torch.device, *, epochs: int) -> dict[str, float]:
    """Measure seconds per epoch including validation, their spread, operations per epoch, and peak memory."""
    ends: list[float] = []
    per_epoch: dict[str, int] = {}

    def progress(_stage: str, done: int, total: int, _metrics: Mapping[str, float] | None = None) -> None:
        per_epoch.setdefault("steps", total // epochs)
        if (done - 1) % per_epoch["steps"] == 0:
            ends.append(_now(device))

    settings = {"num_epochs": epochs, "patience": epochs, "precision": "bfloat16"}
    _train(histories, codes, device, settings, progress)
    seconds = np.diff(ends)[2:]  # a GPU sees the shapes in the first epoch, and records CUDA graphs in the second
    peak = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0.0
    # operations inside recorded CUDA graphs cannot be counted
    with (
        mock.patch.object(train, "backward_pass", lambda _, device: EagerBackward(device)),
        FlopCounterMode(display=False) as counter,
    ):
        _train(histories, codes, device, settings | {"num_epochs": 1})
    return {
        "seconds": float(np.median(seconds)),
        "spread": float((seconds.max() - seconds.min()) / np.median(seconds)),
        "flops": float(counter.get_total_flops()),
        "peak_memory_gb": round(peak, 1),
    }


def decoding(histories: list[np.ndarray], codes: Codes, device: torch.device) -> dict[str, float]:
    """Measure users per second of the text route, including the transfer of the lists: median of three."""
    fitted = _train(histories[:_AGREEMENT_USERS], codes, device, {"num_epochs": 1})
    rates = [len(histories) / _lists(fitted, histories, codes, device, batch_size=4096)[1] for _ in range(4)]
    return {"users_per_second": statistics.median(rates[1:])}


def quantizer(
    vectors: Mapping[str, np.ndarray], clusters: Mapping[str, np.ndarray], device: torch.device, **changes: Any
) -> dict[str, float]:
    """Measure the seconds of a training, and return its last and its best metrics."""
    start = _now(device)
    fitted = fit_quantizer(
        vectors["text"],
        vectors["image"],
        clusters["text"],
        clusters["image"],
        SimpleNamespace(**QUANTIZER | changes),  # type: ignore[arg-type]
        seed=1,
        device=device,
    )
    last = {name: value for name, value in fitted.log[-1].items() if name.endswith(("reconstruction", "rate", "loss"))}
    best = {
        f"best_{name}": min(row[name] for row in fitted.log) for name in ("text_collision_rate", "image_collision_rate")
    }
    return {"seconds": _now(device) - start} | last | best


def random_vectors(items: int) -> tuple[Codes, Codes]:
    """Draw float32 [N, D] in both modalities around common centres, and return the centres as pseudo-labels."""
    generator = np.random.default_rng(1)
    centre = generator.integers(0, max(items // 12, 2), items)
    vectors = {}
    for name, dim in _DIMS.items():
        centres = generator.standard_normal((centre.max() + 1, dim), dtype=np.float32)
        vectors[name] = centres[centre] + generator.standard_normal((items, dim), dtype=np.float32) / 2
    return vectors, dict.fromkeys(_DIMS, centre % _CLUSTERS)


def _train(
    histories: list[np.ndarray],
    codes: Codes,
    device: torch.device,
    changes: Mapping[str, Any],
    progress: Callable[..., None] = lambda *_: None,
) -> FittedRecommender:
    return fit_recommender(
        histories,
        *codes.values(),
        codebook_size=CODEBOOK_SIZE,
        config=SimpleNamespace(**PUBLISHED | dict(changes)),  # type: ignore[arg-type]
        seed=1,
        device=device,
        progress=progress,
    )


def _lists(
    fitted: FittedRecommender,
    histories: list[np.ndarray],
    codes: Codes,
    device: torch.device,
    *,
    batch_size: int,
) -> tuple[list[np.ndarray], float]:
    items = ItemCodes({name: torch.from_numpy(value).to(device) for name, value in codes.items()})
    retriever = MultiRouteRetriever(fitted.model, items)
    start = _now(device)
    ranked = retriever.rank(
        [history[:-1] for history in histories],
        routes=["text"],
        top_k=_BEAM_WIDTH,
        beam_width=_BEAM_WIDTH,
        batch_size=batch_size,
    )
    return [of_user.item_indices for of_user in ranked["text"]], _now(device) - start


def _median(run: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        start = _now(device)
        run()
        seconds.append(_now(device) - start)
    return statistics.median(seconds)


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Measure the stages, and write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that contains amazon-instruments/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "accelerator.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--users", type=int, default=None, help="number of users (default: all)")
    parser.add_argument("--items", type=int, default=_ITEMS, help="number of items of the quantizer")
    parser.add_argument("--epochs", type=int, default=6, help="number of timed epochs of the recommender")
    parser.add_argument("--quantizer-epochs", type=int, default=1000)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    histories, public = load(arguments.data / "amazon-instruments")
    histories = histories[: arguments.users]
    ids = resolve_given_ids(public["text"], public["image"], codebook_size=CODEBOOK_SIZE)
    codes = {"text": ids.text_codes, "image": ids.image_codes}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    document: dict[str, Any] = {"machine": name, "torch": torch.__version__, "measured": {}}
    stages: dict[str, Callable[[], dict[str, float]]] = {
        "rates": lambda: rates(device),
        "agreement": lambda: agreement(histories, codes, device),
        "training": lambda: training(histories, codes, device, epochs=arguments.epochs),
        "decoding": lambda: decoding(histories, codes, device),
        "quantizer": lambda: quantizer(*random_vectors(arguments.items), device, num_epochs=arguments.quantizer_epochs),
    }
    for stage, measure in stages.items():
        start = time.perf_counter()
        try:
            document["measured"][stage] = measure()
        except Exception as error:  # the results of the other stages are still useful
            traceback.print_exc()
            document["measured"][stage] = {"error": str(error)}
        print(f"{stage} ({time.perf_counter() - start:.0f} s): {document['measured'][stage]}", flush=True)
        arguments.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
