"""Semantic IDs: pseudo-labels, the cross-modal quantizer, and the table of unique IDs (MACRec section 3.2).

With `identity.mode` append or auto, the quantizer and the ID table continue from their previous versions where they
can (`ids/continuity.py`).

Shapes (docs/notation.md): N items, D width of an embedding.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.config import ROUTES, Route
from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.ids import continuity
from macrec_pipeline.defs.ids.continuity import Decision
from macrec_pipeline.defs.ids.quality import flatten_quality_report, measure_quality
from macrec_pipeline.defs.ids.shards import sharded_quantize
from macrec_pipeline.defs.ids.tables import anchor_vectors, retired_table, sasrec_anchors, with_all_columns
from macrec_pipeline.defs.ids.vectors import complete_vectors, item_vectors, read_embeddings
from macrec_pipeline.defs.manifest_keys import GIVEN
from macrec_pipeline.defs.presentation import format_metrics, table_metadata
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.schemas import PSEUDO_LABELS, SEMANTIC_IDS
from macrec_pipeline.storage.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids import AssignedIds, FittedQuantizer

GROUP = "semantic_ids"
QUANTIZER_IS_KEPT = "identity.mode is append, and the quantizer that is kept needs no pseudo-labels"


@dg.asset(
    deps=["text_embeddings", "image_embeddings"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"faiss", "parquet"},
    code_version="2",
    metadata=table_metadata("pseudo_labels"),
    description="The k-means cluster of each item in each modality. The clusters of one modality choose the positive "
    "pairs that the other modality's quantizer trains on. Look at `largest_text_cluster` and `largest_image_cluster`: "
    "one huge cluster makes poor pairs.",
)
def pseudo_labels(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Cluster the embeddings to `PSEUDO_LABELS`."""
    from macrec_pipeline.runtime.devices import prepare_device

    with open_asset(context, settings, "pseudo_labels") as asset:
        if asset.has_given_ids:
            return asset.skip(PSEUDO_LABELS.empty())
        if continuity.will_keep_quantizer(asset):
            return asset.skip(PSEUDO_LABELS.empty(), QUANTIZER_IS_KEPT)
        prepare_device(asset.config.runtime)
        tables = read_embeddings(asset)
        labels = _fit_clusters(asset, complete_vectors(tables))
        clusters = {f"{modality}_cluster": values for modality, values in labels.items()}
        metadata: dict[str, Any] = {f"{name}s": np.unique(values).size for name, values in clusters.items()}
        metadata |= {f"largest_{name}": int(np.bincount(values).max()) for name, values in clusters.items()}
        table = next(iter(tables.values())).select("item_index", "item_id").with_columns(**clusters)
        return asset.save_table(with_all_columns(table, PSEUDO_LABELS), **metadata)


