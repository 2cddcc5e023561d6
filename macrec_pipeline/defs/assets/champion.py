"""The champion on the newest test users: compared with a new bundle before registration, and evaluated by itself."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.unlisted_items import evaluation_histories, listed_mask
from macrec_pipeline.errors import StorageError, TrackingError

if TYPE_CHECKING:
    from macrec_pipeline.evaluation.promotion.comparison import ModelRecommendations
    from macrec_pipeline.evaluation.promotion.evidence import Evidence
    from macrec_pipeline.evaluation.promotion.held_out import HeldOutUsers
    from macrec_pipeline.recommender import RecommenderBundle

    BundleAndSize = tuple[RecommenderBundle, int, str]  # the size of its files in bytes, and their digest

logger = logging.getLogger(__name__)

COMPARISON, EVALUATION = "comparison.json", "evaluation.json"


@dg.asset(
    deps=["histories", "items", "recommender"],
    partitions_def=DATASETS,
    group_name="evaluation",
    kinds={"torch", "json"},
    code_version="1",
    pool=GPU_POOL,
    description="The new bundle and the champion on the same test users, and whether the new one may replace it. Both "
    "recommend now, from the newest histories, and both as they were evaluated: a refit may have learned the test "
    "targets. Look at `reason` and the table `comparison`.",
)
def champion_comparison(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Compare the new bundle with the champion and write `comparison.json`, which also says if nothing was compared."""
    from macrec_pipeline.evaluation.promotion.held_out import newest_interaction
    from macrec_pipeline.tracking.registry import bundle_digest

    with open_asset(context, settings, "champion_comparison") as asset:
        bundle, champion = asset.folder("recommender") / "bundle", settings.tracker().champion(asset.dataset)
        document: dict[str, Any] = {"champion": champion, "bundle_digest": bundle_digest(bundle), "problem": None}
        histories = evaluation_histories(asset)
        evidence = _earlier_evidence(asset).with_origin(document["bundle_digest"], newest_interaction(histories))
        if champion is not None:
            try:
                champion_bundle = _load_champion(asset, settings, champion)
            except (StorageError, TrackingError) as error:  # a broken champion must not block its successor
                context.log.warning(f"The champion was not compared: {error}")
                document["problem"] = f"Version {champion} is the champion, but it cannot be compared. {error}"
            else:
                compared, evidence = _compare(asset, bundle, champion_bundle, histories, evidence, champion=champion)
                document |= compared
        with asset.new_folder() as folder:
            evidence.save(folder)
            (folder / COMPARISON).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return _report_comparison(asset, document)


