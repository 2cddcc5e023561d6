"""The champion on the newest test users: against the challenger before it is registered, and by itself when asked."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg

from macrec_pipeline.defs.asset_context import AssetContext, stage
from macrec_pipeline.defs.presentation import markdown
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.errors import StorageError, TrackingError

if TYPE_CHECKING:
    from macrec_pipeline.evaluation.promotion.comparison import Answers
    from macrec_pipeline.evaluation.promotion.held_out import HeldOut
    from macrec_pipeline.recommender import RecommenderBundle

    Loaded = tuple[RecommenderBundle, int]  # and the bytes of its files

COMPARISON, EVALUATION = "comparison.json", "evaluation.json"


@dg.asset(
    deps=["histories", "items", "recommender"],
    partitions_def=DATASETS,
    group_name="evaluation",
    kinds={"torch", "json"},
    code_version="1",
    pool=GPU_POOL,
    description="The new bundle and the champion asked for the same test users now, and whether it may replace it.",
)
def champion_comparison(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Both bundles and the histories -> a folder with `comparison.json`, which may say that nothing was compared."""
    from macrec_pipeline.tracking.registry import bundle_digest

    with stage(context, settings, "champion_comparison") as work:
        bundle, champion = work.folder("recommender") / "bundle", settings.tracker().champion(work.dataset)
        document: dict[str, Any] = {"champion": champion, "bundle_digest": bundle_digest(bundle), "problem": None}
        if champion is not None:
            try:
                loaded = _load_champion(work, settings, champion)
            except (StorageError, TrackingError) as error:  # a broken champion must not keep its successor out
                context.log.warning(f"Nothing was compared: {error}")
                document["problem"] = f"Version {champion} is champion, but cannot be compared with. {error}"
            else:
                document |= _compare(work, bundle, loaded, champion=champion)
        with work.new_folder() as folder:
            (folder / COMPARISON).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return _report_comparison(work, document)


@dg.asset(
    deps=["histories", "items"],
    partitions_def=DATASETS,
    group_name="monitoring",
    kinds={"torch", "json"},
    code_version="1",
    pool=GPU_POOL,
    description="What @champion is worth on the newest histories, beside the most popular items; trains nothing.",
)
def champion_evaluation(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """The registered champion and the histories -> a folder with `evaluation.json`."""
    from macrec_pipeline.evaluation.promotion.comparison import against_popularity

    with stage(context, settings, "champion_evaluation") as work:
        champion = settings.tracker().champion(work.dataset)
        if champion is None:
            raise TrackingError(f"macrec-{work.dataset} has no champion yet: run `macrec run {work.dataset}`.")
        users = _users(work)
        (answers,) = _ask(work, users, [_load_champion(work, settings, champion)])
        found, difference = against_popularity(answers, users, **_resampling(work))
        document = {
            "champion": champion,
            "num_test_users": difference.num_users,
            **dataclasses.asdict(found),
            "popularity_ndcg_10": found.ndcg_10 - difference.difference,
            "above_popularity": dataclasses.asdict(difference),
        }
        with work.new_folder() as folder:
            (folder / EVALUATION).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        figures = {name: value for name, value in document.items() if isinstance(value, int | float)}
        return work.report(
            summary=f"version {champion}: HR@10 {found.hr_10:.4f}, NDCG@10 {found.ndcg_10:.4f}, "
            f"popular items {document['popularity_ndcg_10']:.4f}",
            **figures,
        )


def _compare(work: AssetContext, bundle: Path, champion_bundle: "Loaded", *, champion: int) -> dict[str, Any]:
    from macrec_pipeline.evaluation.promotion.comparison import compare
    from macrec_pipeline.evaluation.promotion.rules import judge
    from macrec_pipeline.evaluation.promotion.version_card import match_card

    users = _users(work)
    ours, theirs = _ask(work, users, [_load(work, bundle), champion_bundle])
    match = compare(ours, theirs, users, **_resampling(work))
    verdict = judge(match, work.config.promotion)
    return {
        "passed": verdict.passed,
        "reason": verdict.reason,
        "figures": match.figures(),
        "card": match_card(match, verdict, champion=champion),
    }


def _ask(work: AssetContext, users: "HeldOut", loaded: "list[Loaded]") -> "list[Answers]":
    from macrec_pipeline.evaluation.promotion.comparison import CUTOFF, Answers
    from macrec_pipeline.recommender import recommend_side_by_side

    bundles = [bundle for bundle, _ in loaded]
    found = recommend_side_by_side(bundles, users.inputs, k=CUTOFF, progress=work.progress)
    return [
        Answers(said.lists, bundle.semantic_ids, milliseconds=said.milliseconds, num_bytes=size)
        for said, (bundle, size) in zip(found, loaded, strict=True)
    ]


def _load_champion(work: AssetContext, settings: Settings, version: int) -> "Loaded":
    with settings.tracker().bundle(work.dataset, version) as folder:
        return _load(work, folder)


def _load(work: AssetContext, folder: Path) -> "Loaded":
    from macrec_pipeline.recommender import RecommenderBundle
    from macrec_pipeline.runtime.devices import prepare_device

    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    return RecommenderBundle.load(folder, device=prepare_device(work.config.runtime)), size


def _users(work: AssetContext) -> "HeldOut":
    from macrec_pipeline.evaluation.promotion.held_out import held_out

    return held_out(work.table("histories"), work.table("items")["item_id"].to_list())


def _resampling(work: AssetContext) -> dict[str, Any]:
    return {
        "num_samples": work.config.evaluation.bootstrap_samples,
        "confidence": work.config.promotion.confidence,
        "seed": work.config.seed,
    }


def _report_comparison(work: AssetContext, document: dict[str, Any]) -> dg.MaterializeResult[Any]:
    if "card" not in document:
        reason = document["problem"] or "there is no champion yet"
        return work.report(summary=f"nothing compared: {reason}", nothing_compared=reason)
    said = "may replace" if document["passed"] else "may not replace"
    return work.report(
        summary=f"{said} version {document['champion']}. {document['reason']}",
        champion=document["champion"],
        may_replace_it=document["passed"],
        reason=document["reason"],
        **document["figures"],
        comparison=markdown(document["card"]),
    )
