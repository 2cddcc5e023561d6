"""Semantic IDs: pseudo-labels, the cross-modal quantizer, and the table of unique IDs (MACRec section 3.2).

With `identity.mode` append or auto the quantizer and the table go on from their own versions before (`identity.py`).
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

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import GIVEN, AssetContext, semantic_ids_are_given, stage
from macrec_pipeline.defs.ids import continuity
from macrec_pipeline.defs.ids.continuity import Choice
from macrec_pipeline.defs.ids.quality import quality, quality_facts
from macrec_pipeline.defs.ids.shards import quantizing_in_shards
from macrec_pipeline.defs.ids.tables import anchors, known_anchors, retired_table, with_every_column
from macrec_pipeline.defs.presentation import in_words, table_metadata
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.schemas import PSEUDO_LABELS, SEMANTIC_IDS
from macrec_pipeline.storage import vectors_of
from macrec_pipeline.storage.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    import torch

    from macrec_pipeline.semantic_ids import AssignedIds, FittedQuantizer

GROUP = "semantic_ids"
KEPT = "identity.mode is append, and a kept quantizer needs none"


@dg.asset(
    deps=["text_embeddings", "image_embeddings"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"faiss", "parquet"},
    code_version="2",
    metadata=table_metadata("pseudo_labels"),
    description="The k-means cluster of each item in each modality; it chooses the positives of the other modality.",
)
def pseudo_labels(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Embeddings -> `PSEUDO_LABELS`."""
    from macrec_pipeline.runtime.devices import prepare_device

    with stage(context, settings, "pseudo_labels") as work:
        if semantic_ids_are_given(work.spec):
            return work.skip(PSEUDO_LABELS.empty())
        if continuity.keeps_quantizer(work):
            return work.skip(PSEUDO_LABELS.empty(), KEPT)
        prepare_device(work.config.runtime)
        tables = _embeddings(work)
        clusters = {f"{route}_cluster": labels for route, labels in _clusters(work, _vectors(tables)).items()}
        facts: dict[str, Any] = {f"{name}s": np.unique(labels).size for name, labels in clusters.items()}
        facts |= {f"largest_{name}": int(np.bincount(labels).max()) for name, labels in clusters.items()}
        table = next(iter(tables.values())).select("item_index", "item_id").with_columns(**clusters)
        return work.save(with_every_column(table, PSEUDO_LABELS), **facts)


