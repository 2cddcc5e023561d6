"""Evaluation: every system on every test user, as metrics and as a report page."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.manifest_keys import LOST_CELLS, SKIPPED
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.defs.table_conversion import codes_by_modality
from macrec_pipeline.defs.unlisted_items import evaluation_histories, listed_mask

if TYPE_CHECKING:
    from macrec_pipeline.evaluation.protocol import Evaluation
    from macrec_pipeline.evaluation.report.page import ReportInput
    from macrec_pipeline.evaluation.report.sample_users import SampleUser

TABLES = (
    "interactions",
    "items",
    "quarantine",
    "histories",
    "text_embeddings",
    "image_embeddings",
    "semantic_ids",
    "predictions",
)
SPLIT_BY_TIME = (
    "global time: nothing is trained on that is not before the test period, each user's last item before it "
    "validates, and the first one in it is the test target; the period:"
)
"""Written to `metrics.json`: another wording would change the bytes of existing reports."""
HEADLINE = ("hr_1", "hr_5", "hr_10", "ndcg_10", "mrr", "coverage")
"""The metrics that Dagster shows; `metrics.json` has all of them."""


@dg.asset(
    deps=[*TABLES, "quantizer", "recommender"],
    partitions_def=DATASETS,
    group_name="evaluation",
    kinds={"polars", "html"},
    code_version="6",
    description="How well every system ranks the held-out items among the full catalogue, with confidence intervals "
    "and baselines. The folder holds `metrics.json`, `report.html` and `per_user.parquet`. Open `report.html` first, "
    "or look at `ndcg_10` and the table `systems`.",
)
def evaluation_report(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Evaluate the predictions, and write the metrics and the report page."""
    from macrec_pipeline.evaluation.protocol import evaluate, metrics_document
    from macrec_pipeline.evaluation.report.page import render_report

    with open_asset(context, settings, "evaluation_report") as asset:
        tables = {name: asset.read_table(name) for name in TABLES} | {"histories": evaluation_histories(asset)}
        details = asset.store.manifest("predictions").details
        evaluation = evaluate(
            tables["histories"],
            tables["predictions"],
            num_items=tables["items"].height,
            config=asset.config.evaluation,
            seed=asset.config.seed,
            top_k=asset.config.decoding.top_k,
            items_imputed=_imputed_items(tables),
            sasrec_settings=details.get("sasrec"),
            split=_describe_split(asset),
            listed=listed_mask(asset, num_items=tables["items"].height),
            codes=codes_by_modality(tables["semantic_ids"]),
        )
        metrics = metrics_document(
            evaluation,
            dataset=asset.dataset,
            collision_rate=asset.store.manifest("semantic_ids").details["collision_rate"],
            beam_agreement=details.get("beam_agreement", {}),
        )
        page = render_report(_report_input(asset, tables, evaluation, dagster_run_id=context.run.run_id))
        with asset.new_folder() as folder:
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
            (folder / "report.html").write_text(page, encoding="utf-8")
            evaluation.per_user.write_parquet(folder / "per_user.parquet")
        return _report_evaluation(asset, metrics)


def _describe_split(asset: AssetContext) -> str:
    """Return how the test targets were held out, as a sentence for the report."""
    from macrec_pipeline.data.histories.splits import period_from_details
    from macrec_pipeline.evaluation.protocol import LEAVE_ONE_OUT

    period = period_from_details(asset.store.manifest("histories").details.get("split"))
    return LEAVE_ONE_OUT if period is None else f"{SPLIT_BY_TIME} {period}"


def _report_evaluation(asset: AssetContext, metrics: Mapping[str, Any]) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_metrics

    asset.mlflow_run.log_artifact(asset.folder("evaluation_report"), "report")
    for prefix, systems in (("", metrics["systems"]), ("excluding_seen/", metrics["systems_excluding_seen"])):
        for system, values in systems.items():
            numbers = {name: value for name, value in values.items() if isinstance(value, float)}
            asset.mlflow_run.log_metrics({f"{prefix}{system}/{name}": value for name, value in numbers.items()})
    asset.mlflow_run.log_metrics(special_metrics(metrics))
    asset.mlflow_run.log_metrics(list_metrics(metrics))
    model = metrics["systems"]["macrec"]
    return asset.report(
        summary=f"HR@10 {model['hr_10']:.4f}, NDCG@10 {model['ndcg_10']:.4f} for {metrics['num_test_users']:,} users",
        test_users=metrics["num_test_users"],
        **{name: model[name] for name in HEADLINE},
        systems=_systems_table(metrics["systems"]),
        systems_excluding_seen=_systems_table(metrics["systems_excluding_seen"]),
        comparison=asset.log_plot("metrics", plot_metrics(metrics["systems"])),
        report=dg.MetadataValue.path(asset.store.location("evaluation_report") / "report.html"),
    )