@dg.asset(
    deps=["items", "text_embeddings", "image_embeddings", "pseudo_labels", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "safetensors"},
    code_version="4",
    pool=GPU_POOL,
    description="One residual quantizer per modality: its codebooks and its encoder, fitted to the embeddings by the "
    "method in `quantizer.method`. Look at the collision rates, which are before resolution, and at the dead codes.",
)
def quantizer(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Fit a quantizer to embeddings and pseudo-labels, or keep the previous one if IDs are appended."""
    from macrec_pipeline.runtime.devices import prepare_device

    with open_asset(context, settings, "quantizer") as asset:
        if asset.has_given_ids:
            return _skip_quantizer(asset)
        labels, vectors = asset.read_table("pseudo_labels"), item_vectors(asset)
        device, anchors = prepare_device(asset.config.runtime), sasrec_anchors(asset)
        decision = continuity.decide(asset, vectors, device)
        if decision.append:
            return _keep_quantizer(asset, decision, device)
        if labels.height:
            clusters = {modality: labels[f"{modality}_cluster"].to_numpy(writable=True) for modality in vectors}
        else:  # the last run of `pseudo_labels` expected to keep the quantizer and skipped them
            clusters = _fit_clusters(asset, vectors)
        collaborative = anchors.for_items(asset.read_table("items")["item_id"].to_list(), vectors) if anchors else None
        fitted = _fit_quantizer(context, asset, vectors, clusters, device=device, collaborative_vectors=collaborative)
        with asset.new_folder(details=decision.as_details()) as folder:
            fitted.save(folder)
            if anchors and fitted.collaborative_dim:
                anchors.save(folder)
        return _report_quantizer(asset, fitted)


@dg.asset(
    deps=["items", "histories", "text_embeddings", "image_embeddings", "quantizer", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "parquet"},
    code_version="4",
    metadata=table_metadata("semantic_ids"),
    description="The semantic ID of each item in each modality. The quantizer gives the codes, collisions are resolved "
    "so that every ID is unique, and the items whose ID was changed for that are flagged. Look at `identity_reason`, "
    "which says whether earlier IDs were kept, and at the collision rates and perplexities.",
)
def semantic_ids(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Assign `SEMANTIC_IDS` with the quantizer, or read the ones that the data set provides."""
    with open_asset(context, settings, "semantic_ids") as asset:
        if asset.has_given_ids:
            outcome = _read_given_ids(asset)
        else:
            with asset.store.scratch("semantic_ids") as scratch:
                outcome = _assign_ids(asset, scratch)
        assigned = outcome.assigned
        table = (
            asset.read_table("items")
            .select("item_index", "item_id")
            .with_columns(
                *(pl.Series(f"{modality}_codes", codes.tolist()) for modality, codes in assigned.codes.items()),
                *(pl.Series(f"{modality}_moved", moved) for modality, moved in assigned.moved.items()),
            )
        )
        return asset.save_table(
            with_all_columns(table, SEMANTIC_IDS),
            details={
                "codebook_size": assigned.codebook_size,
                "collision_rate": assigned.collision_rate,
                **outcome.details,
            },
            beside=outcome.beside,
            **_describe_ids(assigned),
            **outcome.metadata,
            **_plot_code_usage(asset, assigned),
        )


@dataclass(frozen=True)
class _IdOutcome:
    """Assigned IDs and what is stored with them.

    Attributes:
        assigned: the IDs.
        details: for the manifest.
        metadata: for Dagster.
        beside: tables that are stored next to the ID table: the retired IDs.
    """

    assigned: "AssignedIds"
    details: dict[str, Any]
    metadata: dict[str, Any]
    beside: dict[str, pl.DataFrame] = field(default_factory=dict)


def _fit_quantizer(
    context: dg.AssetExecutionContext,
    asset: AssetContext,
    vectors: dict[str, np.ndarray],
    clusters: dict[str, np.ndarray],
    *,
    device: "torch.device",
    collaborative_vectors: np.ndarray | None,
) -> "FittedQuantizer":
    """Fit in this process, or in several if the settings say so and the method trains by gradient descent."""
    from macrec_pipeline.semantic_ids import FittedQuantizer, fit_quantizer

    if asset.config.runtime.training_processes > 1 and asset.config.quantizer.method != "residual_k_means":
        from macrec_pipeline.defs.torchrun_training import train_with_torchrun
        from macrec_pipeline.torchrun.jobs import quantizer_job

        job = quantizer_job(vectors, clusters, config=asset.config, collaborative_vectors=collaborative_vectors)
        with (
            asset.store.scratch("quantizer") as scratch,
            train_with_torchrun(context, asset, job, scratch) as (folder, _),
        ):
            return FittedQuantizer.load(folder, device=device)
    return fit_quantizer(
        vectors.get("text"),
        vectors.get("image"),
        clusters.get("text"),
        clusters.get("image"),
        asset.config.quantizer,
        seed=asset.config.seed,
        device=device,
        progress=asset.progress,
        collaborative_vectors=collaborative_vectors,
    )


def _keep_quantizer(asset: AssetContext, decision: Decision, device: "torch.device") -> dg.MaterializeResult[Any]:
    """Store the previous quantizer as a new version for the present catalogue."""
    from macrec_pipeline.semantic_ids import FittedQuantizer

    previous = asset.folder("quantizer")
    fitted = FittedQuantizer.load(previous, device=device)
    with asset.new_folder(details=decision.as_details()) as folder:
        shutil.copytree(previous, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_FILE))
    return asset.report(summary=f"kept: {decision.reason}", kept=decision.reason, epochs=len(fitted.log))


def _report_quantizer(asset: AssetContext, fitted: "FittedQuantizer") -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_training_log

    modalities = list(fitted.modules)
    collision_rates, dead_codes = (
        [f"{modality}_{figure}" for modality in modalities] for figure in ("collision_rate", "dead_codes")
    )
    last = fitted.log[-1]
    level_losses = {
        f"{modality}_level_losses": [name for name in last if name.startswith(f"{modality}_level_loss_")]
        for modality in modalities
    }
    return asset.report(
        summary=format_metrics({name: last[name] for name in ("loss", *collision_rates, *dead_codes)}),
        **last,
        **{f"best_{modality}_epoch": fitted.best_epoch[modality] for modality in modalities},
        loss_curve=asset.log_plot("loss", plot_training_log(fitted.log, ["loss"])),
        **{name: asset.log_plot(name, plot_training_log(fitted.log, keys)) for name, keys in level_losses.items()},
        dead_codes=asset.log_plot("dead_codes", plot_training_log(fitted.log, dead_codes)),
        collision_rates=asset.log_plot("collision_rates", plot_training_log(fitted.log, collision_rates)),
    )


