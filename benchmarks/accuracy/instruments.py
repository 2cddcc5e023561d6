"""Train and rank on Amazon Musical Instruments, with the papers' split, catalogue and public semantic IDs.

    python benchmarks/accuracy/instruments.py shallow --data ../shared/data --seeds 1 2 3

The command trains the recommender on the IDs that MQL4GRec's authors published (text: LLaMA-7B, image: CLIP ViT-L/14),
ranks the full catalogue of 6,250 items for each of the 17,112 users, and writes `results/instruments-<variant>.json`.
It only needs torch, transformers, numpy and faiss. If training is interrupted, repeat the command: training resumes
after the last finished epoch.

Some items share a public text ID. As in the pipeline, such items are moved to free IDs before training. A hit is the
target item itself. The results also contain the metric of the published code, `text_by_code_string`, for which any item
with the target's public text ID is a hit of the text route.

The catalogue is ranked by each route; by both routes as published (`fused`); by both with weights fitted on validation
targets (`two_routes`); and by both and SASRec with fitted weights (`three_routes`). The last two learn from validation
targets whether to recommend seen items. The others recommend them, as published, and without them as
`<system>_unseen`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.beam_search import Beams
from macrec_pipeline.recommender.retrieval.fusion import (
    COLLABORATIVE,
    CalibratedFusion,
    fuse_calibrated,
    fuse_published,
)
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, Ranked, RetrievalBatch, as_ranked
from macrec_pipeline.recommender.sasrec.training import fit_sasrec
from macrec_pipeline.runtime.devices import keep_freed_memory
from macrec_pipeline.semantic_ids.assignment import resolve_given_ids

if TYPE_CHECKING:
    from macrec_pipeline.recommender.sasrec.model import Sasrec

CODEBOOK_SIZE = 256
CUTOFFS = (1, 5, 10)

# The published recommender (MACRec section 4.1), in full: without pydantic, nothing fills in the defaults.
PUBLISHED: dict[str, Any] = {
    "d_model": 128,
    "d_ff": 1024,
    "d_kv": 64,
    "num_heads": 6,
    "num_encoder_layers": 4,
    "num_decoder_layers": 4,
    "dropout": 0.1,
    "history_length": 20,
    "encoding": "exact",
    "num_prompt_tokens": 4,
    "tasks": (
        "text_to_text",
        "image_to_image",
        "text_to_image",
        "image_to_text",
        "text_id_to_image_id",
        "image_id_to_text_id",
    ),
    "implicit_weight": 0.01,
    "implicit_temperature": 0.1,
    "learning_rate": 1e-3,
    "weight_decay": 0.01,
    "warmup_share": 0.01,
    "batch_size": 4096,
    "num_epochs": 200,
    "label_smoothing": 0.0,
    "ema_decay": 0.0,
    "precision": "float32",
    "early_stopping": "validation_loss",
    "patience": 10,
}
# Chosen on validation data (docs/results.md).
SASREC: dict[str, Any] = {
    "enabled": True,
    "d_model": 128,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.3,
    "max_length": 20,
    "learning_rate": 3e-3,
    "weight_decay": 0.01,
    "batch_size": 1024,
    "max_epochs": 30,
    "patience": 4,
}
# One encoder layer, one decoder layer and no dropout, chosen on validation data (docs/results.md).
SHALLOW: dict[str, Any] = {
    "d_ff": 512,
    "d_kv": 32,
    "num_heads": 4,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
    "dropout": 0.0,
    "learning_rate": 2e-3,
    "batch_size": 1024,
    "num_epochs": 8,
    "early_stopping": "validation_ndcg",
}
# The same depth, twice as wide.
WIDE: dict[str, Any] = SHALLOW | {
    "encoding": "item_causal",
    "d_model": 256,
    "d_ff": 1024,
    "num_heads": 8,
    "learning_rate": 1.5e-3,
    "num_epochs": 6,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "published": {},
    "published_item_causal": {"encoding": "item_causal"},
    "shallow_exact": SHALLOW,
    "shallow": SHALLOW | {"encoding": "item_causal"},
    "shallow_bfloat16": SHALLOW | {"encoding": "item_causal", "precision": "bfloat16"},
    # about four times as many epochs, with the published dropout: no better (docs/results.md)
    "long": SHALLOW | {"encoding": "item_causal", "dropout": 0.1, "num_epochs": 30, "patience": 100},
    "wide": WIDE,
    # nearly three times as many epochs, with the published dropout: no better
    "wide_long": WIDE | {"dropout": 0.1, "num_epochs": 16, "patience": 100, "precision": "bfloat16"},
    # no alignment between the modalities: as many steps per epoch, with half as many samples each
    "wide_two_tasks": WIDE
    | {
        "tasks": ("text_to_text", "image_to_image"),
        "batch_size": 512,
        "num_epochs": 10,
        "precision": "bfloat16",
    },
    # more layers: worse rankings, whether the loss is lower or higher (docs/results.md)
    "two_layers": WIDE
    | {
        "num_encoder_layers": 2,
        "num_decoder_layers": 2,
        "dropout": 0.1,
        "num_epochs": 12,
        "patience": 100,
        "precision": "bfloat16",
    },
    "four_layers": {
        "encoding": "item_causal",
        "batch_size": 1024,
        "num_epochs": 9,
        "patience": 100,
        "precision": "bfloat16",
        "early_stopping": "validation_ndcg",
    },
}
TOP_K, BATCH_SIZE = 20, {"cpu": 256, "cuda": 2048}
SYSTEM_OF = {COLLABORATIVE: "sasrec"}


def load(folder: Path) -> tuple[list[np.ndarray], dict[str, np.ndarray]]:
    """Read the histories (item indices, oldest first) and each modality's public codes, int64 [N, L]."""

    def read(suffix: str) -> Any:
        with gzip.open(folder / f"Instruments.{suffix}.gz", "rt", encoding="utf-8") as stream:
            return json.load(stream)

    def codes(suffix: str) -> np.ndarray:
        tokens = read(suffix)
        return np.array(
            [[int(token.strip("<>").split("_")[1]) for token in tokens[str(i)]] for i in range(len(tokens))]
        )

    interactions = read("inter.json")
    histories = [np.array(interactions[str(user)], dtype=np.int64) for user in range(len(interactions))]
    return histories, {"text": codes("index_lemb.json"), "image": codes("index_vitemb.json")}


