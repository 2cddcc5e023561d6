"""Training of one variant with one seed: pseudo-labels, quantizer, semantic IDs, recommender, ranked lists.

The input is a prepared data set and resolved settings. The output is the lists of every route for two inputs of each
user: `[:-2]`, whose target is the validation item, and `[:-1]`, whose target is the test item. Test items are never
read here, because the histories are blinded. Each part is cached by what it depends on: variants with the same
quantizer share its semantic IDs, and variants that only decode differently share a training.

Shapes (docs/notation.md): L levels, N items, U users.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.collaborative import quantizer_uses_sasrec, sasrec_identity, trained_sasrec
from benchmarks.accuracy.preparation import Prepared
from benchmarks.accuracy.work_folder import Result, cached_result, code_digest, digest_of
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.evaluation.flat_histories import NO_ITEM
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, Ranked
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.semantic_ids import assign_semantic_ids, fit_pseudo_labels, fit_quantizer

LIST_LENGTH = 10
# How many items at the end of a history are hidden, and whether seen items are excluded.
HIDDEN = {"validation": 2, "test": 1}
SETTINGS = {"seen_allowed": False, "seen_excluded": True}


def variant_lists(name: str, prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """Train a variant, and rank the catalogue for every user.

    Args:
        name: of the variant; only used in the name of the file.
        prepared: the data set.
        config: the variant's settings, and the seed.
        work: folder of finished results and of the checkpoint.

    Returns:
        Lists `<target>/<route>/<setting>`, int64 [U, LIST_LENGTH], and facts about the run.
    """
    ids = semantic_ids(prepared, config, work=work, progress=progress)
    training = {
        "ids": ids.digest,
        "recommender": config.recommender.model_dump(mode="json"),
        "runtime": config.runtime.model_dump(mode="json"),
        "seed": config.seed,
        "histories": prepared.blinded_digest,
        "torch": torch.__version__,
        "code": code_digest("recommender", "runtime"),
    }
    identity = {"training": training, "decoding": config.decoding.model_dump(mode="json")}
    if config.decoding.collaborative_route:
        identity["sasrec"] = sasrec_identity(prepared, config)

    def compute() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        checkpoint = work / f"training-{digest_of(training)[:16]}.safetensors"
        resumed, start = checkpoint.is_file(), time.monotonic()
        fitted = _train(prepared, ids, config, checkpoint=checkpoint, progress=progress)
        trained = time.monotonic()
        lists, fusion = _decode(fitted, prepared, ids, config, work=work, progress=progress)
        seconds = {"recommender": trained - start, "decoding": time.monotonic() - trained}
        return lists, {
            "seconds": {
                "semantic_ids": ids.facts["seconds"],
                **{key: round(value, 1) for key, value in seconds.items()},
            },
            "resumed": resumed,
            "collision_rate": ids.facts["collision_rate"],
            "epochs": len(fitted.log),
            "best_epoch": fitted.best_epoch,
            **fusion,
            "code": digest_of([code_digest("semantic_ids"), code_digest("recommender", "runtime")]),
        }

    return cached_result(work, f"{name}-{config.seed}", identity, compute)


def semantic_ids(prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """Assign unique IDs in both modalities, `text_codes` and `image_codes`, int64 [N, L]; variants may share them."""
    identity = {
        "pseudo_labels": config.pseudo_labels.model_dump(mode="json"),
        "quantizer": config.quantizer.model_dump(mode="json"),
        "runtime": config.runtime.model_dump(mode="json"),
        "seed": config.seed,
        "vectors": prepared.vectors_digest,
        "torch": torch.__version__,
        "code": code_digest("semantic_ids", "runtime"),
    }
    if quantizer_uses_sasrec(config):
        identity["sasrec"] = sasrec_identity(prepared, config)

    def compute() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        sasrec_vectors = (
            trained_sasrec(prepared, config, work=work, progress=progress).item_embeddings
            if quantizer_uses_sasrec(config)
            else None
        )
        start, device = time.monotonic(), prepare_device(config.runtime)
        text, image = prepared.text_vectors, prepared.image_vectors
        fitted = fit_quantizer(
            text,
            image,
            fit_pseudo_labels(text, config.pseudo_labels, seed=config.seed),
            fit_pseudo_labels(image, config.pseudo_labels, seed=config.seed),
            config.quantizer,
            seed=config.seed,
            device=device,
            progress=progress,
            collaborative_vectors=sasrec_vectors,
        )
        assigned = assign_semantic_ids(fitted, text, image, device=device, collaborative_vectors=sasrec_vectors)
        codes = {"text_codes": assigned.text_codes, "image_codes": assigned.image_codes}
        seconds = round(time.monotonic() - start, 1)
        return codes, {"seconds": seconds, "collision_rate": assigned.collision_rate}

    return cached_result(work, f"ids-{config.seed}", identity, compute)


def padded(ranked: Sequence[Ranked]) -> np.ndarray:
    """Bring lists to equal length, int64 [U, LIST_LENGTH]; shorter ones are padded with `NO_ITEM`."""
    lists = np.full((len(ranked), LIST_LENGTH), NO_ITEM, dtype=np.int64)
    for row, of_user in zip(lists, ranked, strict=True):
        items = of_user.item_indices[:LIST_LENGTH]
        row[: len(items)] = items
    return lists


def _train(
    prepared: Prepared, ids: Result, config: PipelineConfig, *, checkpoint: Path, progress: Progress
) -> FittedRecommender:
    return fit_recommender(
        prepared.blinded,
        ids.arrays["text_codes"],
        ids.arrays["image_codes"],
        codebook_size=config.quantizer.codebook_size,
        config=config.recommender,
        seed=config.seed,
        device=prepare_device(config.runtime),
        progress=progress,
        checkpoint=checkpoint,
    )


def _decode(
    fitted: FittedRecommender,
    prepared: Prepared,
    ids: Result,
    config: PipelineConfig,
    *,
    work: Path,
    progress: Progress,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Rank by every route for both inputs, with and without seen items; also return the fusion if it was fitted."""
    codes = {route: ids.arrays[f"{route}_codes"] for route in ("text", "image")}
    decoding, fusion, sasrec = config.decoding, None, None
    if decoding.collaborative_route:
        sasrec = trained_sasrec(prepared, config, work=work, progress=progress).model
    if decoding.fusion == "calibrated":
        fusion = fit_fusion(fitted.model, prepared.blinded, codes, config=decoding, sasrec=sasrec, progress=progress)
    device = fitted.model.t5.device
    items = ItemCodes({route: torch.from_numpy(value).to(device) for route, value in codes.items()})
    retriever = MultiRouteRetriever(fitted.model, items, fusion=fusion, sasrec=sasrec)
    routes = ("fused", *retriever.routes) if len(retriever.routes) > 1 else tuple(retriever.routes)
    lists: dict[str, np.ndarray] = {}
    for target, hidden in HIDDEN.items():
        inputs = [history[:-hidden] for history in prepared.blinded]
        for setting, exclude_seen in SETTINGS.items():
            ranked = retriever.rank(
                inputs,
                routes=routes,
                top_k=min(decoding.top_k, prepared.num_items),
                beam_width=decoding.beam_width,
                batch_size=decoding.batch_size,
                exclude_seen=exclude_seen,
                progress=progress,
            )
            lists |= {f"{target}/{route}/{setting}": padded(ranked[route]) for route in routes}
    return lists, {} if fusion is None else {"fusion": asdict(fusion)}
