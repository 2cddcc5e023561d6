"""The registry: the bundle as a model version that a service can load without this pipeline."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.assets.champion import COMPARISON
from macrec_pipeline.defs.automation import FRESHNESS
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, Settings

if TYPE_CHECKING:
    from macrec_pipeline.tracking import PromotionProposal


@dg.asset(
    deps=["recommender", "evaluation_report", "champion_comparison"],
    partitions_def=DATASETS,
    group_name="registry",
    kinds={"mlflow"},
    code_version="2",
    freshness_policy=FRESHNESS,
    description="The bundle as a version of the model macrec-<dataset> in MLflow, with the alias @challenger. It also "
    "becomes @champion if there is none yet, or if the comparison allows it and `promotion.automatic` is on. Look at "
    "`decision` and `aliases`.",
)
def registered_model(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Register the bundle, decide on its promotion, and write both to `registration.json`."""
    with open_asset(context, settings, "registered_model") as asset:
        metrics = json.loads((asset.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
        headline = {name: value for name, value in metrics["systems"]["macrec"].items() if isinstance(value, float)}
        bundle, tracker = asset.folder("recommender") / "bundle", settings.tracker()
        proposal = _proposal(asset, bundle, metrics=headline)
        version = tracker.register(
            bundle,
            dataset=asset.dataset,
            metrics=headline,
            dagster_run_id=context.run.run_id,
            run_id=asset.mlflow_run.run_id,
        )
        outcome = tracker.decide_promotion(version, asset.dataset, proposal)
        registration = {**dataclasses.asdict(version), **dataclasses.asdict(outcome)}
        with asset.new_folder() as folder:
            text = json.dumps(registration, indent=1, sort_keys=True)
            (folder / "registration.json").write_text(text + "\n", encoding="utf-8")
        aliases = " and ".join("@" + alias for alias in outcome.aliases)
        return asset.report(
            summary=f"{version.uri} is now {aliases}. {outcome.decision}",
            model=version.uri,
            aliases=list(outcome.aliases),
            promotion=outcome.status,
            decision=outcome.decision,
            figures=markdown(proposal.card),
            bundle_digest=version.bundle_digest,
            model_in_mlflow=dg.MetadataValue.url(version.url),
            **headline,
        )


def _proposal(asset: AssetContext, bundle: Path, *, metrics: Mapping[str, float]) -> "PromotionProposal":
    """Return what `champion_comparison` found for this bundle; if it compared another one, say so in the proposal."""
    from macrec_pipeline.evaluation.promotion.version_card import metrics_card, version_card
    from macrec_pipeline.tracking import PromotionProposal
    from macrec_pipeline.tracking.registry import bundle_digest

    comparison = json.loads((asset.folder("champion_comparison") / COMPARISON).read_text(encoding="utf-8"))
    if comparison["bundle_digest"] != bundle_digest(bundle):
        comparison = {
            "problem": "champion_comparison measured another bundle, not the current one. Materialize "
            "champion_comparison again, then registered_model."
        }
    compared = "card" in comparison
    return PromotionProposal(
        over=comparison["champion"] if compared else None,
        passed=comparison.get("passed", False),
        automatic=asset.config.promotion.automatic,
        reason=comparison.get("reason") or comparison["problem"] or "",
        figures=comparison.get("figures", {}),
        card=version_card(asset.spec.title, comparison["card"] if compared else metrics_card(metrics)),
    )
