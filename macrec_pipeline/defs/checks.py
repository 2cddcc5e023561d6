"""Asset checks: what must hold before the assets downstream may be computed.

The rules themselves are functions of each stage that return problems as sentences; this module turns them into checks.
A blocking check that fails with severity ERROR stops everything downstream of its asset in the same run. Checks read
the stored files, so they also judge what something other than this pipeline wrote there.
"""

import json
import warnings
from collections.abc import Callable, Sequence

import dagster as dg

from macrec_pipeline.defs.manifest_keys import MAY_BE_UNTOUCHED, SKIPPED
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.defs.retries import prevent_run_retry
from macrec_pipeline.storage import AssetStore

MAX_PROBLEMS = 20

_FIX_DATA = (
    "What to do: correct the data set's files or its `cleaning` settings, then build the table again with "
    "`macrec run {dataset}`."
)
_FIX_EMBEDDINGS = (
    "What to do: check that the encoder and its settings fit the catalogue, then build the embeddings again with "
    "`macrec run {dataset}`."
)
_FIX_IDS = "What to do: assign new semantic IDs with `macrec run {dataset} --set identity.mode=new`."
_FIX_LIMITS = (
    "What to do: change the limit, set its `action` to `warn`, or fit a new quantizer (`identity.mode=new`), for "
    "example with more codes."
)
_FIX_MODEL = "Train longer or on more data before you serve this model; a short trial run is expected to lose."
_FIX_NEW_ITEMS = (
    "What to do: only the text and image routes can find new items. If the report shows under New items that a route "
    "alone recommends them, raise `decoding.beam_width`, because fusion prefers items that several routes find. If no "
    "route does, check that the new items have texts and images of their own."
)
_FIX_CHAMPION = (
    "Train a new model (`macrec run {dataset}`) or restore the previous champion (`macrec rollback {dataset}`)."
)


def _interactions_problems(store: AssetStore) -> list[str]:
    from macrec_pipeline.data.table_checks import interactions_problems

    return interactions_problems(store.read_table("interactions"))


def _items_problems(store: AssetStore) -> list[str]:
    from macrec_pipeline.data.table_checks import items_problems

    untouched = store.manifest("items").details.get(MAY_BE_UNTOUCHED, False)
    return items_problems(
        store.read_table("items"), store.read_table("interactions"), allow_items_without_interactions=untouched
    )


def _histories_problems(store: AssetStore) -> list[str]:
    from macrec_pipeline.data.histories.splits import period_from_details
    from macrec_pipeline.data.table_checks import histories_problems

    period = period_from_details(store.manifest("histories").details.get("split"))
    return histories_problems(
        *(store.read_table(name) for name in ("histories", "interactions", "items")), period=period
    )


def _text_embeddings_problems(store: AssetStore) -> list[str]:
    from macrec_pipeline.embeddings import embedding_problems

    return embedding_problems(store.read_table("text_embeddings"), store.read_table("items"))


def _image_embeddings_problems(store: AssetStore) -> list[str]:
    from macrec_pipeline.embeddings import embedding_problems

    return embedding_problems(store.read_table("image_embeddings"), store.read_table("items"))


def _semantic_ids_problems(store: AssetStore) -> list[str]:
    from macrec_pipeline.semantic_ids import semantic_id_problems

    return semantic_id_problems(store.read_table("semantic_ids"))