@dg.asset(
    deps=["histories", "items"],
    partitions_def=DATASETS,
    group_name="monitoring",
    kinds={"torch", "json"},
    code_version="1",
    pool=GPU_POOL,
    description="How well @champion recommends on the newest histories, compared with the most popular items. The "
    "champion is measured as it was before its refit, which may have learned the test targets. Nothing is trained. "
    "Look at `ndcg_10` and `popularity_ndcg_10`.",
)
def champion_evaluation(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Evaluate the registered champion on the histories and write `evaluation.json`."""
    from macrec_pipeline.evaluation.promotion.comparison import compare_with_popularity

    with open_asset(context, settings, "champion_evaluation") as asset:
        champion = settings.tracker().champion(asset.dataset)
        if champion is None:
            raise TrackingError(f"macrec-{asset.dataset} has no champion yet: run `macrec run {asset.dataset}`.")
        users = _held_out_users(asset, evaluation_histories(asset))
        (answers,) = _recommend(asset, users, [_load_champion(asset, settings, champion)])
        metrics, difference = compare_with_popularity(answers, users, **_bootstrap_settings(asset))
        document = {
            "champion": champion,
            "num_test_users": difference.num_users,
            **dataclasses.asdict(metrics),
            "popularity_ndcg_10": metrics.ndcg_10 - difference.difference,
            "above_popularity": dataclasses.asdict(difference),
        }
        with asset.new_folder() as folder:
            (folder / EVALUATION).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        numbers = {name: value for name, value in document.items() if isinstance(value, int | float)}
        return asset.report(
            summary=f"version {champion}: HR@10 {metrics.hr_10:.4f}, NDCG@10 {metrics.ndcg_10:.4f}, "
            f"most popular items {document['popularity_ndcg_10']:.4f}",
            **numbers,
        )


def _compare(
    asset: AssetContext,
    bundle: Path,
    champion_bundle: "BundleAndSize",
    histories: pl.DataFrame,
    earlier: "Evidence",
    *,
    champion: int,
) -> "tuple[dict[str, Any], Evidence]":
    """Return the entries for `comparison.json`, and the evidence with this comparison."""
    from macrec_pipeline.evaluation.promotion.comparison import compare_models, ndcg_by_user
    from macrec_pipeline.evaluation.promotion.evidence import ChampionAge, paired_scores
    from macrec_pipeline.evaluation.promotion.held_out import newest_interaction, test_targets
    from macrec_pipeline.evaluation.promotion.rules import apply_rules
    from macrec_pipeline.evaluation.promotion.version_card import comparison_card

    users, challenger_bundle = _held_out_users(asset, histories), _load_bundle(asset, bundle)
    challenger_answers, champion_answers = _recommend(asset, users, [challenger_bundle, champion_bundle])
    match = compare_models(challenger_answers, champion_answers, users, **_bootstrap_settings(asset))
    scores = [ndcg_by_user(answers, users) for answers in (challenger_answers, champion_answers)]
    recipe, as_of = asset.config.recipe_digest(), newest_interaction(histories)
    evidence = earlier.with_comparison(
        champion=champion_bundle[2],
        challenger=challenger_bundle[2],
        recipe=recipe,
        as_of=as_of,
        targets=test_targets(histories, _item_ids(asset)),
        challenger_ndcg=scores[0],
        champion_ndcg=scores[1],
        max_weeks=asset.config.promotion.evidence_weeks,
    )
    age = ChampionAge(
        weeks=evidence.champion_weeks(as_of),
        unknown_items=len(users.catalogue - champion_answers.catalogue.keys()) / len(users.catalogue),
        unknown_targets=match.champion.unknown_targets,
    )
    pooled = evidence.pooled(recipe)
    verdict = apply_rules(match, asset.config.promotion, pooled=pooled, newest=paired_scores(*scores), age=age)
    return {
        "passed": verdict.passed,
        "reason": verdict.reason,
        "figures": match.figures() | pooled.figures() | age.figures(),
        "card": comparison_card(match, verdict, champion=champion, age=age),
    }, earlier if challenger_bundle[2] == champion_bundle[2] else evidence  # a model compared with itself shows nothing


def _earlier_evidence(asset: AssetContext) -> "Evidence":
    """Return the evidence of the run before; a damaged one is lost, and the log says so."""
    from macrec_pipeline.evaluation.promotion.evidence import Evidence

    try:
        return Evidence.load(asset.folder(asset.name)) if asset.store.has(asset.name) else Evidence()
    except StorageError as error:
        logger.warning("The evidence of earlier comparisons with the champion is lost, and starts again: %s", error)
        return Evidence()


def _recommend(
    asset: AssetContext, users: "HeldOutUsers", bundles: "list[BundleAndSize]"
) -> "list[ModelRecommendations]":
    from macrec_pipeline.evaluation.promotion.comparison import CUTOFF, ModelRecommendations
    from macrec_pipeline.recommender import recommend_in_turns

    results = recommend_in_turns([bundle for bundle, *_ in bundles], users.inputs, k=CUTOFF, progress=asset.progress)
    return [
        ModelRecommendations(result.lists, bundle.semantic_ids, milliseconds=result.milliseconds, num_bytes=num_bytes)
        for result, (bundle, num_bytes, _) in zip(results, bundles, strict=True)
    ]


def _load_champion(asset: AssetContext, settings: Settings, version: int) -> "BundleAndSize":
    with settings.tracker().bundle(asset.dataset, version, evaluated=True) as folder:
        return _load_bundle(asset, folder)


def _load_bundle(asset: AssetContext, folder: Path) -> "BundleAndSize":
    from macrec_pipeline.recommender import RecommenderBundle
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.tracking.registry import bundle_digest

    num_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return RecommenderBundle.load(folder, device=prepare_device(asset.config.runtime)), num_bytes, bundle_digest(folder)


def _held_out_users(asset: AssetContext, histories: pl.DataFrame) -> "HeldOutUsers":
    from macrec_pipeline.evaluation.promotion.held_out import held_out_users

    item_ids = _item_ids(asset)
    return held_out_users(histories, item_ids, listed=listed_mask(asset, num_items=len(item_ids)))


def _item_ids(asset: AssetContext) -> list[str]:
    item_ids: list[str] = asset.read_table("items")["item_id"].to_list()
    return item_ids


def _bootstrap_settings(asset: AssetContext) -> dict[str, Any]:
    return {
        "num_samples": asset.config.evaluation.bootstrap_samples,
        "confidence": asset.config.promotion.confidence,
        "seed": asset.config.seed,
    }


def _report_comparison(asset: AssetContext, document: dict[str, Any]) -> dg.MaterializeResult[Any]:
    if "card" not in document:
        reason = document["problem"] or "there is no champion yet"
        return asset.report(summary=f"nothing compared: {reason}", nothing_compared=reason)
    verdict = "may replace" if document["passed"] else "may not replace"
    return asset.report(
        summary=f"{verdict} version {document['champion']}. {document['reason']}",
        champion=document["champion"],
        may_replace_it=document["passed"],
        reason=document["reason"],
        **document["figures"],
        comparison=markdown(document["card"]),
    )
