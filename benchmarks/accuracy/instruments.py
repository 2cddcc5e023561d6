"""Amazon Musical Instruments with the public semantic IDs: the papers' own split, catalogue and IDs.

    python benchmarks/accuracy/instruments.py shallow --data ../shared/data --seeds 1 2 3

Trains the recommender on the IDs that MQL4GRec's authors published (text: LLaMA-7B, pictures: CLIP ViT-L/14), ranks
the full catalogue of 6,250 items for each of the 17,112 users, and writes `results/instruments-<variant>.json`. Needs
torch, transformers, numpy and faiss alone. A training that is cut off goes on after its last epoch when the command is
repeated.

Public text IDs repeat, so items that share one are moved to free IDs before training, as the pipeline does it. A hit is
the target item itself; beside it stands the count of the published code, in which any item with the target's public
text ID is a hit of the text route.

Ranked by each route, by both as published (`fused`), by both with weights fitted on validation targets (`two_routes`),
and by the two with SASRec as a third, weighed likewise (`three_routes`). The last two learn from validation targets
whether seen items come back; the others have them, as published, and leave them out as `<system>_unseen`.
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
from macrec_pipeline.recommender.retrieval.beam_search import Beams
from macrec_pipeline.recommender.retrieval.fusion import COLLABORATIVE, CalibratedFusion, fuse, fuse_candidates
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion
from macrec_pipeline.recommender.retrieval.ranking import Ranked, as_ranked
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.sasrec.training import fit_sasrec
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.runtime.devices import keep_freed_memory
from macrec_pipeline.semantic_ids.assignment import resolve_given_ids

if TYPE_CHECKING:
    from macrec_pipeline.recommender.sasrec.model import Sasrec

CODEBOOK_SIZE = 256
CUTOFFS = (1, 5, 10)

# The published recommender (MACRec section 4.1), written out: a bare machine has no pydantic to fill in defaults.
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
# Chosen on validation data, see docs/results.md.
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
# One layer a side and no dropout, chosen on validation data: see docs/results.md.
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
# One layer a side still, twice as wide.
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
    # four times as long, with the published dropout: no better, see docs/results.md
    "long": SHALLOW | {"encoding": "item_causal", "dropout": 0.1, "num_epochs": 30, "patience": 100},
    "wide": WIDE,
    # nearly three times as long, with the published dropout: no better either
    "wide_long": WIDE | {"dropout": 0.1, "num_epochs": 16, "patience": 100, "precision": "bfloat16"},
    # generation alone, no alignment between the modalities: as many steps an epoch, with half of the samples in each
    "wide_two_tasks": WIDE
    | {
        "tasks": ("text_to_text", "image_to_image"),
        "batch_size": 512,
        "num_epochs": 10,
        "precision": "bfloat16",
    },
    # more layers: a lower loss or a higher one, and worse rankings, see docs/results.md
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
    """Histories of item indices, oldest first, and each modality's public codes, int64 [N, 4]."""

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
    """1-based rank of each user's target, 0 where it was not returned; an item or an ID number."""
    places = [np.flatnonzero(found.item_indices == target) for target, found in zip(targets, ranked, strict=True)]
    return np.array([place[0] + 1 if len(place) else 0 for place in places])


def metrics(ranks: np.ndarray) -> dict[str, float]:
    """HR and NDCG at each cutoff, over all users."""
    result = {}
    for cutoff in CUTOFFS:
        hit = (ranks > 0) & (ranks <= cutoff)
        result[f"hr_{cutoff}"] = float(hit.mean())
        result[f"ndcg_{cutoff}"] = float(np.where(hit, 1 / np.log2(np.maximum(ranks, 1) + 1), 0.0).mean())
    return result


def rankings(
    decoder: MultiRouteRetriever,
    histories: list[np.ndarray],
    fusions: Mapping[str, CalibratedFusion],
    *,
    beam_width: int,
) -> dict[str, list[Ranked]]:
    """Lists of every route, and of every way to fuse them, from one search: system -> one list a history."""
    order: list[int] = []
    found: dict[str, list[Ranked]] = {}
    for batch in decoder.batches(histories, batch_size=BATCH_SIZE[decoder.model.t5.device.type]):
        order.extend(batch.tolist())
        reading = decoder.read([histories[index] for index in batch])
        systems: dict[str, Beams] = {}
        for exclude_seen, suffix in ((False, ""), (True, "_unseen")):
            beams = {
                route: reading.beams(route, width=beam_width, exclude_seen=exclude_seen) for route in decoder.routes
            }
            systems |= {SYSTEM_OF.get(route, route) + suffix: found for route, found in beams.items()}
            if len(decoder.generative) == 2:
                systems[f"fused{suffix}"] = fuse(*(beams[route] for route in decoder.generative))
        for name, fusion in fusions.items():
            weighed = [route for route, weight in fusion.weights.items() if weight > 0]
            candidates = reading.candidates(weighed, width=beam_width, exclude_seen=not fusion.recommend_seen)
            systems[name] = fuse_candidates(candidates, fusion)
        for system, ranked in systems.items():
            found.setdefault(system, []).extend(as_ranked(ranked, TOP_K))
    places = np.argsort(order)
    return {system: [lists[place] for place in places] for system, lists in found.items()}


