"""One variant under one seed: pseudo-labels, quantizer, semantic IDs, recommender, lists.

In: a prepared data set and resolved settings. Out: the lists of every route for two inputs of each user: `[:-2]`, whose
target is the validation item, and `[:-1]`, whose target is the test item. Test items are never read here: the
histories are blinded. What is finished is kept, each part by what it depends on: variants with one quantizer share its
IDs, and variants that only decode differently share a training. U users, N items, L levels, R listed items.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.accuracy.collaborative import sasrec_identity, trained_sasrec, wants_vectors
from benchmarks.accuracy.preparation import Prepared
from benchmarks.accuracy.work_folder import Result, code_digest, digest_of, remembered
from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.evaluation.flat_histories import NO_ITEM
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion
from macrec_pipeline.recommender.retrieval.ranking import Ranked
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.progress import Progress
from macrec_pipeline.semantic_ids import assign_semantic_ids, fit_pseudo_labels, fit_quantizer

LIST_LENGTH = 10
# Items at the end of a history that the recommender must not see, and whether it may return what it has seen.
HIDDEN = {"validation": 2, "test": 1}
SETTINGS = {"seen_allowed": False, "seen_excluded": True}


def variant_lists(name: str, prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """Train a variant and rank for every user.

    Args:
        name: the variant's, for the file's name alone.
        prepared: the data set.
        config: the variant's settings; its seed is the run's.
        work: folder of what is finished, and of the checkpoint.

    Returns:
        `<target>/<route>/<setting>` -> int64 [U, R], and how the run came about.
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

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        checkpoint = work / f"training-{digest_of(training)[:16]}.safetensors"
        resumed, begun = checkpoint.is_file(), time.monotonic()
        fitted = _train(prepared, ids, config, checkpoint=checkpoint, progress=progress)
        trained = time.monotonic()
        lists, fusion = _decode(fitted, prepared, ids, config, work=work, progress=progress)
        seconds = {"recommender": trained - begun, "decoding": time.monotonic() - trained}
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

    return remembered(work, f"{name}-{config.seed}", identity, make)


def semantic_ids(prepared: Prepared, config: PipelineConfig, *, work: Path, progress: Progress) -> Result:
    """Unique IDs of both modalities: `text_codes` and `image_codes`, int64 [N, L]; variants may share them."""
    identity = {
        "pseudo_labels": config.pseudo_labels.model_dump(mode="json"),
        "quantizer": config.quantizer.model_dump(mode="json"),
        "runtime": config.runtime.model_dump(mode="json"),
        "seed": config.seed,
        "vectors": prepared.vectors_digest,
        "torch": torch.__version__,
        "code": code_digest("semantic_ids", "runtime"),
    }
    if wants_vectors(config):
        identity["sasrec"] = sasrec_identity(prepared, config)

    def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        known = (
            trained_sasrec(prepared, config, work=work, progress=progress).item_embeddings
            if wants_vectors(config)
            else None
        )
        begun, device = time.monotonic(), prepare_device(config.runtime)
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
            collaborative_vectors=known,
        )
        assigned = assign_semantic_ids(fitted, text, image, device=device, collaborative_vectors=known)
        codes = {"text_codes": assigned.text_codes, "image_codes": assigned.image_codes}
        seconds = round(time.monotonic() - begun, 1)
        return codes, {"seconds": seconds, "collision_rate": assigned.collision_rate}

    return remembered(work, f"ids-{config.seed}", identity, make)


def padded(ranked: Sequence[Ranked]) -> np.ndarray:
    """Lists of one length, int64 [U, R], shorter ones filled up with `NO_ITEM`."""
    lists = np.full((len(ranked), LIST_LENGTH), NO_ITEM, dtype=np.int64)
    for row, found in zip(lists, ranked, strict=True):
        items = found.item_indices[:LIST_LENGTH]
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
    """Every route's lists for both inputs, with seen items allowed and excluded; and the fusion, if it was fitted."""
    codes = {route: ids.arrays[f"{route}_codes"] for route in ("text", "image")}
    decoding, fusion, sasrec = config.decoding, None, None
    if decoding.collaborative_route:
        sasrec = trained_sasrec(prepared, config, work=work, progress=progress).model
    if decoding.fusion == "calibrated":
        fusion = fit_fusion(fitted.model, prepared.blinded, codes, config=decoding, sasrec=sasrec, progress=progress)
    device = fitted.model.t5.device
    items = ItemCodes({route: torch.from_numpy(value).to(device) for route, value in codes.items()})
    decoder = MultiRouteRetriever(fitted.model, items, fusion=fusion, collaborative=sasrec)
    routes = ("fused", *decoder.routes) if len(decoder.routes) > 1 else tuple(decoder.routes)
    lists: dict[str, np.ndarray] = {}
    for target, hidden in HIDDEN.items():
        inputs = [history[:-hidden] for history in prepared.blinded]
        for setting, exclude_seen in SETTINGS.items():
            ranked = decoder.rank(
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
