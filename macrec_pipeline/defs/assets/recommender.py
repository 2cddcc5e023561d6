"""The generative recommender and what it recommends to every test user (MACRec sections 3.3 and 3.4)."""

import logging
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, stage
from macrec_pipeline.defs.presentation import in_words, table_metadata
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.table_conversion import codes_by_modality, sequences_of, training_sequences
from macrec_pipeline.errors import StorageError
from macrec_pipeline.schemas import PREDICTIONS
from macrec_pipeline.storage.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from macrec_pipeline.recommender import FittedRecommender, FittedSasrec, Ranked

logger = logging.getLogger(__name__)

GROUP = "recommender"
CODES_OF = "codes_of"
"""In a manifest's details: what gave the codes their meaning that the model was trained on."""


@dg.asset(
    deps=["histories", "items", "quantizer", "semantic_ids", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "safetensors"},
    code_version="4",
    pool=GPU_POOL,
    description="The trained model, and the bundle that serves it: weights, IDs, quantizer, catalogue, popular items.",
)
def recommender(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Histories and semantic IDs -> a folder with `weights/` and `bundle/`."""
    with stage(context, settings, "recommender") as work:
        quantizer_files, (start, why_not) = _quantizer_files(work), _start(work)
        codebook_size = work.store.manifest("semantic_ids").details["codebook_size"]
        with work.store.scratch("recommender") as scratch:
            fitted = _fit(context, work, scratch, codebook_size=codebook_size, start=start)
            with work.new_folder(details={CODES_OF: _codes_of(work)}) as folder:
                for part in ("weights", "bundle"):
                    (folder / part).mkdir()
                fitted.save(folder / "weights")
                fusion = _fit_fusion(work, fitted, folder / "weights")
                _write_bundle(
                    work,
                    folder / "bundle",
                    weights=folder / "weights",
                    quantizer_files=quantizer_files,
                    codebook_size=codebook_size,
                )
        return _report(work, fitted, {"warm_start": why_not or fitted.warm_start, **fusion})


@dg.asset(
    deps=["histories", "recommender", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "parquet"},
    code_version="3",
    pool=GPU_POOL,
    metadata=table_metadata("predictions"),
    description="The top items of every test user: routes fused, each alone, SASRec; seen items allowed and excluded.",
)
def predictions(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """The bundle and the histories without their last item -> `PREDICTIONS`."""
    from macrec_pipeline.recommender import RecommenderBundle, beam_agreement, predict_test_users
    from macrec_pipeline.runtime.devices import prepare_device

    with stage(context, settings, "predictions") as work:
        device = prepare_device(work.config.runtime)
        bundle = RecommenderBundle.load(work.folder("recommender") / "bundle", device=device)
        users = work.table("histories").filter("tested")
        sasrec = _sasrec(work, device) if work.config.sasrec.enabled else None
        ranked = predict_test_users(
            bundle,
            sequences_of(users),
            top_k=work.config.decoding.top_k,
            sasrec=sasrec.model if sasrec else None,
            progress=work.progress,
        )
        agreement = beam_agreement(bundle, sequences_of(users))
        beams: dict[str, Any] = {
            f"beam_{name}_{route}": value for route, shares in agreement.items() for name, value in shares.items()
        }
        return work.save(
            _prediction_table(ranked, users["user_index"]),
            details={"beam_agreement": agreement} | ({"sasrec": sasrec.settings()} if sasrec else {}),
            users=users.height,
            systems=sorted({s for s, _ in ranked}),
            **beams,
        )


def _fit(
    context: dg.AssetExecutionContext, work: AssetContext, scratch: "Path", *, codebook_size: int, start: "Path | None"
) -> "FittedRecommender":
    """Train here, or on several processes if the settings ask for them."""
    from macrec_pipeline.recommender import FittedRecommender, fit_recommender
    from macrec_pipeline.runtime.devices import prepare_device

    histories, codes = training_sequences(work.table("histories")), codes_by_modality(work.table("semantic_ids"))
    checkpoint = scratch / "checkpoint.safetensors"
    if work.config.runtime.training_processes > 1:
        from macrec_pipeline.defs.torchrun_training import trained_by_several
        from macrec_pipeline.torchrun.jobs import recommender_job

        job = recommender_job(
            histories, codes, codebook_size=codebook_size, config=work.config, checkpoint=checkpoint, start=start
        )
        with trained_by_several(context, work, job, scratch) as (folder, result):
            device = prepare_device(work.config.runtime)
            return FittedRecommender.load(folder, device=device, warm_start=result.warm_start)
    return fit_recommender(
        histories,
        codes.get("text"),
        codes.get("image"),
        codebook_size=codebook_size,
        config=work.config.recommender,
        seed=work.config.seed,
        device=prepare_device(work.config.runtime),
        progress=work.progress,
        checkpoint=checkpoint,
        start=start,
    )


def _fit_fusion(work: AssetContext, fitted: "FittedRecommender", weights: "Path") -> dict[str, Any]:
    """Fit and save how the routes are fused, if the settings ask for it; what was chosen, for the report."""
    from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion, save_fusion

    decoding = work.config.decoding
    if decoding.fusion == "published":
        return {}
    codes, histories = codes_by_modality(work.table("semantic_ids")), training_sequences(work.table("histories"))
    sasrec = _sasrec(work, fitted.model.t5.device).model if decoding.collaborative_route else None
    fusion = fit_fusion(fitted.model, histories, codes, config=decoding, sasrec=sasrec, progress=work.progress)
    if fusion is None:
        return {}
    save_fusion(fusion, weights)
    return {
        "fusion_rule": fusion.rule,
        **{f"fusion_weight_{route}": share for route, share in fusion.weights.items()},
        "fusion_validation_ndcg": fusion.validation_ndcg,
        "fusion_num_users": fusion.num_users,
    }


def _sasrec(work: AssetContext, device: "torch.device") -> "FittedSasrec":
    from macrec_pipeline.recommender import FittedSasrec

    return FittedSasrec.load(work.folder("sasrec"), device=device)


def _start(work: AssetContext) -> tuple["Path | None", str | None]:
    """The weights before, if the settings ask for them and codes mean what they meant; else why there are none."""
    if not work.config.recommender.warm_start:
        return None, None
    problem = "there is no recommender yet"
    if work.store.has("recommender"):
        if work.store.manifest("recommender").details.get(CODES_OF) == _codes_of(work):
            return work.folder("recommender") / "weights", None
        problem = "the semantic IDs were made anew since, so codes mean something else"
    logger.warning("recommender.warm_start is true, but training starts from random weights: %s.", problem)
    return None, problem


def _codes_of(work: AssetContext) -> str:
    """What gives codes their meaning: the digest of the quantizer, or of the table where the IDs are given."""
    manifest = work.store.manifest("semantic_ids")
    return str(manifest.details.get("quantizer", manifest.digest))


def _quantizer_files(work: AssetContext) -> "list[Path]":
    """What gave the items their IDs; none where the IDs are given.

    Raises:
        StorageError: the quantizer that is there is not the one that the IDs were made with.
    """
    made_with = work.store.manifest("semantic_ids").details.get("quantizer")
    if made_with is None:
        return []
    if made_with != work.store.manifest("quantizer").digest:
        raise StorageError(
            f"semantic_ids of {work.dataset} were made with another quantizer ({made_with[:12]}) than the one that is "
            f"there: materialize `semantic_ids` again, or all of it: `macrec run {work.dataset}`."
        )
    return sorted(path for path in work.folder("quantizer").iterdir() if path.name != MANIFEST_FILE)


def _report(work: AssetContext, fitted: "FittedRecommender", fusion: dict[str, Any]) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_training_log

    best = fitted.log[fitted.best_epoch - 1]
    losses = [name for name in ("train_loss", "validation_loss") if name in best]
    return work.report(
        summary=f"best of {len(fitted.log)} epochs: {in_words({name: best[name] for name in ('epoch', *losses)})}",
        epochs=len(fitted.log),
        best_epoch=fitted.best_epoch,
        **{name: value for name, value in best.items() if name != "epoch"},
        **fusion,
        loss_curves=work.plot("losses", plot_training_log(fitted.log, losses)),
    )


def _write_bundle(
    work: AssetContext, folder: "Path", *, weights: "Path", quantizer_files: "list[Path]", codebook_size: int
) -> None:
    from macrec_pipeline.recommender import RecommenderBundle

    items, codes = work.table("items"), codes_by_modality(work.table("semantic_ids"))
    training = [sequence[:-2] for sequence in training_sequences(work.table("histories"))]
    collaborative = work.config.decoding.collaborative_route
    inputs = ("histories", "items", "quantizer", "semantic_ids", *(("sasrec",) if collaborative else ()))
    RecommenderBundle.write(
        folder,
        recommender_folder=weights,
        sasrec_folder=work.folder("sasrec") if collaborative else None,
        quantizer_files=quantizer_files,
        item_ids=items["item_id"].to_list(),
        popularity=np.bincount(np.concatenate(training), minlength=items.height).astype(np.int64),
        text_codes=codes.get("text"),
        image_codes=codes.get("image"),
        codebook_size=codebook_size,
        decoding=work.config.decoding.model_dump(mode="json"),
        catalogue=items.select("title", "image_path", "categories").to_dicts(),
        provenance={
            "dataset": work.dataset,
            "config_digest": work.config.digest(),
            "seed": work.config.seed,
            "inputs": {name: work.store.manifest(name).digest for name in inputs},
        },
    )


def _prediction_table(ranked: "Mapping[tuple[str, bool], list[Ranked]]", users: pl.Series) -> pl.DataFrame:
    rows = [_prediction_rows(system, exclude, users, answers) for (system, exclude), answers in ranked.items()]
    return pl.concat(rows).sort("system", "exclude_seen", "user_index")


def _prediction_rows(system: str, exclude_seen: bool, users: pl.Series, answers: "list[Ranked]") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "system": [system] * len(answers),
            "exclude_seen": [exclude_seen] * len(answers),
            "user_index": users,
            "item_indices": [answer.item_indices for answer in answers],
            "scores": [answer.scores for answer in answers],
        },
        schema=PREDICTIONS.columns,
    )