def ranks_of(targets: np.ndarray, ranked: Sequence[Ranked]) -> np.ndarray:
    """Find the 1-based rank of each user's target, 0 if it is not in the list. Targets are items or numbers of IDs."""
    positions = [
        np.flatnonzero(of_user.item_indices == target) for target, of_user in zip(targets, ranked, strict=True)
    ]
    return np.array([position[0] + 1 if len(position) else 0 for position in positions])


def metrics(ranks: np.ndarray) -> dict[str, float]:
    """Compute HR and NDCG at each cutoff, averaged over all users."""
    result = {}
    for cutoff in CUTOFFS:
        hit = (ranks > 0) & (ranks <= cutoff)
        result[f"hr_{cutoff}"] = float(hit.mean())
        result[f"ndcg_{cutoff}"] = float(np.where(hit, 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0).mean())
    return result


def rankings(
    retriever: MultiRouteRetriever,
    histories: list[np.ndarray],
    fusions: Mapping[str, CalibratedFusion],
    *,
    beam_width: int,
) -> dict[str, list[Ranked]]:
    """Rank by every route and every fusion, with one search per route: for each system one list per history."""
    order: list[int] = []
    results: dict[str, list[Ranked]] = {}
    for positions in retriever.batches(histories, batch_size=BATCH_SIZE[retriever.model.t5.device.type]):
        order.extend(positions.tolist())
        batch = RetrievalBatch(retriever, [histories[position] for position in positions])
        systems: dict[str, Beams] = {}
        for exclude_seen, suffix in ((False, ""), (True, "_unseen")):
            beams = {
                route: batch.beams(route, width=beam_width, exclude_seen=exclude_seen) for route in retriever.routes
            }
            systems |= {SYSTEM_OF.get(route, route) + suffix: of_route for route, of_route in beams.items()}
            if len(retriever.generative_routes) == 2:
                systems[f"fused{suffix}"] = fuse_published(*(beams[route] for route in retriever.generative_routes))
        for name, fusion in fusions.items():
            weighted = [route for route, weight in fusion.weights.items() if weight > 0]
            candidates = batch.candidates(weighted, width=beam_width, exclude_seen=not fusion.recommend_seen)
            systems[name] = fuse_calibrated(candidates, fusion)
        for system, beams_of_system in systems.items():
            results.setdefault(system, []).extend(as_ranked(beams_of_system, TOP_K))
    original_order = np.argsort(order)
    return {system: [lists[index] for index in original_order] for system, lists in results.items()}


