"""The generative recommender, and its recommendations for every test user (MACRec sections 3.3 and 3.4)."""

import logging
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.changed_data import changed_share, describe_data
from macrec_pipeline.defs.manifest_keys import CODES_OF, TRAINED_ON, WARM_STARTED
from macrec_pipeline.defs.presentation import format_metrics, table_metadata
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.table_conversion import codes_by_modality, item_sequences, training_sequences
from macrec_pipeline.defs.unlisted_items import evaluation_histories, unlisted_items
from macrec_pipeline.errors import StorageError
from macrec_pipeline.schemas import PREDICTIONS
from macrec_pipeline.storage import vectors_of
from macrec_pipeline.storage.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import torch

    from macrec_pipeline.recommender import FittedRecommender, FittedSasrec, Ranked

logger = logging.getLogger(__name__)

GROUP = "recommender"


@dg.asset(
    deps=["histories", "items", "quantizer", "semantic_ids", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "safetensors"},
    code_version="4",
    pool=GPU_POOL,
    description="The trained recommender in `weights/`, and in `bundle/` everything that serving it needs: weights, "
    "semantic IDs, quantizer, catalogue and popular items. It is trained on the histories, written as semantic IDs. "
    "Look at `best_epoch` and the loss curves.",
)
def recommender(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Train the recommender and write its bundle."""
    with open_asset(context, settings, "recommender") as asset:
        quantizer_files, (start, cold_start_reason) = stored_quantizer_files(asset), _starting_weights(asset)
        codebook_size = asset.store.manifest("semantic_ids").details["codebook_size"]
        data = describe_data(asset.read_table("histories"), num_items=asset.read_table("items").height)
        with asset.store.scratch("recommender") as scratch:
            fitted = _fit_recommender(context, asset, scratch, codebook_size=codebook_size, start=start)
            details = {
                CODES_OF: _origin_of_codes(asset),
                TRAINED_ON: data,
                WARM_STARTED: fitted.warm_start == "taken over",
            }
            with asset.new_folder(details=details) as folder:
                for part in ("weights", "bundle"):
                    (folder / part).mkdir()
                fitted.save(folder / "weights")
                fusion = _fit_fusion(asset, fitted, folder / "weights")
                collaborative = asset.config.decoding.collaborative_route
                inputs = ("histories", "items", "quantizer", "semantic_ids", *(("sasrec",) if collaborative else ()))
                write_serving_bundle(
                    asset,
                    folder / "bundle",
                    weights=folder / "weights",
                    sasrec=asset.folder("sasrec") if collaborative else None,
                    quantizer_files=quantizer_files,
                    codebook_size=codebook_size,
                    learned=[sequence[:-2] for sequence in training_sequences(asset.read_table("histories"))],
                    inputs=inputs,
                )
        start_figures = {
            "warm_start": cold_start_reason or fitted.warm_start,
            "num_epochs": fitted.settings["num_epochs"],
        }
        return _report_recommender(asset, fitted, {**start_figures, **fusion})


@dg.asset(
    deps=["histories", "items", "recommender", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "parquet"},
    code_version="3",
    pool=GPU_POOL,
    metadata=table_metadata("predictions"),
    description="The top items for every test user, from the history without its last item. Each system has its own "
    "rows: the fused routes, each route alone, and SASRec, each with seen items allowed and excluded. Look at the beam "
    "figures: they say how often beam search found the items that exact scoring finds.",
)
def predictions(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Recommend with the bundle for every test user, to `PREDICTIONS`."""
    from macrec_pipeline.recommender import RecommenderBundle, beam_agreement, predict_test_users
    from macrec_pipeline.runtime.devices import prepare_device

    with open_asset(context, settings, "predictions") as asset:
        device = prepare_device(asset.config.runtime)
        bundle = RecommenderBundle.load(asset.folder("recommender") / "bundle", device=device)
        users = evaluation_histories(asset).filter("tested")
        sasrec = _load_sasrec(asset, device) if asset.config.sasrec.enabled else None
        ranked = predict_test_users(
            bundle,
            item_sequences(users),
            top_k=asset.config.decoding.top_k,
            sasrec=sasrec.model if sasrec else None,
            progress=asset.progress,
        )
        agreement = beam_agreement(bundle, item_sequences(users))
        beam_figures: dict[str, Any] = {
            f"beam_{name}_{route}": value for route, shares in agreement.items() for name, value in shares.items()
        }
        return asset.save_table(
            _prediction_table(ranked, users["user_index"]),
            details={"beam_agreement": agreement} | ({"sasrec": sasrec.settings()} if sasrec else {}),
            users=users.height,
            systems=sorted({system for system, _ in ranked}),
            **beam_figures,
        )


def _fit_recommender(
    context: dg.AssetExecutionContext,
    asset: AssetContext,
    scratch: "Path",
    *,
    codebook_size: int,
    start: "Path | None",
) -> "FittedRecommender":
    """Train in this process, or in several if the settings say so."""
    from macrec_pipeline.recommender import FittedRecommender, fit_recommender
    from macrec_pipeline.runtime.devices import prepare_device

    histories = training_sequences(asset.read_table("histories"))
    codes = codes_by_modality(asset.read_table("semantic_ids"))
    checkpoint = scratch / "checkpoint.safetensors"
    continued = _continued_settings(asset) if start else None
    if asset.config.runtime.training_processes > 1:
        from macrec_pipeline.defs.torchrun_training import train_with_torchrun
        from macrec_pipeline.torchrun.jobs import recommender_job

        job = recommender_job(
            histories,
            codes,
            codebook_size=codebook_size,
            config=asset.config,
            checkpoint=checkpoint,
            start=start,
            continued=continued,
        )
        with train_with_torchrun(context, asset, job, scratch) as (folder, result):
            device = prepare_device(asset.config.runtime)
            return FittedRecommender.load(folder, device=device, warm_start=result.warm_start)
    return fit_recommender(
        histories,
        codes.get("text"),
        codes.get("image"),
        codebook_size=codebook_size,
        config=asset.config.recommender,
        seed=asset.config.seed,
        device=prepare_device(asset.config.runtime),
        progress=asset.progress,
        checkpoint=checkpoint,
        start=start,
        continued=continued,
    )


def _continued_settings(asset: AssetContext) -> RecommenderConfig:
    """Return the settings of a training that starts from the previous weights; they follow how much is new."""
    share = changed_share(
        asset.read_table("histories"),
        num_items=asset.read_table("items").height,
        before=asset.store.manifest("recommender").details.get(TRAINED_ON),
    )
    return asset.config.continuation.of_recommender(asset.config.recommender, changed_share=share)


def _fit_fusion(asset: AssetContext, fitted: "FittedRecommender", weights: "Path") -> dict[str, Any]:
    """Fit and save how the routes are fused, if the settings say so; return the choice as metadata."""
    from macrec_pipeline.recommender.retrieval.fusion_fitting import fit_fusion, save_fusion

    decoding = asset.config.decoding
    if decoding.fusion == "published":
        return {}
    codes = codes_by_modality(asset.read_table("semantic_ids"))
    histories = training_sequences(asset.read_table("histories"))
    sasrec = _load_sasrec(asset, fitted.model.t5.device).model if decoding.collaborative_route else None
    fusion = fit_fusion(fitted.model, histories, codes, config=decoding, sasrec=sasrec, progress=asset.progress)
    if fusion is None:
        return {}
    save_fusion(fusion, weights)
    return {
        "fusion_rule": fusion.rule,
        **{f"fusion_weight_{route}": weight for route, weight in fusion.weights.items()},
        "fusion_validation_ndcg": fusion.validation_ndcg,
        "fusion_num_users": fusion.num_users,
    }


def _load_sasrec(asset: AssetContext, device: "torch.device") -> "FittedSasrec":
    from macrec_pipeline.recommender import FittedSasrec

    return FittedSasrec.load(asset.folder("sasrec"), device=device)


def _starting_weights(asset: AssetContext) -> tuple["Path | None", str | None]:
    """Return the previous weights for a warm start, or the reason why the settings' request for one cannot be met.

    Weights are reused only if codes still mean what they meant when those weights were trained.
    """
    if not asset.config.recommender.warm_start:
        return None, None
    reason = "there is no recommender yet"
    if asset.store.has("recommender"):
        if asset.store.manifest("recommender").details.get(CODES_OF) == _origin_of_codes(asset):
            return asset.folder("recommender") / "weights", None
        reason = "the semantic IDs were assigned from scratch since, so their codes have a new meaning"
    logger.warning("recommender.warm_start is true, but training starts from random weights: %s.", reason)
    return None, reason


def _origin_of_codes(asset: AssetContext) -> str:
    """Return the digest of what defines the codes: the quantizer, or the ID table if the data set provides it."""
    manifest = asset.store.manifest("semantic_ids")
    return str(manifest.details.get("quantizer", manifest.digest))


def stored_quantizer_files(asset: AssetContext) -> "list[Path]":
    """Return the files of the quantizer that assigned the semantic IDs; none if the data set provides the IDs.

    Raises:
        StorageError: the stored quantizer is not the one that assigned the IDs.
    """
    used_quantizer = asset.store.manifest("semantic_ids").details.get("quantizer")
    if used_quantizer is None:
        return []
    stored_quantizer = asset.store.manifest("quantizer").digest
    if used_quantizer != stored_quantizer:
        raise StorageError(
            f"semantic_ids of {asset.dataset} were made with another quantizer ({used_quantizer[:12]}) than the stored "
            f"one ({stored_quantizer[:12]}). Materialize `semantic_ids` again, or everything with `macrec run "
            f"{asset.dataset}`."
        )
    return sorted(path for path in asset.folder("quantizer").iterdir() if path.name != MANIFEST_FILE)


def _report_recommender(
    asset: AssetContext, fitted: "FittedRecommender", metadata: dict[str, Any]
) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_training_log

    best = fitted.log[fitted.best_epoch - 1]
    losses = [name for name in ("train_loss", "validation_loss") if name in best]
    best_losses = format_metrics({name: best[name] for name in ("epoch", *losses)})
    return asset.report(
        summary=f"best of {len(fitted.log)} epochs: {best_losses}",
        epochs=len(fitted.log),
        best_epoch=fitted.best_epoch,
        **{name: value for name, value in best.items() if name != "epoch"},
        **metadata,
        loss_curves=asset.log_plot("losses", plot_training_log(fitted.log, losses)),
    )


def write_serving_bundle(
    asset: AssetContext,
    folder: "Path",
    *,
    weights: "Path",
    sasrec: "Path | None",
    quantizer_files: "list[Path]",
    codebook_size: int,
    learned: "list[np.ndarray]",
    inputs: "Sequence[str]",
    provenance: "Mapping[str, Any] | None" = None,
    codes: "Mapping[str, np.ndarray] | None" = None,
    decoding: "Mapping[str, Any] | None" = None,
) -> None:
    """Write a bundle of the data set's catalogue and semantic IDs.

    Args:
        asset: the asset that the bundle is part of.
        folder: where to write; existing and empty.
        weights: what `FittedRecommender.save` and `save_fusion` wrote.
        sasrec: what `FittedSasrec.save` wrote; None without a collaborative route.
        quantizer_files: the result of `stored_quantizer_files`.
        codebook_size: codes per level.
        learned: the sequences that the model was trained on, int64 [T] item indices each; they count for popularity.
        inputs: assets whose digests are stored in the bundle.
        provenance: further entries of the bundle's `provenance`.
        codes: modality -> int64 [N, L]; None: those in `semantic_ids`.
        decoding: fields of `DecodingConfig`; None: today's settings.
    """
    from macrec_pipeline.recommender import RecommenderBundle

    items = asset.read_table("items")
    codes = codes_by_modality(asset.read_table("semantic_ids")) if codes is None else codes
    decoding = asset.config.decoding.model_dump(mode="json") if decoding is None else decoding
    RecommenderBundle.write(
        folder,
        recommender_folder=weights,
        sasrec_folder=sasrec,
        quantizer_files=quantizer_files,
        item_ids=items["item_id"].to_list(),
        popularity=np.bincount(np.concatenate(learned), minlength=items.height).astype(np.int64),
        text_codes=codes.get("text"),
        image_codes=codes.get("image"),
        codebook_size=codebook_size,
        decoding=decoding,
        # the champion's refit keeps the champion's decoding, whatever today's settings say
        embeddings=_stored_embeddings(asset, codes) if decoding.get("store_embeddings", False) else None,
        catalogue=items.select(
            "title", "image_path", "categories", listed=~pl.col("item_index").is_in(unlisted_items(asset).tolist())
        ).to_dicts(),
        provenance={
            "dataset": asset.dataset,
            # The refit changes nothing about the evaluated bundle, so its settings must not change its bytes either.
            "config_digest": asset.config.digest(without=("refit",)),
            "seed": asset.config.seed,
            "inputs": {name: asset.store.manifest(name).digest for name in inputs},
            **(provenance or {}),
        },
    )


def _stored_embeddings(asset: AssetContext, modalities: "Iterable[str]") -> "dict[str, np.ndarray]":
    """Read the items' vectors of some modalities, float32 [N, D] each."""
    return {modality: vectors_of(asset.read_table(f"{modality}_embeddings")) for modality in modalities}


def _prediction_table(ranked: "Mapping[tuple[str, bool], list[Ranked]]", users: pl.Series) -> pl.DataFrame:
    parts = [
        _system_predictions(system, exclude_seen, users, rankings)
        for (system, exclude_seen), rankings in ranked.items()
    ]
    return pl.concat(parts).sort("system", "exclude_seen", "user_index")


def _system_predictions(system: str, exclude_seen: bool, users: pl.Series, rankings: "list[Ranked]") -> pl.DataFrame:
    return pl.DataFrame(
        {
            "system": [system] * len(rankings),
            "exclude_seen": [exclude_seen] * len(rankings),
            "user_index": users,
            "item_indices": [ranking.item_indices for ranking in rankings],
            "scores": [ranking.scores for ranking in rankings],
        },
        schema=PREDICTIONS.columns,
    )
