"""Evaluation: every test user in every system, on one page and as numbers."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from macrec_pipeline.config import ROUTES
from macrec_pipeline.defs.asset_context import SKIPPED, AssetContext, stage
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.defs.table_conversion import codes_by_modality

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
HEADLINE = ("hr_1", "hr_5", "hr_10", "ndcg_10", "mrr", "coverage")


@dg.asset(
    deps=[*TABLES, "quantizer", "recommender"],
    partitions_def=DATASETS,
    group_name="evaluation",
    kinds={"polars", "html"},
    code_version="4",
    description="Held-out items in the full catalogue, with intervals, beside baselines: metrics.json and report.html.",
)
def evaluation_report(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Predictions and histories -> a folder with `metrics.json`, `report.html` and `per_user.parquet`."""
    from macrec_pipeline.evaluation.protocol import evaluate, metrics_document
    from macrec_pipeline.evaluation.report.page import render_report

    with stage(context, settings, "evaluation_report") as work:
        tables = {name: work.table(name) for name in TABLES}
        details = work.store.manifest("predictions").details
        evaluation = evaluate(
            tables["histories"],
            tables["predictions"],
            num_items=tables["items"].height,
            config=work.config.evaluation,
            seed=work.config.seed,
            top_k=work.config.decoding.top_k,
            items_imputed=_imputed(tables),
            sasrec_settings=details.get("sasrec"),
            split=_split(work),
        )
        rates = work.store.manifest("semantic_ids").details["collision_rate"]
        agreement = details.get("beam_agreement", {})
        metrics = metrics_document(evaluation, dataset=work.dataset, collision_rate=rates, beam_agreement=agreement)
        page = render_report(_report_input(work, tables, evaluation, dagster_run_id=context.run.run_id))
        with work.new_folder() as folder:
            (folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")
            (folder / "report.html").write_text(page, encoding="utf-8")
            evaluation.per_user.write_parquet(folder / "per_user.parquet")
        return _report(work, metrics)


def _split(work: AssetContext) -> str:
    """How targets were held out, in words."""
    from macrec_pipeline.data.histories.splits import period_of
    from macrec_pipeline.evaluation.protocol_description import LEAVE_ONE_OUT

    period = period_of(work.store.manifest("histories").details.get("split"))
    return LEAVE_ONE_OUT if period is None else f"{SPLIT_BY_TIME} {period}"


def _report(work: AssetContext, metrics: Mapping[str, Any]) -> dg.MaterializeResult[Any]:
    from macrec_pipeline.evaluation.plots import plot_metrics

    work.run.log_artifact(work.folder("evaluation_report"), "report")
    for prefix, systems in (("", metrics["systems"]), ("excluding_seen/", metrics["systems_excluding_seen"])):
        for system, values in systems.items():
            numbers = {name: value for name, value in values.items() if isinstance(value, float)}
            work.run.log_metrics({f"{prefix}{system}/{name}": value for name, value in numbers.items()})
    ours = metrics["systems"]["macrec"]
    return work.report(
        summary=f"HR@10 {ours['hr_10']:.4f}, NDCG@10 {ours['ndcg_10']:.4f} of {metrics['num_test_users']:,} users",
        test_users=metrics["num_test_users"],
        **{name: ours[name] for name in HEADLINE},
        systems=_systems_table(metrics["systems"]),
        systems_excluding_seen=_systems_table(metrics["systems_excluding_seen"]),
        comparison=work.plot("metrics", plot_metrics(metrics["systems"])),
        report=dg.MetadataValue.path(work.store.location("evaluation_report") / "report.html"),
    )


def _report_input(
    work: AssetContext, tables: Mapping[str, pl.DataFrame], evaluation: "Evaluation", *, dagster_run_id: str
) -> "ReportInput":
    from macrec_pipeline.evaluation.report.page import QuarantineCount, ReportInput
    from macrec_pipeline.semantic_ids import code_usage
    from macrec_pipeline.tracking.git_commit import git_commit

    ids, details = tables["semantic_ids"], work.store.manifest("semantic_ids").details
    usage = {
        route: code_usage(codes, codebook_size=details["codebook_size"])
        for route, codes in codes_by_modality(ids).items()
    }
    unreadable = tables["image_embeddings"]["problem"].count()
    dropped = tables["quarantine"].group_by("table", "reason").len("num_rows").sort("table", "num_rows", "reason")
    return ReportInput(
        dataset=work.dataset,
        title=work.spec.title,
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        preset=work.config.preset,
        seed=work.config.seed,
        git_commit=git_commit() or "unknown",
        run_ids={"Dagster run": dagster_run_id, "MLflow run": work.run.run_id},
        num_users=tables["histories"].height,
        num_items=tables["items"].height,
        num_interactions=tables["interactions"].height,
        evaluation=evaluation,
        collision_rate=details["collision_rate"],
        code_usage=usage,
        quantizer_log=_log(work.folder("quantizer") / "training_log.json"),
        recommender_log=_log(work.folder("recommender") / "weights" / "training_log.json"),
        quarantine=[
            *(QuarantineCount(*row) for row in dropped.iter_rows()),
            *([QuarantineCount("image_embeddings", "unreadable_picture", unreadable)] if unreadable else []),
        ],
        sample_users=_sample_users(work, tables, evaluation),
        beam_agreement=work.store.manifest("predictions").details.get("beam_agreement", {}),
        items_without={route: int(flags.sum()) for route, flags in _imputed(tables).items()},
        left_out={
            route: work.store.manifest(f"{route}_embeddings").details[SKIPPED] for route in ROUTES if route not in usage
        },
    )


def _sample_users(
    work: AssetContext, tables: Mapping[str, pl.DataFrame], evaluation: "Evaluation"
) -> "tuple[SampleUser, ...]":
    from macrec_pipeline.evaluation.report.sample_users import choose_sample_users, sample_users

    wanted = work.config.evaluation.num_sample_users
    return sample_users(
        choose_sample_users(evaluation.per_user, num_users=wanted, seed=work.config.seed),
        histories=tables["histories"],
        predictions=tables["predictions"],
        items=tables["items"],
        data_dir=work.data,
    )


def _imputed(tables: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Modality -> bool [N], for those that were embedded here."""
    return {
        route: tables[f"{route}_embeddings"]["imputed"].to_numpy()
        for route in ROUTES
        if tables[f"{route}_embeddings"].height
    }


def _log(path: Path) -> list[dict[str, float]]:
    log: list[dict[str, float]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return log


def _systems_table(systems: Mapping[str, Mapping[str, Any]]) -> dg.MetadataValue[Any]:
    head = ["| system | " + " | ".join(HEADLINE) + " |", "| --- |" + " ---: |" * len(HEADLINE)]
    rows = [
        f"| {name} | " + " | ".join(f"{values[metric]:.4f}" for metric in HEADLINE) + " |"
        for name, values in systems.items()
    ]
    return markdown("\n".join([*head, *rows]))