def special_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures for MLflow about new and rarely trained items, and about users whose target the data determine.

    Args:
        metrics: the content of `metrics.json`, which has more of them.
    """
    from macrec_pipeline.evaluation.slices import TARGET_TRAINING

    shares = {f"{system}/new_items_share": new["share"] for system, new in metrics["new_items"]["systems"].items()}
    by_training = {
        # MLflow's names of metrics cannot contain a plus sign.
        f"{system}/ndcg_10_target_trained_{part.replace('+', '_or_more')}": values["ndcg_10"]
        for part, found in metrics["slices"][TARGET_TRAINING].items()
        for system, values in found["systems"].items()
    }
    determined = metrics["determined_targets"]
    num_undetermined = metrics["num_test_users"] - determined["num_test_users"]
    of_determined = {
        f"determined_targets/{prefix}{system}/{name}": values[name]
        for prefix, setting in (("", "systems"), ("excluding_seen/", "systems_excluding_seen"))
        for system, values in determined[setting].items()
        for name in ("hr_10", "ndcg_10")
    }
    # If the data determine every target, these are the metrics of all users, which are logged already.
    undetermined = {"undetermined_targets": float(num_undetermined), **(of_determined if num_undetermined else {})}
    return {**shares, **by_training, **undetermined}


def list_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The figures for MLflow about diversity, novelty, exposure and popularity bias.

    Args:
        metrics: the content of `metrics.json`.
    """
    found = metrics["beyond_accuracy"]
    return {
        f"{prefix}{system}/{name}": value
        for prefix, setting in (("", "systems"), ("excluding_seen/", "systems_excluding_seen"))
        for system, values in found[setting].items()
        for name, value in values.items()
        if value is not None
    }


def _report_input(
    asset: AssetContext, tables: Mapping[str, pl.DataFrame], evaluation: "Evaluation", *, dagster_run_id: str
) -> "ReportInput":
    from macrec_pipeline.evaluation.report.page import LostCellCount, QuarantineCount, ReportInput
    from macrec_pipeline.semantic_ids import code_usage
    from macrec_pipeline.tracking.git_commit import git_commit

    ids, details = tables["semantic_ids"], asset.store.manifest("semantic_ids").details
    usage = {
        modality: code_usage(codes, codebook_size=details["codebook_size"])
        for modality, codes in codes_by_modality(ids).items()
    }
    num_unreadable = tables["image_embeddings"]["problem"].count()
    dropped = tables["quarantine"].group_by("table", "reason").len("num_rows").sort("table", "num_rows", "reason")
    return ReportInput(
        dataset=asset.dataset,
        title=asset.spec.title,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        preset=asset.config.preset,
        seed=asset.config.seed,
        git_commit=git_commit() or "unknown",
        run_ids={"Dagster run": dagster_run_id, "MLflow run": asset.mlflow_run.run_id},
        num_users=tables["histories"].height,
        num_items=tables["items"].height,
        num_interactions=tables["interactions"].height,
        evaluation=evaluation,
        collision_rate=details["collision_rate"],
        code_usage=usage,
        quantizer_log=_read_training_log(asset.folder("quantizer") / "training_log.json"),
        recommender_log=_read_training_log(asset.folder("recommender") / "weights" / "training_log.json"),
        quarantine=[
            *(QuarantineCount(*row) for row in dropped.iter_rows()),
            *([QuarantineCount("image_embeddings", "unreadable_picture", num_unreadable)] if num_unreadable else []),
        ],
        lost_cells=[
            LostCellCount(cells["file"], cells["column"], cells["reason"], cells["num_cells"])
            for name in ("raw_interactions", "raw_items")
            if asset.store.has(name)
            for cells in asset.store.manifest(name).details.get(LOST_CELLS, ())
        ],
        sample_users=_sample_users(asset, tables, evaluation),
        beam_agreement=asset.store.manifest("predictions").details.get("beam_agreement", {}),
        items_without={modality: int(flags.sum()) for modality, flags in _imputed_items(tables).items()},
        left_out={
            modality: asset.store.manifest(f"{modality}_embeddings").details[SKIPPED]
            for modality in ROUTES
            if modality not in usage
        },
    )


def _sample_users(
    asset: AssetContext, tables: Mapping[str, pl.DataFrame], evaluation: "Evaluation"
) -> "tuple[SampleUser, ...]":
    from macrec_pipeline.evaluation.report.sample_users import choose_sample_users, sample_users

    num_users = asset.config.evaluation.num_sample_users
    return sample_users(
        choose_sample_users(evaluation.per_user, num_users=num_users, seed=asset.config.seed),
        histories=tables["histories"],
        predictions=tables["predictions"],
        items=tables["items"],
        data_dir=asset.data_folder,
    )


def _imputed_items(tables: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """For each modality with embeddings, which items have an imputed vector: bool [N]."""
    return {
        modality: tables[f"{modality}_embeddings"]["imputed"].to_numpy()
        for modality in ROUTES
        if tables[f"{modality}_embeddings"].height
    }


def _read_training_log(path: Path) -> list[dict[str, float]]:
    log: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return log


def _systems_table(systems: Mapping[str, Mapping[str, Any]]) -> dg.MetadataValue[Any]:
    head = ["| system | " + " | ".join(HEADLINE) + " |", "| --- |" + " ---: |" * len(HEADLINE)]
    rows = [
        f"| {name} | " + " | ".join(f"{values[metric]:.4f}" for metric in HEADLINE) + " |"
        for name, values in systems.items()
    ]
    return markdown("\n".join([*head, *rows]))
