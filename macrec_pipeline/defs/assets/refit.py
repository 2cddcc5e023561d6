"""The refit: the evaluated recommender, trained on all interactions before it is registered (docs/decisions/027)."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.assets.recommender import stored_quantizer_files, write_serving_bundle
from macrec_pipeline.defs.manifest_keys import REFIT_OF, SKIPPED, WARM_STARTED
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.table_conversion import codes_by_modality, item_sequences
from macrec_pipeline.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macrec_pipeline.config import RecommenderConfig
    from macrec_pipeline.recommender import FittedRecommender, RefitPlan
    from macrec_pipeline.runtime.progress import Progress

logger = logging.getLogger(__name__)

DISABLED = "refit.enabled is false"
_SKIPPED_FILE, _REFIT_FILE = "skipped.json", "refit.json"


@dg.asset(
    deps=[
        "interactions",
        "histories",
        "items",
        "quantizer",
        "semantic_ids",
        "sasrec",
        "recommender",
        "evaluation_report",
    ],
    partitions_def=DATASETS,
    group_name="recommender",
    kinds={"torch", "safetensors"},
    code_version="2",
    pool=GPU_POOL,
    description="The evaluated recommender, trained on all interactions with the validation and test targets, which it "
    "had not seen so far. Epochs and fusion weights stay as validation chose them, and no metrics exist for it: those "
    "in the report belong to `recommender`. Its `bundle/` is what `registered_model` registers. Look at `method` and "
    "`epochs`.",
)
def refitted_recommender(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Refit the recommender and write its bundle, or store a note that the refit is disabled."""
    with open_asset(context, settings, "refitted_recommender") as asset:
        details = {REFIT_OF: asset.store.manifest("recommender").digest}
        if not asset.config.refit.enabled:
            with asset.new_folder(details=details | {SKIPPED: DISABLED}) as folder:
                (folder / _SKIPPED_FILE).write_text(json.dumps({"skipped": DISABLED}) + "\n", encoding="utf-8")
            return asset.report(summary=f"skipped, {DISABLED}", skipped=DISABLED)
        with asset.store.scratch("refitted_recommender") as scratch, asset.new_folder(details=details) as folder:
            scratch.mkdir(parents=True, exist_ok=True)
            everything = _all_histories(asset)
            learned = item_sequences(everything)
            num_learned_before = _num_learned_before(asset, everything["user_id"])
            sasrec = _refit_sasrec(asset, scratch, learned) if asset.config.decoding.collaborative_route else None
            plan, fitted = _refit_recommender(context, asset, scratch, learned, num_learned_before)
            interactions = sum(map(len, learned))
            new = interactions - int(num_learned_before.sum())
            facts = {"method": plan.method, "epochs": plan.num_epochs, "interactions": interactions}
            _write(asset, folder, fitted, scratch, sasrec=sasrec, learned=learned, facts=facts)
        return asset.report(
            summary=f"{plan.method}, epochs: {plan.num_epochs}, on all {interactions:,} interactions, of which {new:,} "
            "are new to the model",
            new_interactions=new,
            **facts,
        )


def refitted_bundle(asset: AssetContext) -> tuple[Path, dict[str, Any]] | None:
    """Return the bundle of the refit and what `refit.json` says about it; None if the refit is disabled.

    Raises:
        StorageError: another recommender was refitted than the present one.
    """
    manifest = asset.store.manifest("refitted_recommender")
    evaluated = asset.store.manifest("recommender").digest
    if manifest.details.get(REFIT_OF) != evaluated:
        raise StorageError(
            f"refitted_recommender of {asset.dataset} is not a refit of the present recommender ({evaluated[:12]}), "
            f"but of an earlier one ({str(manifest.details.get(REFIT_OF))[:12]}). Materialize `refitted_recommender` "
            f"again, or everything with `macrec run {asset.dataset}`."
        )
    if SKIPPED in manifest.details:
        return None
    folder = asset.folder("refitted_recommender")
    facts: dict[str, Any] = json.loads((folder / _REFIT_FILE).read_text(encoding="utf-8"))
    return folder / "bundle", facts


def all_interactions(asset: AssetContext) -> list[np.ndarray]:
    """Return every user's items, int64 [T], oldest first, whatever the split holds out or leaves out."""
    return item_sequences(_all_histories(asset))


def _num_learned_before(asset: AssetContext, users: pl.Series) -> np.ndarray:
    """Return how many of each user's first interactions the evaluated model has learned, int64 [U]."""
    held_out = 1 + pl.col("tested").cast(pl.Int64)  # the validation target, and the test target if there is one
    trained = asset.read_table("histories").select("user_id", learned=pl.col("item_indices").list.len() - held_out)
    joined = users.to_frame("user_id").join(trained, on="user_id", how="left", maintain_order="left")
    return joined["learned"].fill_null(0).to_numpy()


def _all_histories(asset: AssetContext) -> pl.DataFrame:
    from macrec_pipeline.data.histories.build import build_histories

    return build_histories(asset.scan_table("interactions"), asset.read_table("items"))


