"""The evaluation protocol: the full catalogue ranked, every test user counted once in every system.

What enters: `histories` and `predictions`. What leaves: `Evaluation`, with the systems of the recommender beside the
baselines, all on the same users, once with seen items allowed (the paper's protocol and the headline) and once with
the items of the input history excluded. U users, N items, R items a list.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.evaluation.contenders import BaselineLists, run_baselines
from macrec_pipeline.evaluation.flat_histories import IntArray, flat_histories
from macrec_pipeline.evaluation.metrics import MISSED, FloatArray, coverage, target_ranks, user_metrics
from macrec_pipeline.evaluation.predictions import BASELINES, FUSED_SYSTEM, POPULARITY, SASREC, Lists, predicted_lists
from macrec_pipeline.evaluation.protocol_description import LEAVE_ONE_OUT, describe_protocol
from macrec_pipeline.evaluation.slices import SliceResult, measure_slices
from macrec_pipeline.evaluation.statistics import (
    PairedDifference,
    bootstrap_rank_means,
    coverage_intervals,
    paired_rank_differences,
    percentile_intervals,
)
from macrec_pipeline.runtime.seeds import numpy_generator
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS

# HR@10 and NDCG@10 are always measured: the headline, the comparisons and the slices are made of them.
HEADLINE_CUTOFF = 10
# Each system has a stream of its own under it, so that another one more or less changes no number.
_STREAM = "evaluation/bootstrap"
_COMPARED = f"ndcg_{HEADLINE_CUTOFF}"
Metrics = dict[str, float | list[float]]


@dataclass(frozen=True)
class Comparison:
    """MACRec against another system on the same users, by `metric`; positive favours MACRec."""

    system: str
    against: str
    metric: str
    exclude_seen: bool
    result: PairedDifference


@dataclass(frozen=True)
class Evaluation:
    """What the test users say.

    Attributes:
        systems: system -> metric -> mean over the test users, and `<metric>_ci` -> [low, high]; seen items allowed.
        systems_excluding_seen: the same with the items of the input history taken out of every list.
        per_user: user_index, system, exclude_seen and the target's 1-based rank, null where it is not in the list.
        comparisons: paired differences of the fused system to every other one, in both settings.
        slices: the headline of parts of the test users, for the fused system and popularity, seen items allowed.
        num_test_users: U.
        num_items: N.
        protocol: how the numbers were made, as plain values.
    """

    systems: dict[str, Metrics]
    systems_excluding_seen: dict[str, Metrics]
    per_user: pl.DataFrame
    comparisons: tuple[Comparison, ...]
    slices: tuple[SliceResult, ...]
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
    contenders: BaselineLists | None = None,
    split: str = LEAVE_ONE_OUT,
) -> Evaluation:
    """Rank every test target in every system's list, run popularity and item-kNN, and say how sure the numbers are.

    Args:
        histories: schema HISTORIES; the input of a test user is `item_indices[:-1]`, the target `[-1]`. Users who are
            not tested count for the baselines' training alone.
        predictions: schema PREDICTIONS; system `macrec` and others, as `sasrec`; each with and without `exclude_seen`.
        num_items: N, the catalogue that is ranked.
        config: the settings of cutoffs, bootstrap and item-kNN.
        seed: root seed of the resamples.
        top_k: R, length of a list, the depth at which MRR is cut; None: the longest list, at least the largest cutoff.
        items_imputed: modality ("text", "image") -> bool [N], true where an item has none; each gives a slice.
        sasrec_settings: what the system `sasrec` was set to and which epoch was used, for the protocol.
        contenders: what `run_baselines` made of the same histories at this depth; None: it is run here.
        split: how targets were held out, for the protocol.

    Raises:
        DataError: a user is missing, doubled or unknown in a system, or a list holds what it must not.
        SchemaError: a table breaks its schema.
        ConfigError: the lists are shorter than the largest cutoff by `top_k`.
    """
    HISTORIES.check(histories)
    PREDICTIONS.check(predictions)
    untested, histories = histories.filter(~pl.col("tested")), histories.filter("tested")
    flat = flat_histories(histories, num_items=num_items, untested=untested)
    lists = predicted_lists(histories, predictions, flat=flat, num_items=num_items)
    depth = _list_length(lists, top_k=top_k, num_items=num_items, config=config)
    contenders = contenders or run_baselines(flat, num_items=num_items, top_k=depth, config=config)
    lists = {key: values[:, :depth] for key, values in _in_order(lists | contenders.lists).items()}
    settings = contenders.settings | ({SASREC: dict(sasrec_settings)} if sasrec_settings else {})
    ranks = {key: target_ranks(values, flat.targets) for key, values in lists.items()}
    cutoffs = _cutoffs(config)
    measured = {key: user_metrics(values, cutoffs=cutoffs) for key, values in ranks.items()}
    means = _with_intervals(measured, ranks, lists, num_items=num_items, config=config, seed=seed)
    return Evaluation(
        systems={system: values for (system, exclude), values in means.items() if not exclude},
        systems_excluding_seen={system: values for (system, exclude), values in means.items() if exclude},
        per_user=_per_user_table(histories, ranks),
        comparisons=_comparisons(ranks, depth=depth, config=config, seed=seed),
        slices=measure_slices(
            flat,
            {system: ranks[system, False] for system in (FUSED_SYSTEM, POPULARITY)},
            num_items=num_items,
            items_imputed=items_imputed or {},
            config=config,
            seed=seed,
        ),
        num_test_users=flat.num_users,
        num_items=num_items,
        protocol=describe_protocol(
            flat,
            depth=depth,
            num_items=num_items,
            config=config,
            cutoffs=cutoffs,
            seed=seed,
            baselines=settings,
            split=split,
        ),
    )


def metrics_document(
    evaluation: Evaluation,
    *,
    dataset: str,
    collision_rate: Mapping[str, Any],
    beam_agreement: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, Any]:
    """What `metrics.json` holds.

    Args:
        evaluation: what `evaluate` returned.
        dataset: the data set's name.
        collision_rate: "text" and "image", those that the catalogue has -> {"before": share, "after": share}.
        beam_agreement: route -> {"same_top_10", "overlap_10"}, beam search against exact scores, where it was measured.
    """
    return {
        "dataset": dataset,
        "num_test_users": evaluation.num_test_users,
        "num_items": evaluation.num_items,
        "systems": evaluation.systems,
        "systems_excluding_seen": evaluation.systems_excluding_seen,
        "collision_rate": {
            route: {when: float(rates[when]) for when in ("before", "after")} for route, rates in collision_rate.items()
        },
        "beam_agreement": {route: dict(shares) for route, shares in (beam_agreement or {}).items()},
        "protocol": evaluation.protocol,
    }


def _in_order(lists: Lists) -> Lists:
    """The recommender's systems as they come, then the baselines."""
    place = {system: number for number, system in enumerate(BASELINES)}
    return dict(sorted(lists.items(), key=lambda entry: place.get(entry[0][0], -1)))