def _skip_quantizer(asset: AssetContext) -> dg.MaterializeResult[Any]:
    with asset.new_folder() as folder:
        (folder / "given.json").write_text(json.dumps({"skipped": GIVEN}) + "\n", encoding="utf-8")
    return asset.report(summary=f"skipped, {GIVEN}", skipped=GIVEN)


def _read_given_ids(asset: AssetContext) -> _IdOutcome:
    from macrec_pipeline.data.readers.precomputed import precomputed_semantic_ids
    from macrec_pipeline.semantic_ids import resolve_given_ids

    provided = precomputed_semantic_ids(asset.spec, asset.data_folder, asset.read_table("items"))
    assert provided is not None, "only called if the data set provides its IDs"
    given: dict[Route, np.ndarray | None] = {"text": provided.text_codes, "image": provided.image_codes}
    without_ids = [modality for modality in asset.config.routes or () if given[modality] is None]
    if without_ids:
        raise ConfigError(
            f"routes names {without_ids[0]}, but {asset.dataset} has no {without_ids[0]} semantic IDs. Remove the "
            f"setting `routes`, or name the file of these IDs as source.{without_ids[0]}_index."
        )
    modalities = asset.config.routes or ROUTES
    assigned = resolve_given_ids(
        given["text"] if "text" in modalities else None,
        given["image"] if "image" in modalities else None,
        codebook_size=provided.codebook_size,
    )
    report = measure_quality(asset, assigned)
    return _IdOutcome(assigned, {"quality": report}, flatten_quality_report(report))


def _assign_ids(asset: AssetContext, scratch: Path) -> _IdOutcome:
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.semantic_ids import FittedQuantizer, assign_semantic_ids

    device, vectors = prepare_device(asset.config.runtime.for_shards()), item_vectors(asset)
    quantizer = FittedQuantizer.load(asset.folder("quantizer"), device=device)
    decision = continuity.decision_for_ids(asset)
    quantize_modality = sharded_quantize(asset, quantizer, scratch, device=device)
    details = continuity.provenance(asset) | decision.as_details()
    metadata: dict[str, Any] = {
        "identity": "append" if decision.append else "new",
        "identity_reason": decision.reason,
    }
    if not decision.append:
        collaborative = anchor_vectors(asset, quantizer, vectors)
        assigned = assign_semantic_ids(
            quantizer,
            vectors.get("text"),
            vectors.get("image"),
            device=device,
            collaborative_vectors=collaborative,
            quantize_modality=quantize_modality,
        )
        report = measure_quality(asset, assigned, quantizer=quantizer, vectors=vectors)
        return _IdOutcome(assigned, details | {"quality": report}, metadata | flatten_quality_report(report))
    appended = continuity.append_ids(asset, quantizer, vectors, device, quantize_modality)
    report = measure_quality(asset, appended.assigned, quantizer=quantizer, vectors=vectors, drift=appended.drift)
    retired = retired_table(appended.retired)
    metadata |= {"new_items": int(appended.is_new.sum()), "returned_items": appended.num_returned}
    metadata |= {"retired_ids": retired.height, **flatten_quality_report(report)}
    return _IdOutcome(appended.assigned, details | {"quality": report}, metadata, {"retired_ids": retired})


def _fit_clusters(asset: AssetContext, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from macrec_pipeline.semantic_ids import fit_pseudo_labels

    config, seed = asset.config.pseudo_labels, asset.config.seed
    return {modality: fit_pseudo_labels(matrix, config, seed=seed) for modality, matrix in vectors.items()}


def _describe_ids(assigned: "AssignedIds") -> dict[str, Any]:
    sizes = {"levels": next(iter(assigned.codes.values())).shape[1], "codebook_size": assigned.codebook_size}
    return sizes | {f"{modality}_moved": int(moved.sum()) for modality, moved in assigned.moved.items()}


def _plot_code_usage(asset: AssetContext, assigned: "AssignedIds") -> dict[str, Any]:
    from macrec_pipeline.evaluation.plots import plot_code_usage
    from macrec_pipeline.semantic_ids import code_usage

    usage = {
        f"{modality}_code_usage": code_usage(codes, codebook_size=assigned.codebook_size)
        for modality, codes in assigned.codes.items()
    }
    return {name: asset.log_plot(name, plot_code_usage(counts)) for name, counts in usage.items()}