def _refit_sasrec(asset: AssetContext, scratch: Path, learned: "Sequence[np.ndarray]") -> Path:
    """Refit SASRec and return the folder that it was saved to."""
    from macrec_pipeline.recommender import fit_sasrec, plan_sasrec_refit
    from macrec_pipeline.runtime.devices import prepare_device

    plan = plan_sasrec_refit(
        asset.folder("sasrec"),
        asset.config.sasrec,
        asset.config.refit,
        warm_started=asset.store.manifest("sasrec").details.get(WARM_STARTED, False),
    )
    fitted = fit_sasrec(
        learned,
        num_items=asset.read_table("items").height,
        config=plan.config,
        seed=asset.config.seed,
        device=prepare_device(asset.config.runtime),
        progress=refit_progress(asset),
        checkpoint=scratch / "sasrec.safetensors",
        refit_start=plan.start,
        refit_epochs=plan.num_epochs,
    )
    folder = scratch / "sasrec"
    folder.mkdir(exist_ok=True)
    fitted.save(folder)
    return folder


def _refit_recommender(
    context: dg.AssetExecutionContext,
    asset: AssetContext,
    scratch: Path,
    learned: "Sequence[np.ndarray]",
    num_learned_before: np.ndarray,
) -> "tuple[RefitPlan[RecommenderConfig], FittedRecommender]":
    """Refit the recommender in this process, or in several if the settings say so."""
    from macrec_pipeline.recommender import plan_recommender_refit

    manifest = asset.store.manifest("recommender")
    plan = plan_recommender_refit(
        asset.folder("recommender") / "weights",
        asset.config.recommender,
        asset.config.refit,
        warm_started=manifest.details.get(WARM_STARTED, False),
    )
    if plan.method != asset.config.refit.method:
        logger.warning(
            "refit.method is %s, but the refit continues from the evaluated weights, because these were trained from "
            "earlier weights.",
            asset.config.refit.method,
        )
    fitted = train_refit(
        context,
        asset,
        scratch,
        learned,
        codes_by_modality(asset.read_table("semantic_ids")),
        codebook_size=asset.store.manifest("semantic_ids").details["codebook_size"],
        config=plan.config,
        num_epochs=plan.num_epochs,
        start=plan.start,
        target_weights=plan.target_weights(num_learned_before, np.array([len(items) for items in learned])),
    )
    return plan, fitted


def train_refit(
    context: dg.AssetExecutionContext,
    asset: AssetContext,
    scratch: Path,
    learned: "Sequence[np.ndarray]",
    codes: "Mapping[str, np.ndarray]",
    *,
    codebook_size: int,
    config: "RecommenderConfig",
    num_epochs: int,
    start: Path | None,
    target_weights: np.ndarray | None = None,
) -> "FittedRecommender":
    """Train a recommender on whole histories, in this process or in several; see `fit_recommender`."""
    from macrec_pipeline.recommender import FittedRecommender, fit_recommender
    from macrec_pipeline.runtime.devices import prepare_device

    checkpoint = scratch / "checkpoint.safetensors"
    if asset.config.runtime.training_processes > 1:
        from macrec_pipeline.defs.torchrun_training import train_with_torchrun
        from macrec_pipeline.torchrun.jobs import recommender_job

        job = recommender_job(
            learned,
            codes,
            codebook_size=codebook_size,
            config=asset.config.model_copy(update={"recommender": config}),
            checkpoint=checkpoint,
            start=start,
            refit_epochs=num_epochs,
            target_weights=target_weights,
        )
        with train_with_torchrun(context, asset, job, scratch, progress=refit_progress(asset)) as (folder, _):
            return FittedRecommender.load(folder, device=prepare_device(asset.config.runtime))
    return fit_recommender(
        learned,
        codes.get("text"),
        codes.get("image"),
        codebook_size=codebook_size,
        config=config,
        seed=asset.config.seed,
        device=prepare_device(asset.config.runtime),
        progress=refit_progress(asset),
        checkpoint=checkpoint,
        start=start,
        refit_epochs=num_epochs,
        target_weights=target_weights,
    )


def _write(
    asset: AssetContext,
    folder: Path,
    fitted: "FittedRecommender",
    scratch: Path,
    *,
    sasrec: Path | None,
    learned: "list[np.ndarray]",
    facts: "Mapping[str, Any]",
) -> None:
    """Write the bundle and `refit.json`. The fusion weights are those of the evaluated model."""
    from macrec_pipeline.recommender.retrieval.fusion_fitting import load_fusion, save_fusion
    from macrec_pipeline.tracking.registry import bundle_digest

    weights = scratch / "weights"
    weights.mkdir(exist_ok=True)
    fitted.save(weights)
    evaluated = asset.folder("recommender")
    if (fusion := load_fusion(evaluated / "weights")) is not None:
        save_fusion(fusion, weights)
    about = {**facts, "evaluated_bundle": bundle_digest(evaluated / "bundle")}
    (folder / _REFIT_FILE).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "training_log.json").write_text(json.dumps(fitted.log, indent=1) + "\n", encoding="utf-8")
    (folder / "bundle").mkdir()
    write_serving_bundle(
        asset,
        folder / "bundle",
        weights=weights,
        sasrec=sasrec,
        quantizer_files=stored_quantizer_files(asset),
        codebook_size=asset.store.manifest("semantic_ids").details["codebook_size"],
        learned=learned,
        inputs=("interactions", "items", "quantizer", "semantic_ids", "recommender", *(("sasrec",) if sasrec else ())),
        provenance={"refit": about},
    )


def refit_progress(asset: AssetContext) -> "Progress":
    """Report the progress of a training as that of its refit."""

    def report(stage: str, done: int, total: int, metrics: "Mapping[str, float] | None" = None) -> None:
        asset.progress(f"refit of {stage}", done, total, metrics)

    return report
