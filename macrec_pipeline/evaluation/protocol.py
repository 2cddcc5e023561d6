"""The evaluation protocol: every system ranks the full catalogue for every test user.

The input is the `histories` and `predictions` tables. The output is `Evaluation`: the recommender's systems and the
baselines, all measured on the same users, once with seen items allowed (the paper's protocol and the headline) and once
with the items of the input history excluded. Both are also measured on the users whose target the data determine, which
excludes users with several interactions at the time of the target. A system is one way to make recommendations: the
recommender with all retrieval routes fused, one of its routes alone, or a baseline.
Shapes (docs/notation.md): U users, N items in the catalogue; `list_length` is the length of a recommendation list.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.evaluation.baselines import BaselineLists, popularity_counts, run_baselines
from macrec_pipeline.evaluation.beyond_accuracy import BeyondAccuracy, measure_beyond_accuracy
from macrec_pipeline.evaluation.flat_histories import FlatHistories, IntArray, flat_histories
from macrec_pipeline.evaluation.metrics import (
    COVERAGE_DEPTH,
    MISSED,
    FloatArray,
    coverage,
    target_ranks,
    user_metrics,
)
from macrec_pipeline.evaluation.new_items import NewItems, measure_new_items
from macrec_pipeline.evaluation.predictions import (
    BASELINES,
    FUSED_SYSTEM,
    SASREC,
    SystemLists,
    predicted_lists,
)
from macrec_pipeline.evaluation.slices import SliceResult, measure_slices, slices_document
from macrec_pipeline.evaluation.statistics import (
    PairedDifference,
    bootstrap_rank_means,
    coverage_intervals,
    paired_rank_differences,
    percentile_intervals,
)
from macrec_pipeline.runtime.seeds import numpy_generator
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS

# HR@10 and NDCG@10 are always measured because the headline, the comparisons and the slices use them.
HEADLINE_CUTOFF = 10
LEAVE_ONE_OUT = (
    "leave-one-out: the last item of each user is the test target, the item before it is the validation target, and "
    "the rest is used for training"
)
# Every system has its own random stream, so that adding or removing a system changes no other system's numbers.
_STREAM = "evaluation/bootstrap"
_COMPARED_METRIC = f"ndcg_{HEADLINE_CUTOFF}"
Metrics = dict[str, float | list[float]]


@dataclass(frozen=True)
class SystemComparison:
    """A paired comparison of MACRec with another system on the same users.

    Attributes:
        system: MACRec's fused system.
        against: the other system.
        metric: the metric that is compared.
        exclude_seen: whether seen items are excluded from the lists.
        result: the difference; a positive one favours MACRec.
    """

    system: str
    against: str
    metric: str
    exclude_seen: bool
    result: PairedDifference


@dataclass(frozen=True)
class DeterminedTargets:
    """The results on the test users whose target the data determine.

    For the other users, several interactions have the time of the target, and `cleaning.ties` chose which of them it
    is. The metrics are those of `Evaluation` without coverage, which depends on the number of users.

    Attributes:
        num_test_users: number of these users.
        systems: system -> metric -> mean over these users, and `<metric>_ci` -> [low, high]; seen items allowed. Empty
            if there are no such users.
        systems_excluding_seen: the same, with the items of the input history excluded from every list.
    """

    num_test_users: int
    systems: dict[str, Metrics]
    systems_excluding_seen: dict[str, Metrics]


@dataclass(frozen=True)
class Evaluation:
    """The results on the test users.

    Attributes:
        systems: system -> metric -> mean over the test users, and `<metric>_ci` -> [low, high]; seen items allowed.
        systems_excluding_seen: the same, with the items of the input history excluded from every list.
        per_user: columns user_index, system, exclude_seen and rank (1-based rank of the target, null if it is not in
            the list).
        comparisons: paired differences between the fused system and every other system, in both settings.
        slices: headline metrics on parts of the test users, for the fused system and the baselines; seen items
            allowed.
        new_items: how often each system recommends items that it was never trained on.
        beyond_accuracy: diversity, novelty, exposure and popularity-debiased NDCG@10 of each system.
        determined: the metrics of the users whose target the data determine.
        num_test_users: U.
        num_items: N.
        protocol: how the numbers were obtained, as plain values.
    """

    systems: dict[str, Metrics]
    systems_excluding_seen: dict[str, Metrics]
    per_user: pl.DataFrame
    comparisons: tuple[SystemComparison, ...]
    slices: tuple[SliceResult, ...]
    new_items: NewItems
    beyond_accuracy: BeyondAccuracy
    determined: DeterminedTargets
    num_test_users: int
    num_items: int
    protocol: dict[str, Any]


def evaluate(
    histories: pl.DataFrame,
    predictions: pl.DataFrame,
    *,
    num_items: int,
    config: EvaluationConfig,
    seed: int,
    top_k: int | None = None,
    items_imputed: Mapping[str, np.ndarray] | None = None,
    sasrec_settings: Mapping[str, Any] | None = None,
    baselines: BaselineLists | None = None,
    split: str = LEAVE_ONE_OUT,
    listed: NDArray[np.bool_] | None = None,
    codes: Mapping[str, IntArray] | None = None,
) -> Evaluation:
    """Measure every system on every test user, run popularity and item-kNN, and compute confidence intervals.

    Args:
        histories: schema HISTORIES. The input of a test user is `item_indices[:-1]`, the target `item_indices[-1]`.
            Users who are not tested are only used to fit the baselines.
        predictions: schema PREDICTIONS. Contains the system `macrec` and possibly others, such as `sasrec`, each with
            and without `exclude_seen`.
        num_items: N, the size of the catalogue that is ranked.
        config: the settings of the cutoffs, the bootstrap and item-kNN.
        seed: root seed of the resamples.
        top_k: length of the lists, which is also the depth at which MRR is cut. None: the length of the longest list,
            but at least the largest cutoff.
        items_imputed: modality ("text", "image") -> bool [N], true for items without that modality. Each modality
            gives two slices: targets that have it and targets that lack it.
        sasrec_settings: settings of the system `sasrec` and the epoch that was used, for the protocol.
        baselines: the result of `run_baselines` on the same histories at this list length. None: run them here.
        split: how the targets were held out, for the protocol.
        listed: bool [N], the items that may be recommended; None for all. The others have left the catalogue.
        codes: {modality: int64 [N, L]}, the semantic IDs; None for no intra-list diversity.

    Raises:
        DataError: a user is missing, duplicated or unknown in a system, or a list contains an item that it must not.
        SchemaError: a table violates its schema.
        ConfigError: `top_k` is smaller than the largest cutoff.
    """
    HISTORIES.check(histories)
    PREDICTIONS.check(predictions)
    untested, histories = histories.filter(~pl.col("tested")), histories.filter("tested")
    flat = flat_histories(histories, num_items=num_items, untested=untested)
    lists = predicted_lists(histories, predictions, flat=flat, num_items=num_items)
    list_length = _list_length(lists, top_k=top_k, num_items=num_items, config=config)
    baselines = baselines or run_baselines(flat, num_items=num_items, top_k=list_length, config=config, listed=listed)
    lists = {key: values[:, :list_length] for key, values in _baselines_last(lists | baselines.lists).items()}
    baseline_settings = baselines.settings | ({SASREC: dict(sasrec_settings)} if sasrec_settings else {})
    ranks = {key: target_ranks(values, flat.targets) for key, values in lists.items()}
    metrics_by_user = {key: user_metrics(values, cutoffs=_cutoffs(config)) for key, values in ranks.items()}
    means = _with_intervals(metrics_by_user, ranks, lists, num_items=num_items, config=config, seed=seed)
    return Evaluation(
        systems={system: values for (system, exclude_seen), values in means.items() if not exclude_seen},
        systems_excluding_seen={system: values for (system, exclude_seen), values in means.items() if exclude_seen},
        per_user=_per_user_table(histories, ranks),
        comparisons=_comparisons(ranks, list_length=list_length, config=config, seed=seed),
        slices=measure_slices(
            flat,
            {system: ranks[system, False] for system in (FUSED_SYSTEM, *BASELINES) if (system, False) in ranks},
            num_items=num_items,
            items_imputed=items_imputed or {},
            config=config,
            seed=seed,
        ),
        new_items=measure_new_items(flat, lists, num_items=num_items, config=config, seed=seed, listed=listed),
        beyond_accuracy=measure_beyond_accuracy(
            lists,
            ranks,
            targets=flat.targets,
            training_counts=popularity_counts(flat, num_items=num_items),
            listed=listed,
            codes=codes,
        ),
        determined=_measure_determined(
            ranks, (histories["num_at_target_time"] == 1).to_numpy(), list_length=list_length, config=config, seed=seed
        ),
        num_test_users=flat.num_users,
        num_items=num_items,
        protocol=_describe_protocol(
            flat, list_length=list_length, config=config, seed=seed, baseline_settings=baseline_settings, split=split
        ),
    )


def metrics_document(
    evaluation: Evaluation,
    *,
    dataset: str,
    collision_rate: Mapping[str, Any],
    beam_agreement: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """Build the content of `metrics.json`.

    Args:
        evaluation: the result of `evaluate`.
        dataset: name of the data set.
        collision_rate: modality -> {"before": share, "after": share}, before and after collision resolution, for the
            modalities that the catalogue has.
        beam_agreement: retrieval route -> {"same_top_10", "overlap_10"}, the agreement of beam search with exact
            scores, where it was measured.
    """
    return {
        "dataset": dataset,
        "num_test_users": evaluation.num_test_users,
        "num_items": evaluation.num_items,
        "systems": evaluation.systems,
        "systems_excluding_seen": evaluation.systems_excluding_seen,
        "collision_rate": {
            modality: {when: float(rates[when]) for when in ("before", "after")}
            for modality, rates in collision_rate.items()
        },
        "determined_targets": asdict(evaluation.determined),
        "slices": slices_document(evaluation.slices),
        "new_items": evaluation.new_items.document(),
        "beyond_accuracy": evaluation.beyond_accuracy.document(),
        "beam_agreement": {route: dict(shares) for route, shares in (beam_agreement or {}).items()},
        "protocol": evaluation.protocol,
    }


def _baselines_last(lists: SystemLists) -> SystemLists:
    """Sort the lists: the recommender's systems in their present order, then the baselines."""
    position = {system: number for number, system in enumerate(BASELINES)}
    return dict(sorted(lists.items(), key=lambda entry: position.get(entry[0][0], -1)))