def _list_length(lists: Lists, *, top_k: int | None, num_items: int, config: EvaluationConfig) -> int:
    largest = max(config.cutoffs)
    if top_k is None:
        return max([largest, *(int(values.shape[1]) for values in lists.values())])
    if top_k < min(largest, num_items):
        raise ConfigError(
            f"evaluation.cutoffs asks for k={largest}, but lists hold {top_k} items. Raise decoding.top_k to "
            f"{largest}, or lower the cutoffs."
        )
    return top_k


def _with_intervals(
    measured: Mapping[tuple[str, bool], dict[str, FloatArray]],
    ranks: Mapping[tuple[str, bool], IntArray],
    lists: Lists,
    *,
    num_items: int,
    config: EvaluationConfig,
    seed: int,
) -> dict[tuple[str, bool], Metrics]:
    """Means of every system and metric, each with its interval."""
    coverages = coverage_intervals(
        list(lists.values()),
        num_items=num_items,
        num_samples=config.bootstrap_samples,
        confidence=config.confidence,
        generator=numpy_generator(seed, f"{_STREAM}/coverage"),
    )
    results: dict[tuple[str, bool], Metrics] = {}
    for (key, columns), covered in zip(measured.items(), coverages, strict=True):
        by_rank = user_metrics(np.arange(lists[key].shape[1] + 1), cutoffs=_cutoffs(config))
        draws = bootstrap_rank_means(
            ranks[key],
            np.stack(list(by_rank.values()), axis=1),
            num_samples=config.bootstrap_samples,
            generator=_generator(seed, *key),
        )
        intervals = percentile_intervals(draws, confidence=config.confidence)
        result: Metrics = {name: float(column.mean()) for name, column in columns.items()}
        result["coverage"] = coverage(lists[key], num_items=num_items)
        result |= {f"{name}_ci": list(interval) for name, interval in zip(by_rank, intervals, strict=True)}
        results[key] = result | {"coverage_ci": list(covered)}
    return results


def _comparisons(
    ranks: Mapping[tuple[str, bool], IntArray], *, depth: int, config: EvaluationConfig, seed: int
) -> tuple[Comparison, ...]:
    """The fused system against every other one, user by user."""
    gains = user_metrics(np.arange(depth + 1), cutoffs=[HEADLINE_CUTOFF])[_COMPARED]
    return tuple(
        Comparison(
            FUSED_SYSTEM,
            system,
            _COMPARED,
            exclude_seen,
            paired_rank_differences(
                ranks[FUSED_SYSTEM, exclude_seen],
                ranks[system, exclude_seen],
                gains,
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
    return pl.concat(parts)  # in the order of system, exclude_seen and, as histories are, user_index