@dg.asset(
    deps=["items", "text_embeddings", "image_embeddings", "pseudo_labels", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "safetensors"},
    code_version="4",
    pool=GPU_POOL,
    description="The residual quantizers of both modalities, by `quantizer.method`: codebooks and what makes latents.",
)
def quantizer(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Embeddings and pseudo-labels -> a folder of weights; the one that is there, if IDs are appended."""
    from macrec_pipeline.runtime.devices import prepare_device

    with stage(context, settings, "quantizer") as work:
        if semantic_ids_are_given(work.spec):
            return _no_quantizer(work)
        labels, vectors = work.table("pseudo_labels"), _vectors(_embeddings(work))
        device, known = prepare_device(work.config.runtime), known_anchors(work)
        choice = continuity.choose(work, vectors, device)
        if choice.append:
            return _keep_quantizer(work, choice, device)
        if labels.height:
            clusters = {route: labels[f"{route}_cluster"].to_numpy(writable=True) for route in vectors}
        else:  # a run that only appended came before this one, which is without the asset
            clusters = _clusters(work, vectors)
        beside = known.of(work.table("items")["item_id"].to_list(), vectors) if known else None
        fitted = _fit(context, work, vectors, clusters, device=device, collaborative_vectors=beside)
        with work.new_folder(details=continuity.as_details(choice)) as folder:
            fitted.save(folder)
            if known and fitted.collaborative_dim:
                known.save(folder)
        return _report_quantizer(work, fitted)


@dg.asset(
    deps=["items", "histories", "text_embeddings", "image_embeddings", "quantizer"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "parquet"},
    code_version="3",
    metadata=table_metadata("semantic_ids"),
    description="Each item's semantic ID in each modality: unique, with the collisions that had to be resolved marked.",
)
def semantic_ids(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Quantizer and embeddings, or the IDs that the data set brings -> `SEMANTIC_IDS`; retired IDs beside them."""
    with stage(context, settings, "semantic_ids") as work:
        if semantic_ids_are_given(work.spec):
            made = _given_ids(work)
        else:
            with work.store.scratch("semantic_ids") as scratch:
                made = _ids(work, scratch)
        assigned = made.assigned
        table = (
            work.table("items")
            .select("item_index", "item_id")
            .with_columns(
                *(pl.Series(f"{route}_codes", codes.tolist()) for route, codes in assigned.codes.items()),
                *(pl.Series(f"{route}_moved", moved) for route, moved in assigned.moved.items()),
            )
        )
        table, plots = with_every_column(table, SEMANTIC_IDS), _usage_plots(work, assigned)
        details = {"codebook_size": assigned.codebook_size, "collision_rate": assigned.collision_rate, **made.details}
        return work.save(table, details=details, beside=made.beside, **_id_facts(assigned), **made.facts, **plots)


@dataclass(frozen=True)
class _Made:
    """IDs, what the manifest keeps beside them, what a person is shown, and retired IDs."""

    assigned: "AssignedIds"
    details: dict[str, Any]
    facts: dict[str, Any]
    beside: dict[str, pl.DataFrame] = field(default_factory=dict)


def _fit(
    context: dg.AssetExecutionContext,
    work: AssetContext,
    vectors: dict[str, np.ndarray],
    clusters: dict[str, np.ndarray],
    *,
    device: "torch.device",
    collaborative_vectors: np.ndarray | None,
) -> "FittedQuantizer":
    """Fit here, or on several processes if the settings ask for them and there is something to train."""
    from macrec_pipeline.semantic_ids import FittedQuantizer, fit_quantizer

    if work.config.runtime.training_processes > 1 and work.config.quantizer.method != "residual_k_means":
        from macrec_pipeline.defs.torchrun_training import trained_by_several
        from macrec_pipeline.torchrun.jobs import quantizer_job

        job = quantizer_job(vectors, clusters, config=work.config, collaborative_vectors=collaborative_vectors)
        with (
            work.store.scratch("quantizer") as scratch,
            trained_by_several(context, work, job, scratch) as (folder, _),
        ):
            return FittedQuantizer.load(folder, device=device)
    return fit_quantizer(
        vectors.get("text"),
        vectors.get("image"),
        clusters.get("text"),
        clusters.get("image"),
        work.config.quantizer,
        seed=work.config.seed,
        device=device,
        progress=work.progress,
        collaborative_vectors=collaborative_vectors,
    )


def _keep_quantizer(work: AssetContext, choice: Choice, device: "torch.device") -> dg.MaterializeResult[Any]:
    """Publish the quantizer that is there once more, for the catalogue that there is now."""
    from macrec_pipeline.semantic_ids import FittedQuantizer

    before = work.folder("quantizer")
    fitted = FittedQuantizer.load(before, device=device)
    with work.new_folder(details=continuity.as_details(choice)) as folder:
        shutil.copytree(before, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MANIFEST_FILE))
    return work.report(summary=f"kept: {choice.reason}", kept=choice.reason, epochs=len(fitted.log))


def _report_quantizer(work: AssetContext, fitted: "FittedQuantizer") -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_training_log

    routes = list(fitted.modules)
    rates, dead = ([f"{route}_{figure}" for route in routes] for figure in ("collision_rate", "dead_codes"))
    last = fitted.log[-1]
    levels = {
        f"{route}_level_losses": [name for name in last if name.startswith(f"{route}_level_loss_")] for route in routes
    }
    return work.report(
        summary=in_words({name: last[name] for name in ("loss", *rates, *dead)}),
        **last,
        **{f"best_{route}_epoch": fitted.best_epoch[route] for route in routes},
        loss_curve=work.plot("loss", plot_training_log(fitted.log, ["loss"])),
        **{name: work.plot(name, plot_training_log(fitted.log, keys)) for name, keys in levels.items()},
        dead_codes=work.plot("dead_codes", plot_training_log(fitted.log, dead)),
        collision_rates=work.plot("collision_rates", plot_training_log(fitted.log, rates)),
    )