def _list_length(lists: SystemLists, *, top_k: int | None, num_items: int, config: EvaluationConfig) -> int:
    largest_cutoff = max(config.cutoffs)
    if top_k is None:
        return max([largest_cutoff, *(int(values.shape[1]) for values in lists.values())])
    if top_k < min(largest_cutoff, num_items):
        raise ConfigError(
            f"`evaluation.cutoffs` contains k={largest_cutoff}, but the lists have only {top_k} items. Raise "
            f"`decoding.top_k` to {largest_cutoff}, or lower the cutoffs."
        )
    return top_k


def _with_intervals(
    metrics_by_user: Mapping[tuple[str, bool], dict[str, FloatArray]],
    ranks: Mapping[tuple[str, bool], IntArray],
    lists: SystemLists,
    *,
    num_items: int,
    config: EvaluationConfig,
    seed: int,
) -> dict[tuple[str, bool], Metrics]:
    """Compute the mean and the interval of every metric of every system."""
    coverages = coverage_intervals(
        list(lists.values()),
        num_items=num_items,
        num_samples=config.bootstrap_samples,
        confidence=config.confidence,
        generator=numpy_generator(seed, f"{_STREAM}/coverage"),
    )
    results: dict[tuple[str, bool], Metrics] = {}
    for (key, columns), coverage_interval in zip(metrics_by_user.items(), coverages, strict=True):
        result: Metrics = {name: float(column.mean()) for name, column in columns.items()}
        result["coverage"] = coverage(lists[key], num_items=num_items)
        result |= _intervals(
            ranks[key], list_length=lists[key].shape[1], config=config, generator=_generator(seed, *key)
        )
        results[key] = result | {"coverage_ci": list(coverage_interval)}
    return results


