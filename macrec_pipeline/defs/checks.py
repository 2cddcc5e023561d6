"""What must hold before the next asset may be computed: each rule is a function of its stage, here it becomes a check.

A blocking check that fails with severity ERROR stops everything downstream of its asset in the same run. Checks read
the tables as they lie on disk, so they also judge what someone else put there.
"""

import warnings
from collections.abc import Callable, Sequence

import dagster as dg

from macrec_pipeline.defs.asset_context import MAY_BE_UNTOUCHED, SKIPPED
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.defs.retries import leave_failed
from macrec_pipeline.storage import AssetStore

MAX_PROBLEMS = 20


def _interactions(store: AssetStore) -> list[str]:
    from macrec_pipeline.data.table_checks import interactions_problems

    return interactions_problems(store.read_table("interactions"))


def _items(store: AssetStore) -> list[str]:
    from macrec_pipeline.data.table_checks import items_problems

    untouched = store.manifest("items").details.get(MAY_BE_UNTOUCHED, False)
    return items_problems(store.read_table("items"), store.read_table("interactions"), may_be_untouched=untouched)


def _histories(store: AssetStore) -> list[str]:
    from macrec_pipeline.data.histories.splits import period_of
    from macrec_pipeline.data.table_checks import histories_problems

    period = period_of(store.manifest("histories").details.get("split"))
    return histories_problems(
        *(store.read_table(name) for name in ("histories", "interactions", "items")), period=period
    )


def _text_embeddings(store: AssetStore) -> list[str]:
    from macrec_pipeline.embeddings import embedding_problems

    return embedding_problems(store.read_table("text_embeddings"), store.read_table("items"))


def _image_embeddings(store: AssetStore) -> list[str]:
    from macrec_pipeline.embeddings import embedding_problems

    return embedding_problems(store.read_table("image_embeddings"), store.read_table("items"))


def _semantic_ids(store: AssetStore) -> list[str]:
    from macrec_pipeline.semantic_ids import semantic_id_problems

    return semantic_id_problems(store.read_table("semantic_ids"))


def _beats_popularity(store: AssetStore) -> list[str]:
    import json

    metrics = json.loads((store.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
    ours, theirs = (metrics["systems"][name]["ndcg_10"] for name in ("macrec", "popularity"))
    return [] if ours > theirs else [f"NDCG@10 of macrec is {ours:.4f}, of popularity {theirs:.4f}."]


def _champion_beats_popularity(store: AssetStore) -> list[str]:
    import json

    found = json.loads((store.folder("champion_evaluation") / "evaluation.json").read_text(encoding="utf-8"))
    ours, popular = found["ndcg_10"], found["popularity_ndcg_10"]
    if ours >= popular:
        return []
    return [
        f"NDCG@10 of version {found['champion']}, the champion, is {ours:.4f} on the newest histories, of popularity "
        f"{popular:.4f}. Train a new one (`macrec run DATASET`), or go back (`macrec rollback DATASET`)."
    ]


def _check(
    asset: str,
    *,
    name: str,
    description: str,
    find: Callable[[AssetStore], Sequence[str]],
    deps: Sequence[str] = (),
    blocking: bool = True,
    may_be_skipped: bool = False,
) -> dg.AssetChecksDefinition:
    def run(context: dg.AssetCheckExecutionContext, settings: Settings) -> dg.AssetCheckResult:
        dataset = context.partition_key
        store = settings.store(dataset)
        if may_be_skipped and (reason := store.manifest(asset).details.get(SKIPPED)):
            return dg.AssetCheckResult(passed=True, description=f"Nothing to check: {reason}.")
        problems = list(find(store))
        severity = dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN
        text = " ".join(problems[:MAX_PROBLEMS]) if problems else "Nothing found."
        return dg.AssetCheckResult(
            passed=not problems, severity=severity, description=text, metadata={"problems": problems[:MAX_PROBLEMS]}
        )

    return _as_check(run, asset, name=name, description=description, deps=deps, blocking=blocking)


def _limits_check() -> dg.AssetChecksDefinition:
    """The limits of the settings on the quality report: what crosses one blocks or warns, as the limit says."""

    def run(context: dg.AssetCheckExecutionContext, settings: Settings) -> dg.AssetCheckResult:
        from macrec_pipeline.semantic_ids import breaches

        dataset = context.partition_key
        figures = settings.store(dataset).manifest("semantic_ids").details.get("quality", {}).get("worst", {})
        crossed = breaches(figures, settings.config(dataset).identity.limits)
        severity = dg.AssetCheckSeverity.ERROR if any(each.blocks for each in crossed) else dg.AssetCheckSeverity.WARN
        text = " ".join(each.message for each in crossed) or "Within the limits of the settings."
        return dg.AssetCheckResult(passed=not crossed, severity=severity, description=text, metadata={**figures})

    description = (
        "The quality report of the IDs is within `identity.limits`; each limit says whether it blocks or warns."
    )
    return _as_check(run, "semantic_ids", name="quality_is_within_limits", description=description)


def _as_check(
    run: Callable[[dg.AssetCheckExecutionContext, Settings], dg.AssetCheckResult],
    asset: str,
    *,
    name: str,
    description: str,
    deps: Sequence[str] = (),
    blocking: bool = True,
) -> dg.AssetChecksDefinition:
    def judge(context: dg.AssetCheckExecutionContext, settings: Settings) -> dg.AssetCheckResult:
        verdict = run(context, settings)
        if blocking and not verdict.passed and verdict.severity == dg.AssetCheckSeverity.ERROR:
            leave_failed(context)
        return verdict

    with warnings.catch_warnings():
        # Partitioned checks are marked as a preview; without them a check would load every partition.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        decorate = dg.asset_check(
            asset=asset,
            name=name,
            description=description,
            additional_deps=list(deps),
            blocking=blocking,
            partitions_def=DATASETS,
        )
        return decorate(judge)


CHECKS = [
    _check(
        "interactions",
        name="interactions_are_sound",
        description="No missing or repeated id, no time out of range, nobody too short for leave-one-out, in order.",
        find=_interactions,
    ),
    _check(
        "items",
        name="items_are_sound",
        description="Ids are there and unique, indices are rows, and interactions speak of the same items.",
        find=_items,
        deps=["interactions"],
    ),
    _check(
        "histories",
        name="no_leakage",
        description="No validation or test interaction is inside the training part, and histories are what users did.",
        find=_histories,
        deps=["interactions", "items"],
    ),
    _check(
        "text_embeddings",
        name="text_embeddings_are_sound",
        description="Finite, not constant, and one row an item in the items' order.",
        find=_text_embeddings,
        deps=["items"],
        may_be_skipped=True,
    ),
    _check(
        "image_embeddings",
        name="image_embeddings_are_sound",
        description="Finite, not constant, and one row an item in the items' order.",
        find=_image_embeddings,
        deps=["items"],
        may_be_skipped=True,
    ),
    _check(
        "semantic_ids",
        name="semantic_ids_are_unique",
        description="Every item has one ID a modality that no other item has.",
        find=_semantic_ids,
    ),
    _limits_check(),
    _check(
        "evaluation_report",
        name="macrec_beats_popularity",
        description="A model that loses to the popular items should not be served. A warning: short runs lose.",
        find=_beats_popularity,
        blocking=False,
    ),
    _check(
        "champion_evaluation",
        name="champion_beats_popularity",
        description="A champion that has dropped below the popular items should be replaced. A warning: it serves on.",
        find=_champion_beats_popularity,
        blocking=False,
    ),
]
