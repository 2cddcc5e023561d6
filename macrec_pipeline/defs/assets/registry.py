"""The registry: one version of a model that a service can load without knowing anything of this pipeline."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from macrec_pipeline.defs.asset_context import AssetContext, stage
from macrec_pipeline.defs.assets.champion import COMPARISON
from macrec_pipeline.defs.automation import FRESHNESS
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, Settings

if TYPE_CHECKING:
    from macrec_pipeline.tracking import Proposal


@dg.asset(
    deps=["recommender", "evaluation_report", "champion_comparison"],
    partitions_def=DATASETS,
    group_name="registry",
    kinds={"mlflow"},
    code_version="2",
    freshness_policy=FRESHNESS,
    description="The bundle as a version of macrec-<dataset> in MLflow: @challenger, and @champion if there is none or "
    "the comparison allows it and promotion.automatic is on.",
)
def registered_model(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Bundle, metrics and comparison -> a model version, and a folder with `registration.json` that says which."""
    with stage(context, settings, "registered_model") as work:
        metrics = json.loads((work.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
        headline = {name: value for name, value in metrics["systems"]["macrec"].items() if isinstance(value, float)}
        bundle, tracker = work.folder("recommender") / "bundle", settings.tracker()
        proposal = _proposal(work, bundle, metrics=headline)
        version = tracker.register(
            bundle,
            dataset=work.dataset,
            metrics=headline,
            dagster_run_id=context.run.run_id,
            run_id=work.run.run_id,
        )
        outcome = tracker.settle(version, work.dataset, proposal)
        registration = {**dataclasses.asdict(version), **dataclasses.asdict(outcome)}
        with work.new_folder() as folder:
            text = json.dumps(registration, indent=1, sort_keys=True)
            (folder / "registration.json").write_text(text + "\n", encoding="utf-8")
        aliases = " and ".join("@" + alias for alias in outcome.aliases)
        return work.report(
            summary=f"{version.uri}, now {aliases}. {outcome.decision}",
            model=version.uri,
            aliases=list(outcome.aliases),
            promotion=outcome.status,
            decision=outcome.decision,
            figures=markdown(proposal.card),
            bundle_digest=version.bundle_digest,
            model_in_mlflow=dg.MetadataValue.url(version.url),
            **headline,
        )


def _proposal(work: AssetContext, bundle: Path, *, metrics: Mapping[str, float]) -> "Proposal":
    """What `champion_comparison` says of this bundle; nothing, if what it compared was another one."""
    from macrec_pipeline.evaluation.promotion.version_card import plain_card, version_card
    from macrec_pipeline.tracking import Proposal
    from macrec_pipeline.tracking.registry import bundle_digest

    found = json.loads((work.folder("champion_comparison") / COMPARISON).read_text(encoding="utf-8"))
    if found["bundle_digest"] != bundle_digest(bundle):
        found = {"problem": "champion_comparison is of another bundle than this. Materialize it again, then this."}
    compared = "card" in found
    return Proposal(
        over=found["champion"] if compared else None,
        passed=found.get("passed", False),
        automatic=work.config.promotion.automatic,
        reason=found.get("reason") or found["problem"] or "",
        figures=found.get("figures", {}),
        card=version_card(work.spec.title, found["card"] if compared else plain_card(metrics)),
    )