def _intervals(
    ranks: IntArray, *, list_length: int, config: EvaluationConfig, generator: np.random.Generator
) -> dict[str, list[float]]:
    """Compute `<metric>_ci` of every metric that is a mean over users; `ranks` is int64 [U], one per user."""
    metrics_by_rank = user_metrics(np.arange(list_length + 1), cutoffs=_cutoffs(config))
    draws = bootstrap_rank_means(
        ranks,
        np.stack(list(metrics_by_rank.values()), axis=1),
        num_samples=config.bootstrap_samples,
        generator=generator,
    )
    intervals = percentile_intervals(draws, confidence=config.confidence)
    return {f"{name}_ci": list(interval) for name, interval in zip(metrics_by_rank, intervals, strict=True)}


def _measure_determined(
    ranks: Mapping[tuple[str, bool], IntArray],
    determined: NDArray[np.bool_],
    *,
    list_length: int,
    config: EvaluationConfig,
    seed: int,
) -> DeterminedTargets:
    """Measure every system on some of the users.

    Args:
        ranks: (system, exclude_seen) -> int64 [U], the rank of each user's target, 0 for a miss.
        determined: bool [U], the users whose target the data determine.
        list_length: length of the lists.
        config: the settings of the cutoffs and the bootstrap.
        seed: root seed of the resamples.
    """
    metrics_by_rank = user_metrics(np.arange(list_length + 1), cutoffs=_cutoffs(config))
    by_setting: dict[bool, dict[str, Metrics]] = {False: {}, True: {}}
    for (system, exclude_seen), all_ranks in ranks.items() if determined.any() else ():
        found = all_ranks[determined]
        shares = np.bincount(found, minlength=list_length + 1) / len(found)  # of the users, by rank
        generator = _generator(seed, f"determined/{system}", exclude_seen)
        by_setting[exclude_seen][system] = {
            **{name: float(shares @ column) for name, column in metrics_by_rank.items()},
            **_intervals(found, list_length=list_length, config=config, generator=generator),
        }
    return DeterminedTargets(int(determined.sum()), systems=by_setting[False], systems_excluding_seen=by_setting[True])