def evaluate(
    decoder: MultiRouteRetriever,
    fusions: Mapping[str, CalibratedFusion],
    histories: list[np.ndarray],
    public_numbers: np.ndarray,
    *,
    left_out: int,
    beam_width: int,
) -> dict[str, dict[str, float]]:
    """Metrics of every system; the target is the `left_out`-th item from a history's end."""
    targets = np.array([history[-left_out] for history in histories])
    ranked = rankings(decoder, [history[:-left_out] for history in histories], fusions, beam_width=beam_width)
    measured = {system: metrics(ranks_of(targets, lists)) for system, lists in ranked.items()}
    if "text" in ranked:
        shared = [Ranked(_first_of_each(public_numbers[found.item_indices]), found.scores) for found in ranked["text"]]
        measured["text_by_code_string"] = metrics(ranks_of(public_numbers[targets], shared))
    return measured


def run_seed(arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    """Train and measure once; the test targets are looked at after the last choice was made."""
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
    trained, epochs = clock.seconds(), clock.epochs(fitted)
    training = {
        "seed": seed,
        "train_seconds": trained if epochs else None,  # a training that went on after a cut has no time of its own
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
    decoder = MultiRouteRetriever(fitted.model, items, collaborative=sasrec.model)
    numbers = np.unique(public["text"], axis=0, return_inverse=True)[1].ravel()
    result: dict[str, Any] = training | {
        "sasrec": sasrec.settings(),
        "fusions": {name: dataclasses.asdict(fusion) for name, fusion in fusions.items()},
        "validation": evaluate(decoder, fusions, histories, numbers, left_out=2, beam_width=20),
    }
    for width in [] if arguments.validation_only else arguments.beam_widths:
        begun = time.monotonic()
        result[f"test_beam_{width}"] = evaluate(decoder, fusions, histories, numbers, left_out=1, beam_width=width)
        result[f"users_per_second_beam_{width}"] = round(len(histories) / (time.monotonic() - begun), 1)
    return result


def _fusions(
    fitted: FittedRecommender, histories: list[np.ndarray], codes: dict[str, np.ndarray], sasrec: Sasrec
) -> dict[str, CalibratedFusion]:
    size = BATCH_SIZE[fitted.model.t5.device.type]
    decoding: Any = SimpleNamespace(beam_width=20, top_k=TOP_K, batch_size=size)
    found = {
        "two_routes": fit_fusion(fitted.model, histories, codes, config=decoding),
        "three_routes": fit_fusion(fitted.model, histories, codes, config=decoding, sasrec=sasrec),
    }
    return {name: fusion for name, fusion in found.items() if fusion is not None}


class _Clock:
    """Shows how far training is, and remembers when each of its epochs ended."""

    def __init__(self) -> None:
        self.begun = time.monotonic()
        self.steps: dict[int, float] = {}
        self.total = 0

    def seconds(self) -> float:
        return round(time.monotonic() - self.begun, 1)

    def show(self, stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if stage == "recommender":
            self.steps[done], self.total = self.seconds(), total
        _show(stage, done, total, metrics)

    def epochs(self, fitted: FittedRecommender) -> list[float]:
        """Seconds from the start to the end of each epoch's steps; empty for a training that went on after a cut."""
        steps = self.total // fitted.model.config.num_epochs
        ends = [self.steps.get(steps * epoch) for epoch in range(1, len(fitted.log) + 1)]
        return [] if None in ends else [end for end in ends if end is not None]


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if device.startswith("cuda") else device


def _first_of_each(numbers: np.ndarray) -> np.ndarray:
    """The list without repeats, as a decoder of code strings would return it."""
    return numbers[np.sort(np.unique(numbers, return_index=True)[1])]


def _show(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
    if done % 100 == 0 or done == total:
        print(f"{time.strftime('%H:%M:%S')} {stage} {done}/{total} {dict(metrics or {})}", file=sys.stderr, flush=True)


def _settings(text: str) -> dict[str, Any]:
    name, _, value = text.partition("=")
    if name not in PUBLISHED:
        raise argparse.ArgumentTypeError(f"{name!r} is no setting of the recommender: {', '.join(PUBLISHED)}")
    return {name: json.loads(value)}


def main() -> None:
    """Run a variant for each seed and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("variant", choices=VARIANTS)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder that holds amazon-instruments/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--work", type=Path, default=Path(".macrec/benchmarks"), help="folder of the checkpoints")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--beam-widths", type=int, nargs="+", default=[20, 50])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--validation-only", action="store_true", help="for choosing settings: no test target is read")
    parser.add_argument("--training-only", action="store_true", help="for curves: nothing is ranked after the training")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", type=_settings, action="append", default=[], metavar="NAME=JSON")
    arguments = parser.parse_args()
    arguments.set = {name: value for setting in arguments.set for name, value in setting.items()}
    if not (arguments.data / "amazon-instruments").is_dir():
        parser.error(f"{arguments.data / 'amazon-instruments'} is not there; name the folder above it with --data")
    keep_freed_memory()
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(arguments.device == "cpu")
    suffix = "-training" if arguments.training_only else "-validation" if arguments.validation_only else ""
    path = arguments.out / f"instruments-{arguments.variant}{suffix}.json"
    shown = "validation" if arguments.validation_only else f"test_beam_{arguments.beam_widths[0]}"
    runs: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        runs.append(run_seed(arguments, seed))
        for name, figures in runs[-1].get(shown, {}).items():
            print(seed, name, {key: round(value, 4) for key, value in figures.items()}, flush=True)
        _write(path, arguments, runs)  # after each, for who looks on
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