def _model_loses_to_popularity(store: AssetStore) -> list[str]:
    metrics = json.loads((store.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
    model, popularity = (metrics["systems"][name]["ndcg_10"] for name in ("macrec", "popularity"))
    if model > popularity:
        return []
    return [f"NDCG@10 of the model is {model:.4f}, but the most popular items reach {popularity:.4f}."]


def _new_items_never_recommended(store: AssetStore) -> list[str]:
    metrics = json.loads((store.folder("evaluation_report") / "metrics.json").read_text(encoding="utf-8"))
    new_items = metrics.get("new_items")
    if new_items is None:  # a report of an earlier version
        return []
    num_recommended = max(
        new_items[setting]["macrec"]["num_items"] for setting in ("systems", "systems_excluding_seen")
    )
    if not new_items["num_items"] or num_recommended:
        return []
    share = new_items["num_items"] / new_items["num_catalogue_items"]
    return [
        f"{new_items['num_items']:,} of the {new_items['num_catalogue_items']:,} items in the catalogue ({share:.1%}) "
        "are new, which means that no training interaction contains them, and none of them is among the first ten "
        f"recommendations of any of the {metrics['num_test_users']:,} test users. For "
        f"{new_items['num_target_users']:,} of these users, a new item came next."
    ]


def _champion_loses_to_popularity(store: AssetStore) -> list[str]:
    evaluation = json.loads((store.folder("champion_evaluation") / "evaluation.json").read_text(encoding="utf-8"))
    champion, popularity = evaluation["ndcg_10"], evaluation["popularity_ndcg_10"]
    if champion >= popularity:
        return []
    return [
        f"On the newest histories, NDCG@10 of the champion (version {evaluation['champion']}) is {champion:.4f}, but "
        f"the most popular items reach {popularity:.4f}."
    ]


def _problem_check(
    asset: str,
    *,
    name: str,
    description: str,
    find_problems: Callable[[AssetStore], Sequence[str]],
    advice: str,
    deps: Sequence[str] = (),
    blocking: bool = True,
    may_be_skipped: bool = False,
) -> dg.AssetChecksDefinition:
    """Build a check that fails if a function finds problems in the store.

    Args:
        asset: the checked asset.
        name: the check's name.
        description: what must hold, for Dagster's catalogue.
        find_problems: returns one sentence per problem.
        advice: what to do if the check fails; `{dataset}` is replaced.
        deps: further assets that the function reads.
        blocking: whether a failure stops what is downstream; otherwise it is a warning.
        may_be_skipped: whether the asset may have been skipped, in which case the check passes.
    """

    def evaluate(context: dg.AssetCheckExecutionContext, settings: Settings) -> dg.AssetCheckResult:
        dataset = context.partition_key
        store = settings.store(dataset)
        if may_be_skipped and (reason := store.manifest(asset).details.get(SKIPPED)):
            return dg.AssetCheckResult(passed=True, description=f"Nothing to check: {asset} was skipped, {reason}.")
        problems = list(find_problems(store))
        shown = problems[:MAX_PROBLEMS]
        return dg.AssetCheckResult(
            passed=not problems,
            severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
            description=" ".join([*shown, advice.format(dataset=dataset)]) if problems else "No problem found.",
            metadata={"problems": shown},
        )

    return _asset_check(evaluate, asset, name=name, description=description, deps=deps, blocking=blocking)


def _limits_check() -> dg.AssetChecksDefinition:
    """Build the check that compares the quality report of the semantic IDs with the limits in the settings."""

    def evaluate(context: dg.AssetCheckExecutionContext, settings: Settings) -> dg.AssetCheckResult:
        from macrec_pipeline.semantic_ids import limit_violations

        dataset = context.partition_key
        figures = settings.store(dataset).manifest("semantic_ids").details.get("quality", {}).get("worst", {})
        violations = limit_violations(figures, settings.config(dataset).identity.limits)
        blocks = any(violation.blocks for violation in violations)
        text = " ".join([*(violation.message for violation in violations), _FIX_LIMITS])
        return dg.AssetCheckResult(
            passed=not violations,
            severity=dg.AssetCheckSeverity.ERROR if blocks else dg.AssetCheckSeverity.WARN,
            description=text if violations else "All figures are within the limits of the settings.",
            metadata={**figures},
        )

    return _asset_check(
        evaluate,
        "semantic_ids",
        name="quality_is_within_limits",
        description="The figures of the quality report are within `identity.limits`. Each limit says whether crossing "
        "it blocks the run or only warns. The metadata has each figure, taken from the worse modality and its worst "
        "level.",
    )


def _asset_check(
    evaluate: Callable[[dg.AssetCheckExecutionContext, Settings], dg.AssetCheckResult],
    asset: str,
    *,
    name: str,
    description: str,
    deps: Sequence[str] = (),
    blocking: bool = True,
) -> dg.AssetChecksDefinition:
    def check(context: dg.AssetCheckExecutionContext, settings: Settings) -> dg.AssetCheckResult:
        result = evaluate(context, settings)
        if blocking and not result.passed and result.severity == dg.AssetCheckSeverity.ERROR:
            prevent_run_retry(context)
        return result

    with warnings.catch_warnings():
        # Dagster marks partitioned checks as a preview. Without partitions a check would load every partition.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        decorate = dg.asset_check(
            asset=asset,
            name=name,
            description=description,
            additional_deps=list(deps),
            blocking=blocking,
            partitions_def=DATASETS,
        )
        return decorate(check)


CHECKS = [
    _problem_check(
        "interactions",
        name="interactions_are_sound",
        description="Every interaction has a user, an item and a plausible time, and none is repeated. Every user has "
        "enough interactions for the split, and rows are in time order.",
        find_problems=_interactions_problems,
        advice=_FIX_DATA,
    ),
    _problem_check(
        "items",
        name="items_are_sound",
        description="Every item has a unique ID, `item_index` is the row number, and interactions refer to these items "
        "only.",
        find_problems=_items_problems,
        advice=_FIX_DATA,
        deps=["interactions"],
    ),
    _problem_check(
        "histories",
        name="no_leakage",
        description="No validation or test interaction is inside the training part of a history. Every history is "
        "exactly what the user did, in time order.",
        find_problems=_histories_problems,
        advice=_FIX_DATA,
        deps=["interactions", "items"],
    ),
    _problem_check(
        "text_embeddings",
        name="text_embeddings_are_sound",
        description="The embeddings are finite and not constant, with one row per item in the order of `items`.",
        find_problems=_text_embeddings_problems,
        advice=_FIX_EMBEDDINGS,
        deps=["items"],
        may_be_skipped=True,
    ),
    _problem_check(
        "image_embeddings",
        name="image_embeddings_are_sound",
        description="The embeddings are finite and not constant, with one row per item in the order of `items`.",
        find_problems=_image_embeddings_problems,
        advice=_FIX_EMBEDDINGS,
        deps=["items"],
        may_be_skipped=True,
    ),
    _problem_check(
        "semantic_ids",
        name="semantic_ids_are_unique",
        description="In each modality, every item has a semantic ID that no other item has.",
        find_problems=_semantic_ids_problems,
        advice=_FIX_IDS,
    ),
    _limits_check(),
    _problem_check(
        "evaluation_report",
        name="macrec_beats_popularity",
        description="The model reaches a higher NDCG@10 than recommending the most popular items. This is a warning "
        "only, because a short trial run is expected to lose.",
        find_problems=_model_loses_to_popularity,
        advice=_FIX_MODEL,
        blocking=False,
    ),
    _problem_check(
        "evaluation_report",
        name="new_items_are_recommended",
        description="If the catalogue has new items, which the model was never trained on, at least one of them is "
        "among the first ten recommendations of at least one test user. This is a warning only: the model works for "
        "all other items.",
        find_problems=_new_items_never_recommended,
        advice=_FIX_NEW_ITEMS,
        blocking=False,
    ),
    _problem_check(
        "champion_evaluation",
        name="champion_beats_popularity",
        description="On the newest histories, the champion reaches at least the NDCG@10 of recommending the most "
        "popular items. This is a warning only: the champion stays in service until someone replaces it.",
        find_problems=_champion_loses_to_popularity,
        advice=_FIX_CHAMPION,
        blocking=False,
    ),
]
