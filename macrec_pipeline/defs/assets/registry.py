"""The registry: the bundle as a model version that a service can load without this pipeline."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.assets.champion import COMPARISON
from macrec_pipeline.defs.assets.champion_refit import refitted_champion
from macrec_pipeline.defs.assets.refit import refitted_bundle
from macrec_pipeline.defs.automation import FRESHNESS
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.errors import ChampionMovedError

if TYPE_CHECKING:
    from macrec_pipeline.tracking import PromotionOutcome, PromotionProposal, Tracker

REFIT_TAG = "macrec.refit."
"""Prefix of the tags of a version that say how the registered bundle was refitted; absent without a refit."""


@dg.asset(
    deps=["recommender", "refitted_recommender", "evaluation_report", "champion_comparison", "champion_refit"],
    partitions_def=DATASETS,
    group_name="registry",
    kinds={"mlflow"},
    code_version="4",
    freshness_policy=FRESHNESS,
    description="The refitted bundle as a version of the model macrec-<dataset> in MLflow, with the alias @challenger. "
    "Its metrics are those of the evaluated bundle that was refitted. It also becomes @champion if there is none yet, "
    "or if the comparison allows it and `promotion.automatic` is on. If the comparison refuses it, the refit of the "
    "champion is registered too. Look at `decision` and `aliases`.",
)
def registered_model(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Register the bundle, decide on its promotion, and write both to `registration.json`."""
    with open_asset(context, settings, "registered_model") as asset:
        metrics = json.loads((asset.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
        headline = {name: value for name, value in metrics["systems"]["macrec"].items() if isinstance(value, float)}
        evaluated, tracker = asset.folder("recommender") / "bundle", settings.tracker()
        served, facts = refitted_bundle(asset) or (evaluated, None)
        proposal = _proposal(asset, evaluated, metrics=headline, refit=facts)
        version = tracker.register(
            served,
            dataset=asset.dataset,
            metrics=headline,
            dagster_run_id=context.run.run_id,
            run_id=asset.mlflow_run.run_id,
            tags={} if facts is None else {f"{REFIT_TAG}{name}": str(value) for name, value in facts.items()},
            evaluated_folder=None if facts is None else evaluated,
        )
        outcome = tracker.decide_promotion(version, asset.dataset, proposal)
        refit = _register_champion_refit(context, asset, tracker, proposal, outcome)
        registration = {**dataclasses.asdict(version), **dataclasses.asdict(outcome), **refit}
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
            **refit,
            **headline,
        )


def _register_champion_refit(
    context: dg.AssetExecutionContext,
    asset: AssetContext,
    tracker: "Tracker",
    proposal: "PromotionProposal",
    outcome: "PromotionOutcome",
) -> dict[str, str]:
    """Register the refit of the champion as the champion if the challenger was refused.

    Returns:
        What is added to the registration: `champion`, the URI of the refit, and `champion_decision`, a sentence; or the
        latter alone if another version became champion meanwhile. Empty if no champion was refitted.
    """
    from macrec_pipeline.evaluation.promotion.version_card import champion_refit_note, metrics_card, version_card
    from macrec_pipeline.tracking.registry import METRIC_TAG, bundle_digest

    found = refitted_champion(asset, challenger=bundle_digest(asset.folder("recommender") / "bundle"))
    if found is None or outcome.status != "refused":
        return {}
    champion, bundle, facts = found
    tags = tracker.version_tags(asset.dataset, champion)
    metrics = {name.removeprefix(METRIC_TAG): float(tags[name]) for name in tags if name.startswith(METRIC_TAG)}
    evaluated_version = tags.get(f"{REFIT_TAG}evaluated_version", str(champion))
    facts = facts | {"evaluated_version": evaluated_version}
    with tracker.bundle(asset.dataset, champion, evaluated=True) as evaluated:
        version = tracker.register(
            bundle,
            dataset=asset.dataset,
            metrics=metrics,
            dagster_run_id=context.run.run_id,
            run_id=asset.mlflow_run.run_id,
            tags={f"{REFIT_TAG}{name}": str(value) for name, value in facts.items()},
            evaluated_folder=evaluated,
            as_challenger=False,
        )
    note = champion_refit_note(**facts)
    card = version_card(asset.spec.title, metrics_card(metrics), note=note)
    reason = f"The challenger was refused: {proposal.reason}"
    try:
        change = tracker.promote_refit(version, asset.dataset, over=champion, card=card, reason=reason)
    except ChampionMovedError as error:
        return {"champion_decision": f"The refit of version {champion} is not used. {error}"}
    return {
        "champion": version.uri,
        "champion_decision": f"Version {change.champion.version} is the champion now. It is the evaluated model of "
        f"version {evaluated_version}, trained on all {facts['interactions']:,} interactions.",
    }


def _proposal(
    asset: AssetContext, bundle: Path, *, metrics: Mapping[str, float], refit: Mapping[str, Any] | None
) -> "PromotionProposal":
    """Return what `champion_comparison` found for this bundle; if it compared another one, say so in the proposal.

    Args:
        asset: the registration.
        bundle: the evaluated bundle.
        metrics: of the evaluated bundle.
        refit: what `refit.json` says about the refit that is registered; None if the evaluated bundle is registered.
    """
    from macrec_pipeline.evaluation.promotion.version_card import metrics_card, refit_note, version_card
    from macrec_pipeline.tracking import PromotionProposal
    from macrec_pipeline.tracking.registry import bundle_digest

    comparison = json.loads((asset.folder("champion_comparison") / COMPARISON).read_text(encoding="utf-8"))
    if comparison["bundle_digest"] != bundle_digest(bundle):
        comparison = {
            "problem": "champion_comparison measured another bundle, not the current one. Materialize "
            "champion_comparison again, then registered_model."
        }
    compared = "card" in comparison
    note = "" if refit is None else refit_note(**refit, test_users=_num_test_users(asset))
    return PromotionProposal(
        over=comparison["champion"] if compared else None,
        passed=comparison.get("passed", False),
        automatic=asset.config.promotion.automatic,
        reason=comparison.get("reason") or comparison["problem"] or "",
        figures=comparison.get("figures", {}),
        card=version_card(asset.spec.title, comparison["card"] if compared else metrics_card(metrics), note=note),
    )


def _num_test_users(asset: AssetContext) -> int:
    metrics = json.loads((asset.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
    return int(metrics["num_test_users"])