def evaluate(
    retriever: MultiRouteRetriever,
    fusions: Mapping[str, CalibratedFusion],
    histories: list[np.ndarray],
    public_numbers: np.ndarray,
    *,
    left_out: int,
    beam_width: int,
) -> dict[str, dict[str, float]]:
    """Compute the metrics of every system; the target is the `left_out`-th item from the end of a history."""
    targets = np.array([history[-left_out] for history in histories])
    ranked = rankings(retriever, [history[:-left_out] for history in histories], fusions, beam_width=beam_width)
    results = {system: metrics(ranks_of(targets, lists)) for system, lists in ranked.items()}
    if "text" in ranked:
        by_public_id = [
            Ranked(_without_repeats(public_numbers[of_user.item_indices]), of_user.scores) for of_user in ranked["text"]
        ]
        results["text_by_code_string"] = metrics(ranks_of(public_numbers[targets], by_public_id))
    return results


def run_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train and evaluate once. Test targets are read only after everything has been chosen."""
    histories, public = load(arguments.data / "amazon-instruments")
    ids = resolve_given_ids(public["text"], public["image"], codebook_size=CODEBOOK_SIZE)
    codes = {"text": ids.text_codes, "image": ids.image_codes}
    device, clock = torch.device(arguments.device), _Clock()
    fitted = fit_recommender(
        histories,
        *codes.values(),
        codebook_size=CODEBOOK_SIZE,
        config=SimpleNamespace(**PUBLISHED | VARIANTS[arguments.variant] | arguments.set),  # type: ignore[arg-type]
        seed=seed,
        device=device,
        progress=clock.show,
        checkpoint=arguments.work / f"instruments-{arguments.variant}-{seed}.safetensors",
    )
    train_seconds, epochs = clock.seconds(), clock.epochs(fitted)
    training = {
        "seed": seed,
        "train_seconds": train_seconds if epochs else None,  # unknown for a resumed training
        "epoch_seconds": epochs,
        "best_epoch": fitted.best_epoch,
        "log": fitted.log,
    }
    if arguments.training_only:
        return training
    sasrec = fit_sasrec(
        histories,
        num_items=len(ids.text_codes),
        config=SimpleNamespace(**SASREC),  # type: ignore[arg-type]
        seed=seed,
        device=device,
        progress=clock.show,
        checkpoint=arguments.work / f"instruments-sasrec-{seed}.safetensors",
    )
    fusions = _fusions(fitted, histories, codes, sasrec.model)
    items = ItemCodes({name: torch.from_numpy(value).to(device) for name, value in codes.items()})
    retriever = MultiRouteRetriever(fitted.model, items, sasrec=sasrec.model)
    numbers = np.unique(public["text"], axis=0, return_inverse=True)[1].ravel()
    result: dict[str, Any] = training | {
        "sasrec": sasrec.settings(),
        "fusions": {name: dataclasses.asdict(fusion) for name, fusion in fusions.items()},
        "validation": evaluate(retriever, fusions, histories, numbers, left_out=2, beam_width=20),
    }
    for width in [] if arguments.validation_only else arguments.beam_widths:
        start = time.monotonic()
        result[f"test_beam_{width}"] = evaluate(retriever, fusions, histories, numbers, left_out=1, beam_width=width)
        result[f"users_per_second_beam_{width}"] = round(len(histories) / (time.monotonic() - start), 1)
    return result


def _fusions(
    fitted: FittedRecommender, histories: list[np.ndarray], codes: dict[str, np.ndarray], sasrec: Sasrec
) -> dict[str, CalibratedFusion]:
    size = BATCH_SIZE[fitted.model.t5.device.type]
    decoding: Any = SimpleNamespace(beam_width=20, top_k=TOP_K, batch_size=size)
    """Fit the weights of two and of three routes."""
    fusions = {
        "two_routes": fit_fusion(fitted.model, histories, codes, config=decoding),
        "three_routes": fit_fusion(fitted.model, histories, codes, config=decoding, sasrec=sasrec),
    }
    return {name: fusion for name, fusion in fusions.items() if fusion is not None}


class _Clock:
    """Shows the progress of training, and records when each epoch ended."""

    def __init__(self) -> None:
        self.start = time.monotonic()
        self.steps: dict[int, float] = {}
        self.total = 0

    def seconds(self) -> float:
        return round(time.monotonic() - self.start, 1)

    def show(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if stage == "recommender":
            self.steps[done], self.total = self.seconds(), total
        _show(stage, done, total, metrics)

    def epochs(self, fitted: FittedRecommender) -> list[float]:
        """Return the seconds from the start to the end of each epoch's steps; empty for a resumed training."""
        steps = self.total // fitted.settings["num_epochs"]
        ends = [self.steps.get(steps * epoch) for epoch in range(1, len(fitted.log) + 1)]
        return [] if None in ends else [end for end in ends if end is not None]


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _without_repeats(numbers: np.ndarray) -> np.ndarray:
    """Keep the first of each number, as a decoder of code strings would return them."""
    return numbers[np.sort(np.unique(numbers, return_index=True)[1])]


