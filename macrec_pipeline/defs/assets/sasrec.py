"""SASRec: a sequential model of the histories alone, a baseline in the report and an optional retrieval route."""

import logging
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.changed_data import changed_share, describe_data
from macrec_pipeline.defs.manifest_keys import TRAINED_ON, WARM_STARTED
from macrec_pipeline.defs.presentation import format_metrics
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.table_conversion import training_sequences

if TYPE_CHECKING:
    from macrec_pipeline.recommender import FittedSasrec, SasrecStart

logger = logging.getLogger(__name__)

DISABLED = "sasrec.enabled is false"


@dg.asset(
    deps=["histories", "items"],
    partitions_def=DATASETS,
    group_name="collaborative",
    kinds={"torch", "safetensors"},
    code_version="1",
    pool=GPU_POOL,
    description="SASRec's weights, settings and training log, trained on the histories alone. It is a baseline in the "
    "report and, if the settings say so, an input of the quantizer or a retrieval route. Look at `validation_ndcg` and "
    "its curve.",
)
def sasrec(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Train SASRec on the histories, or store a note that it is disabled."""
    from macrec_pipeline.recommender import fit_sasrec, save_item_ids
    from macrec_pipeline.runtime.devices import prepare_device

    with open_asset(context, settings, "sasrec") as asset:
        if not asset.config.sasrec.enabled:
            return _skip_sasrec(asset)
        histories, item_ids = asset.read_table("histories"), asset.read_table("items")["item_id"].to_list()
        start, start_figures = _start(asset, histories, item_ids)
        with asset.store.scratch("sasrec") as scratch:
            fitted = fit_sasrec(
                training_sequences(histories),
                num_items=len(item_ids),
                config=asset.config.sasrec,
                seed=asset.config.seed,
                device=prepare_device(asset.config.runtime),
                progress=asset.progress,
                checkpoint=scratch / "checkpoint.safetensors",
                start=start,
            )
            details = {
                TRAINED_ON: describe_data(histories, num_items=len(item_ids)),
                WARM_STARTED: fitted.warm_start == "taken over",
            }
            with asset.new_folder(details=details) as folder:
                fitted.save(folder)
                save_item_ids(item_ids, folder)
        return _report_sasrec(asset, fitted, start_figures)


def _start(
    asset: AssetContext, histories: pl.DataFrame, item_ids: list[str]
) -> "tuple[SasrecStart | None, dict[str, float]]":
    """Return the previous weights for a warm start, if the settings say so and there are any, and how much is new."""
    from macrec_pipeline.recommender import SasrecStart

    if not asset.config.sasrec.warm_start:
        return None, {}
    if not asset.store.has("sasrec"):
        logger.warning("sasrec.warm_start is true, but training starts from random weights: there is no SASRec yet.")
        return None, {}
    before = asset.store.manifest("sasrec").details.get(TRAINED_ON)
    share = changed_share(histories, num_items=len(item_ids), before=before)
    config = asset.config.continuation.of_sasrec(asset.config.sasrec, changed_share=share)
    return SasrecStart(asset.folder("sasrec"), item_ids, config), {"changed_share": share}


def _report_sasrec(
    asset: AssetContext, fitted: "FittedSasrec", start_figures: dict[str, float]
) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_training_log

    best = fitted.log[fitted.best_epoch - 1] if fitted.log else {}
    return asset.report(
        summary=f"best of {len(fitted.log)} epochs: {format_metrics(best)}" if best else "nothing to train on",
        epochs=len(fitted.log),
        best_epoch=fitted.best_epoch,
        warm_start=fitted.warm_start,
        **start_figures,
        **{name: value for name, value in best.items() if name != "epoch"},
        loss_curve=asset.log_plot("loss", plot_training_log(fitted.log, ["train_loss"])),
        validation_curve=asset.log_plot("validation_ndcg", plot_training_log(fitted.log, ["validation_ndcg"])),
    )


def _skip_sasrec(asset: AssetContext) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.recommender.sasrec.fitted import write_skipped

    with asset.new_folder() as folder:
        write_skipped(folder, reason=DISABLED)
    return asset.report(summary=f"skipped, {DISABLED}", skipped=DISABLED)