def _no_quantizer(work: AssetContext) -> dg.MaterializeResult[Any]:
    with work.new_folder() as folder:
        (folder / "given.json").write_text(json.dumps({"skipped": GIVEN}) + "\n", encoding="utf-8")
    return work.report(summary=f"skipped, {GIVEN}", skipped=GIVEN)


def _given_ids(work: AssetContext) -> _Made:
    from macrec_pipeline.data.readers.precomputed import precomputed_semantic_ids
    from macrec_pipeline.semantic_ids import resolve_given_ids

    given = precomputed_semantic_ids(work.spec, work.data, work.table("items"))
    assert given is not None, "only called where the data set brings its IDs"
    routes = work.config.routes or ROUTES
    assigned = resolve_given_ids(
        given.text_codes if "text" in routes else None,
        given.image_codes if "image" in routes else None,
        codebook_size=given.codebook_size,
    )
    report = quality(work, assigned)
    return _Made(assigned, {"quality": report}, quality_facts(report))


def _ids(work: AssetContext, scratch: Path) -> _Made:
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.semantic_ids import FittedQuantizer, assign_semantic_ids

    device, vectors = prepare_device(work.config.runtime.for_shards()), _vectors(_embeddings(work))
    quantizer = FittedQuantizer.load(work.folder("quantizer"), device=device)
    choice = continuity.choice_of_quantizer(work)
    quantize_by = quantizing_in_shards(work, quantizer, scratch, device=device)
    details = continuity.origin(work) | continuity.as_details(choice)
    facts: dict[str, Any] = {"identity": "append" if choice.append else "new", "identity_reason": choice.reason}
    if not choice.append:
        collaborative = anchors(work, quantizer, vectors)
        assigned = assign_semantic_ids(
            quantizer,
            vectors.get("text"),
            vectors.get("image"),
            device=device,
            collaborative_vectors=collaborative,
            quantize_by=quantize_by,
        )
        report = quality(work, assigned, quantizer=quantizer, vectors=vectors)
        return _Made(assigned, details | {"quality": report}, facts | quality_facts(report))
    appended = continuity.append_ids(work, quantizer, vectors, device, quantize_by)
    report = quality(work, appended.assigned, quantizer=quantizer, vectors=vectors, drift=appended.drift)
    retired = retired_table(appended.retired)
    facts |= {"new_items": int(appended.is_new.sum()), "returned_items": appended.num_returned}
    facts |= {"retired_ids": retired.height, **quality_facts(report)}
    return _Made(appended.assigned, details | {"quality": report}, facts, {"retired_ids": retired})


def _embeddings(work: AssetContext) -> dict[str, pl.DataFrame]:
    """The embeddings of each modality that the catalogue has."""
    tables = {route: work.table(f"{route}_embeddings") for route in ROUTES}
    return {route: table for route, table in tables.items() if table.height}


def _vectors(tables: Mapping[str, pl.DataFrame]) -> dict[str, np.ndarray]:
    """The modalities' embeddings, writable float32 [N, D] each, with neighbours' vectors where an item lacks one."""
    from macrec_pipeline.semantic_ids import impute_from_neighbours

    return impute_from_neighbours(
        {route: vectors_of(table).copy() for route, table in tables.items()},
        {route: table["imputed"].to_numpy() for route, table in tables.items()},
    )


def _clusters(work: AssetContext, vectors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from macrec_pipeline.semantic_ids import fit_pseudo_labels

    config, seed = work.config.pseudo_labels, work.config.seed
    return {route: fit_pseudo_labels(matrix, config, seed=seed) for route, matrix in vectors.items()}


def _id_facts(assigned: "AssignedIds") -> dict[str, Any]:
    sizes = {"levels": next(iter(assigned.codes.values())).shape[1], "codebook_size": assigned.codebook_size}
    return sizes | {f"{route}_moved": int(moved.sum()) for route, moved in assigned.moved.items()}


def _usage_plots(work: AssetContext, assigned: "AssignedIds") -> dict[str, Any]:
    from macrec_pipeline.evaluation.plots import plot_code_usage
    from macrec_pipeline.semantic_ids import code_usage

    usage = {
        f"{route}_code_usage": code_usage(codes, codebook_size=assigned.codebook_size)
        for route, codes in assigned.codes.items()
    }
    return {name: work.plot(name, plot_code_usage(counts)) for name, counts in usage.items()}