def _show(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    if done % 100 == 0 or done == total:
        print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total} {dict(metrics or {})}", file=sys.stderr, flush=True)


def _setting(text: str) -> dict[str, Any]:
    name, _, value = text.partition("=")
    if name not in PUBLISHED:
        raise argparse.ArgumentTypeError(f"unknown setting {name!r}; the recommender has {', '.join(PUBLISHED)}")
    return {name: json.loads(value)}


def main() -> None:
    """Run a variant for each seed, and write the results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that contains amazon-instruments/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, default=Path(".macrec/benchmarks"), help="folder for checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--beam-widths", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--validation-only", action="store_true", help="do not read test targets; for choosing settings"
    )
    parser.add_argument("--training-only", action="store_true", help="do not rank after training; for training curves")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", type=_setting, action="append", default=[], metavar="NAME=JSON")
    arguments = parser.parse_args()
    arguments.set = {name: value for setting in arguments.set for name, value in setting.items()}
    if not (arguments.data / "amazon-instruments").is_dir():
        parser.error(f"{arguments.data / 'amazon-instruments'} does not exist; pass its parent folder with --data")
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(arguments.device == "cpu")
    suffix = "-training" if arguments.training_only else "-validation" if arguments.validation_only else ""
    path = arguments.out / f"instruments-{arguments.variant}{suffix}.json"
    part = "validation" if arguments.validation_only else f"test_beam_{arguments.beam_widths[0]}"
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        runs.append(run_seed(arguments, seed))
        for name, figures in runs[-1].get(part, {}).items():
            print(seed, name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
        _write(path, arguments, runs)  # after each seed, so that results can be read early
    print(path)


def _write(path: Path, arguments: argparse.Namespace, runs: list[dict[str, Any]]) -> None:
    """Replace the results file."""
    document = {
        "variant": arguments.variant,
        "settings": PUBLISHED | VARIANTS[arguments.variant] | arguments.set,
        "machine": {"device": _device_name(arguments.device), "threads": arguments.threads, "torch": torch.__version__},
        "python": platform.python_version(),
        "runs": runs,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