def _comparisons(
    ranks: Mapping[tuple[str, bool], IntArray], *, list_length: int, config: EvaluationConfig, seed: int
) -> tuple[SystemComparison, ...]:
    """Compare the fused system with every other system, user by user."""
    metric_by_rank = user_metrics(np.arange(list_length + 1), cutoffs=[HEADLINE_CUTOFF])[_COMPARED_METRIC]
    return tuple(
        SystemComparison(
            FUSED_SYSTEM,
            system,
            _COMPARED_METRIC,
            exclude_seen,
            paired_rank_differences(
                ranks[FUSED_SYSTEM, exclude_seen],
                ranks[system, exclude_seen],
                metric_by_rank,
                num_samples=config.bootstrap_samples,
                confidence=config.confidence,
                generator=_generator(seed, f"{FUSED_SYSTEM}-{system}", exclude_seen),
            ),
        )
        for system, exclude_seen in sorted(ranks, key=lambda key: key[1])
        if system != FUSED_SYSTEM
    )


def _generator(seed: int, system: str, exclude_seen: bool) -> np.random.Generator:
    return numpy_generator(seed, f"{_STREAM}/{system}/{'unseen' if exclude_seen else 'all'}")


def _cutoffs(config: EvaluationConfig) -> list[int]:
    return sorted({*config.cutoffs, HEADLINE_CUTOFF})


def _per_user_table(histories: pl.DataFrame, ranks: Mapping[tuple[str, bool], IntArray]) -> pl.DataFrame:
    parts = [
        pl.DataFrame({"user_index": histories["user_index"], "rank": values})
        .with_columns(
            pl.lit(system).alias("system"),
            pl.lit(exclude_seen).alias("exclude_seen"),
            pl.when(pl.col("rank") != MISSED).then(pl.col("rank")).alias("rank"),
        )
        .select("user_index", "system", "exclude_seen", "rank")
        for (system, exclude_seen), values in sorted(ranks.items())
    ]
    return pl.concat(parts)  # sorted by system, exclude_seen and user_index, because histories are sorted by user


def _describe_protocol(
    flat: FlatHistories,
    *,
    list_length: int,
    config: EvaluationConfig,
    seed: int,
    baseline_settings: Mapping[str, Mapping[str, Any]],
    split: str,
) -> dict[str, Any]:
    """Describe how the numbers were obtained, as plain values for `metrics.json` and the report.

    `test_targets_seen_before` counts the test targets that are repeats of an item in the user's own input.
    """
    users, items = flat.without_last(1)
    target_seen = np.zeros(flat.num_users, dtype=bool)
    target_seen[users[items == flat.targets[users]]] = True
    return {
        "split": split,
        "candidates": "the full catalogue",
        "headline": "seen items allowed",
        "list_length": list_length,
        "cutoffs": _cutoffs(config),
        "mrr_depth": list_length,
        "coverage_depth": COVERAGE_DEPTH,
        "interval": "percentile bootstrap over the test users; for coverage, shifted to the measured value",
        "bootstrap_samples": config.bootstrap_samples,
        "confidence": config.confidence,
        "seed": seed,
        **{system: dict(settings) for system, settings in baseline_settings.items()},
        "test_targets_seen_before": int(target_seen.sum()),
    }
