"""Semantic IDs: pseudo-labels, the cross-modal quantizer, and the table of unique IDs (MACRec section 3.2)."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.resources import DATASETS, TRAINING_POOL, Settings
from macrec_pipeline.defs.tracked import GIVEN, Stage, in_words, semantic_ids_are_given, stage, table_metadata
from macrec_pipeline.schemas import PSEUDO_LABELS, SEMANTIC_IDS, TableSchema
from macrec_pipeline.storage import vectors_of

if TYPE_CHECKING:
    from macrec_pipeline.semantic_ids import AssignedIds, FittedQuantizer

GROUP = "semantic_ids"


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
    from macrec_pipeline.semantic_ids import fit_pseudo_labels

    with stage(context, settings, "pseudo_labels") as work:
        if semantic_ids_are_given(work.spec):
            return work.skip(PSEUDO_LABELS.empty())
        prepare_device(work.config.runtime)
        tables = _embeddings(work)
        clusters = {
            f"{route}_cluster": fit_pseudo_labels(vectors, work.config.pseudo_labels, seed=work.config.seed)
            for route, vectors in _vectors(tables).items()
        }
        facts: dict[str, Any] = {f"{name}s": np.unique(labels).size for name, labels in clusters.items()}
        facts |= {f"largest_{name}": int(np.bincount(labels).max()) for name, labels in clusters.items()}
        table = next(iter(tables.values())).select("item_index", "item_id").with_columns(**clusters)
        return work.save(_with_every_column(table, PSEUDO_LABELS), **facts)


@dg.asset(
    deps=["text_embeddings", "image_embeddings", "pseudo_labels", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "safetensors"},
    code_version="3",
    pool=TRAINING_POOL,
    description="The residual quantizers of both modalities, by `quantizer.method`: codebooks and what makes latents.",
)
def quantizer(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Embeddings and pseudo-labels -> a folder of weights."""
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.semantic_ids import fit_quantizer

    with stage(context, settings, "quantizer") as work:
        if semantic_ids_are_given(work.spec):
            return _no_quantizer(work)
        labels, vectors = work.table("pseudo_labels"), _vectors(_embeddings(work))
        clusters = {route: labels[f"{route}_cluster"].to_numpy(writable=True) for route in vectors}
        fitted = fit_quantizer(
            vectors.get("text"),
            vectors.get("image"),
            clusters.get("text"),
            clusters.get("image"),
            work.config.quantizer,
            seed=work.config.seed,
            device=prepare_device(work.config.runtime),
            progress=work.progress,
            collaborative_vectors=_collaborative_vectors(work),
        )
        with work.new_folder() as folder:
            fitted.save(folder)
        return _report_quantizer(work, fitted)


@dg.asset(
    deps=["items", "text_embeddings", "image_embeddings", "quantizer", "sasrec"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds={"torch", "parquet"},
    code_version="2",
    metadata=table_metadata("semantic_ids"),
    description="Each item's semantic ID in each modality: unique, with the collisions that had to be resolved marked.",
)
def semantic_ids(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Quantizer and embeddings, or the IDs that the data set brings -> `SEMANTIC_IDS`."""
    with stage(context, settings, "semantic_ids") as work:
        assigned = _given_ids(work) if semantic_ids_are_given(work.spec) else _assigned_ids(work)
        table = (
            work.table("items")
            .select("item_index", "item_id")
            .with_columns(
                *(pl.Series(f"{route}_codes", codes.tolist()) for route, codes in assigned.codes.items()),
                *(pl.Series(f"{route}_moved", moved) for route, moved in assigned.moved.items()),
            )
        )
        details = {"codebook_size": assigned.codebook_size, "collision_rate": assigned.collision_rate}
        return work.save(
            _with_every_column(table, SEMANTIC_IDS),
            details=details,
            **_id_facts(assigned),
            **_usage_plots(work, assigned),
        )


def _report_quantizer(work: Stage, fitted: "FittedQuantizer") -> dg.MaterializeResult[Any]:
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


def _no_quantizer(work: Stage) -> dg.MaterializeResult[Any]:
    with work.new_folder() as folder:
        (folder / "given.json").write_text(json.dumps({"skipped": GIVEN}) + "\n", encoding="utf-8")
    return work.report(summary=f"skipped, {GIVEN}", skipped=GIVEN)


def _given_ids(work: Stage) -> "AssignedIds":
    from macrec_pipeline.data.given import given_semantic_ids
    from macrec_pipeline.semantic_ids import resolve_given_ids

    given = given_semantic_ids(work.spec, work.data, work.table("items"))
    assert given is not None, "only called where the data set brings its IDs"
    routes = work.config.routes or ROUTES
    return resolve_given_ids(
        given.text_codes if "text" in routes else None,
        given.image_codes if "image" in routes else None,
        codebook_size=given.codebook_size,
    )


def _assigned_ids(work: Stage) -> "AssignedIds":
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.semantic_ids import FittedQuantizer, assign_semantic_ids

    device = prepare_device(work.config.runtime)
    quantizer = FittedQuantizer.load(work.folder("quantizer"), device=device)
    vectors = _vectors(_embeddings(work))
    return assign_semantic_ids(
        quantizer,
        vectors.get("text"),
        vectors.get("image"),
        device=device,
        collaborative_vectors=_collaborative_vectors(work),
    )


def _embeddings(work: Stage) -> dict[str, pl.DataFrame]:
    """The embeddings of each modality that the catalogue has."""
    tables = {route: work.table(f"{route}_embeddings") for route in ROUTES}
    return {route: table for route, table in tables.items() if table.height}


def _with_every_column(table: pl.DataFrame, schema: TableSchema) -> pl.DataFrame:
    """The table in the schema's columns, those of a modality that the catalogue lacks without a value."""
    return pl.concat([schema.empty(), table], how="diagonal")


def _vectors(tables: Mapping[str, pl.DataFrame]) -> dict[str, np.ndarray]:
    """The modalities' embeddings, writable float32 [N, D] each, with neighbours' vectors where an item lacks one."""
    from macrec_pipeline.semantic_ids import impute_from_neighbours

    return impute_from_neighbours(
        {route: vectors_of(table).copy() for route, table in tables.items()},
        {route: table["imputed"].to_numpy() for route, table in tables.items()},
    )


def _collaborative_vectors(work: Stage) -> np.ndarray | None:
    """SASRec's item embeddings, float32 [N, C] in the order of `items`, if the quantizer is told to look at them."""
    from macrec_pipeline.recommender.fitted_sasrec import load_item_embeddings

    config = work.config.quantizer
    if not (config.collaborative_input_weight or config.collaborative_contrast_weight):
        return None
    return load_item_embeddings(work.folder("sasrec"))


def _id_facts(assigned: "AssignedIds") -> dict[str, Any]:
    facts: dict[str, Any] = {
        "levels": next(iter(assigned.codes.values())).shape[1],
        "codebook_size": assigned.codebook_size,
    }
    for route, moved in assigned.moved.items():
        for when in ("before", "after"):
            facts[f"{route}_collision_rate_{when}"] = assigned.collision_rate[route][when]
        facts[f"{route}_moved"] = int(moved.sum())
    return facts


def _usage_plots(work: Stage, assigned: "AssignedIds") -> dict[str, Any]:
    from macrec_pipeline.evaluation.plots import plot_code_usage
    from macrec_pipeline.semantic_ids import code_usage

    usage = {
        f"{route}_code_usage": code_usage(codes, codebook_size=assigned.codebook_size)
        for route, codes in assigned.codes.items()
    }
    return {name: work.plot(name, plot_code_usage(counts)) for name, counts in usage.items()}
