"""Where the recommender is good and where it is not: the headline for parts of the test users.

What enters: the ranks of the targets and what is known of users and items before the test. What leaves: for each
slice the number of users and HR@10 and NDCG@10 with intervals. Slices with no users are left out. U users, N items.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.baselines import popularity_counts
from macrec_pipeline.evaluation.flat_histories import FlatHistories, IntArray
from macrec_pipeline.evaluation.metrics import MISSED, hit_rate, ndcg
from macrec_pipeline.evaluation.statistics import Interval, bootstrap_means_of_groups, percentile_intervals
from macrec_pipeline.runtime.seeds import numpy_generator

BoolArray = NDArray[np.bool_]
_CUTOFF = 10
_MODALITIES = {"image": "picture", "text": "text"}


@dataclass(frozen=True)
class SliceMetrics:
    """Means over the users of a slice, and their intervals."""

    hr_10: float
    hr_10_ci: Interval
    ndcg_10: float
    ndcg_10_ci: Interval


@dataclass(frozen=True)
class SliceResult:
    """One part of the test users.

    Attributes:
        group: what the users are parted by, as in "history length".
        name: which part, with its bounds.
        num_users: users in it.
        systems: system -> its metrics there.
    """

    group: str
    name: str
    num_users: int
    systems: dict[str, SliceMetrics]


def measure_slices(
    histories: FlatHistories,
    ranks: Mapping[str, IntArray],
    *,
    num_items: int,
    items_imputed: Mapping[str, BoolArray],
    config: EvaluationConfig,
    seed: int,
) -> tuple[SliceResult, ...]:
    """Measure each system of `ranks` (int64 [U], 1-based, 0 missed) in each slice.

    Args:
        histories: the test users, in the order of the ranks.
        ranks: system -> rank of each user's target.
        num_items: N.
        items_imputed: "text" or "image" -> bool [N], true where an item has no such modality.
        config: bootstrap settings.
        seed: root seed; each slice has a stream of its own.
    """
    parts = [*_by_history_length(histories), *_by_target_popularity(histories, num_items=num_items)]
    parts += _by_missing_modality(histories, items_imputed, num_items=num_items)
    results = []
    for group, name, members in parts:
        if not members.any():
            continue
        own = {system: values[members] for system, values in ranks.items()}
        systems = _measure(own, config=config, seed=seed, stream=f"evaluation/slice/{group}/{name}")
        results.append(SliceResult(group=group, name=name, num_users=int(members.sum()), systems=systems))
    return tuple(results)


def _measure(
    ranks: Mapping[str, IntArray], *, config: EvaluationConfig, seed: int, stream: str
) -> dict[str, SliceMetrics]:
    """Each system on the same users and resamples; users whose ranks agree in every system are drawn as a group."""
    places = np.stack(
        [np.where(values <= _CUTOFF, values, MISSED) for values in ranks.values()], axis=1
    )  # [U, systems]
    radix = (_CUTOFF + 1) ** np.arange(places.shape[1])
    _, first, num_members = np.unique(places @ radix, return_index=True, return_counts=True)
    groups = places[first]
    values = np.concatenate([hit_rate(groups, cutoff=_CUTOFF), ndcg(groups, cutoff=_CUTOFF)], axis=1)  # [G, 2 systems]
    draws = bootstrap_means_of_groups(
        values, num_members, num_samples=config.bootstrap_samples, generator=numpy_generator(seed, stream)
    )
    means = num_members @ values / num_members.sum()
    intervals = percentile_intervals(draws, confidence=config.confidence)
    count = len(ranks)
    return {
        system: SliceMetrics(
            hr_10=float(means[place]),
            hr_10_ci=intervals[place],
            ndcg_10=float(means[count + place]),
            ndcg_10_ci=intervals[count + place],
        )
        for place, system in enumerate(ranks)
    }


def _by_history_length(histories: FlatHistories) -> list[tuple[str, str, BoolArray]]:
    """Thirds of the users by the length of their input; users of one length stay together."""
    lengths = histories.lengths - 1
    ordered = np.sort(lengths)
    short = int(ordered[(len(ordered) - 1) // 3])
    medium = int(ordered[(len(ordered) - 1) * 2 // 3])
    return [
        ("history length", f"short: up to {short} items", lengths <= short),
        ("history length", f"medium: {short + 1} to {medium} items", (lengths > short) & (lengths <= medium)),
        ("history length", f"long: over {medium} items", lengths > medium),
    ]


def _by_target_popularity(histories: FlatHistories, *, num_items: int) -> list[tuple[str, str, BoolArray]]:
    """Head, mid and tail: the most popular items that hold a third of the training interactions, the next, the rest."""
    counts = popularity_counts(histories, num_items=num_items)
    order = np.argsort(-counts, kind="stable")
    above = np.cumsum(counts[order]) - counts[order]  # interactions of all items that are more popular
    third = np.empty(num_items, dtype=np.int64)
    third[order] = np.minimum(3 * above // max(int(counts.sum()), 1), 2)
    third[counts == 0] = 2
    sizes = np.bincount(third, minlength=3)
    return [
        ("target popularity", f"{name}: {size} items", third[histories.targets] == part)
        for part, (name, size) in enumerate(zip(("head", "mid", "tail"), sizes, strict=True))
    ]


def _by_missing_modality(
    histories: FlatHistories, items_imputed: Mapping[str, BoolArray], *, num_items: int
) -> list[tuple[str, str, BoolArray]]:
    parts = []
    for modality, label in _MODALITIES.items():
        imputed = items_imputed.get(modality)
        if imputed is None:
            continue
        if imputed.shape != (num_items,):
            raise DataError(f"items_imputed[{modality!r}] has shape {imputed.shape}, expected ({num_items},).")
        missing = imputed[histories.targets].astype(bool)
        if missing.any():
            parts += [
                (f"target's {label}", f"with a {label}", ~missing),
                (f"target's {label}", f"without a {label}", missing),
            ]
    return parts
