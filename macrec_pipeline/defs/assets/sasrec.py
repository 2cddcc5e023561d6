"""SASRec: what is known of the items from who took them when; a baseline of the report, and a route if asked."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from macrec_pipeline.defs.asset_context import AssetContext, stage
from macrec_pipeline.defs.presentation import in_words
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.table_conversion import training_sequences

if TYPE_CHECKING:
    from macrec_pipeline.recommender import FittedSasrec

DISABLED = "sasrec.enabled is false"


@dg.asset(
    deps=["histories", "items"],
    partitions_def=DATASETS,
    group_name="collaborative",
    kinds={"torch", "safetensors"},
    code_version="1",
    pool=GPU_POOL,
    description="SASRec, trained on the histories alone: weights with one embedding an item, settings and log.",
)
def sasrec(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Histories -> a folder of weights, or a note that SASRec was left out."""
    from macrec_pipeline.recommender import fit_sasrec
    from macrec_pipeline.runtime.devices import prepare_device

    with stage(context, settings, "sasrec") as work:
        if not work.config.sasrec.enabled:
            return _no_sasrec(work)
        with work.store.scratch("sasrec") as scratch:
            fitted = fit_sasrec(
                training_sequences(work.table("histories")),
                num_items=work.table("items").height,
                config=work.config.sasrec,
                seed=work.config.seed,
                device=prepare_device(work.config.runtime),
                progress=work.progress,
                checkpoint=scratch / "checkpoint.safetensors",
            )
            with work.new_folder() as folder:
                fitted.save(folder)
        return _report(work, fitted)


def _report(work: AssetContext, fitted: "FittedSasrec") -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_training_log

    best = fitted.log[fitted.best_epoch - 1] if fitted.log else {}
    return work.report(
        summary=f"best of {len(fitted.log)} epochs: {in_words(best)}" if best else "nothing to train on",
        epochs=len(fitted.log),
        best_epoch=fitted.best_epoch,
        **{name: value for name, value in best.items() if name != "epoch"},
        loss_curve=work.plot("loss", plot_training_log(fitted.log, ["train_loss"])),
        validation_curve=work.plot("validation_ndcg", plot_training_log(fitted.log, ["validation_ndcg"])),
    )


def _no_sasrec(work: AssetContext) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.recommender.sasrec.fitted import write_skipped

    with work.new_folder() as folder:
        write_skipped(folder, reason=DISABLED)
    return work.report(summary=f"skipped, {DISABLED}", skipped=DISABLED)
