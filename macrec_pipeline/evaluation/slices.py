"""Measure the headline metrics on subsets of the test users, to show where the recommender is strong or weak.

The input is the ranks of the test targets, plus what was known about users and items before the test. The output is,
for each slice, the number of users and HR@10 and NDCG@10 with confidence intervals. Slices without users are omitted.
Shapes (docs/notation.md): U users, N items in the catalogue; `num_groups` groups of users with equal ranks.
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
# Modality -> the word in the names of the random streams. Another word would change the published intervals.
_MODALITY_STREAMS = {"image": "picture", "text": "text"}
_NOUN_PHRASES = {"image": "an image", "text": "text"}


@dataclass(frozen=True)
class SliceMetrics:
    """The metrics of one system on the users of a slice: means over the users, and their intervals."""

    hr_10: float
    hr_10_ci: Interval
    ndcg_10: float
    ndcg_10_ci: Interval


@dataclass(frozen=True)
class SliceResult:
    """The results for one part of the test users.

    Attributes:
        group: the property that divides the users, such as "history length".
        name: the part, with its bounds.
        num_users: number of users in the part.
        systems: system -> its metrics on these users.
    """

    group: str
    name: str
    num_users: int
    systems: dict[str, SliceMetrics]


@dataclass(frozen=True)
class _Slice:
    """A part of the test users: labels, the users in it (bool [U]), and the name of its random stream."""

    group: str
    name: str
    members: BoolArray
    stream: str


def measure_slices(
    histories: FlatHistories,
    ranks: Mapping[str, IntArray],
    *,
    num_items: int,
    items_imputed: Mapping[str, BoolArray],
    config: EvaluationConfig,
    seed: int,
) -> tuple[SliceResult, ...]:
    """Measure each system in each slice of the test users.

    Args:
        histories: the histories of the test users.
        ranks: system -> rank of each user's target, int64 [U], 1-based, 0 for a miss, in the order of `histories`.
        num_items: N, the size of the catalogue.
        items_imputed: "text" or "image" -> bool [N], true for items without that modality.
        config: the bootstrap settings.
        seed: the root seed; every slice has its own random stream.
    """
    slices = [*_by_history_length(histories), *_by_target_popularity(histories, num_items=num_items)]
    slices += _by_missing_modality(histories, items_imputed, num_items=num_items)
    results = []
    for one in slices:
        if not one.members.any():
            continue
        slice_ranks = {system: values[one.members] for system, values in ranks.items()}
        systems = _measure(slice_ranks, config=config, generator=numpy_generator(seed, one.stream))
        results.append(SliceResult(group=one.group, name=one.name, num_users=int(one.members.sum()), systems=systems))
    return tuple(results)


def _measure(
    ranks: Mapping[str, IntArray], *, config: EvaluationConfig, generator: np.random.Generator
) -> dict[str, SliceMetrics]:
    """Measure all systems on the same resamples.

    Users whose ranks agree in every system form a group and are drawn together.
    """
    places = np.stack(
        [np.where(values <= _CUTOFF, values, MISSED) for values in ranks.values()], axis=1
    )  # [U, systems]
    radix = (_CUTOFF + 1) ** np.arange(places.shape[1])
    _, first, group_sizes = np.unique(places @ radix, return_index=True, return_counts=True)
    groups = places[first]
    values = np.concatenate(
        [hit_rate(groups, cutoff=_CUTOFF), ndcg(groups, cutoff=_CUTOFF)], axis=1
    )  # [num_groups, 2 * systems]
    draws = bootstrap_means_of_groups(values, group_sizes, num_samples=config.bootstrap_samples, generator=generator)
    means = group_sizes @ values / group_sizes.sum()
    intervals = percentile_intervals(draws, confidence=config.confidence)
    num_systems = len(ranks)
    return {
        system: SliceMetrics(
            hr_10=float(means[column]),
            hr_10_ci=intervals[column],
            ndcg_10=float(means[num_systems + column]),
            ndcg_10_ci=intervals[num_systems + column],
        )
        for column, system in enumerate(ranks)
    }


def _slice(group: str, name: str, members: BoolArray) -> _Slice:
    return _Slice(group, name, members, stream=f"evaluation/slice/{group}/{name}")


def _by_history_length(histories: FlatHistories) -> list[_Slice]:
    """Divide the users into thirds by the length of their input; users with equal lengths stay together."""
    lengths = histories.lengths - 1
    ordered = np.sort(lengths)
    short = int(ordered[(len(ordered) - 1) // 3])
    medium = int(ordered[(len(ordered) - 1) * 2 // 3])
    return [
        _slice("history length", f"short: up to {short} items", lengths <= short),
        _slice("history length", f"medium: {short + 1} to {medium} items", (lengths > short) & (lengths <= medium)),
        _slice("history length", f"long: over {medium} items", lengths > medium),
    ]


def _by_target_popularity(histories: FlatHistories, *, num_items: int) -> list[_Slice]:
    """Divide the users by the popularity of their target: head, mid and tail.

    The head is the most popular items that together have a third of the training interactions. The mid is the items
    with the next third, and the tail is all others.
    """
    counts = popularity_counts(histories, num_items=num_items)
    order = np.argsort(-counts, kind="stable")
    above = np.cumsum(counts[order]) - counts[order]  # interactions of all items that are more popular
    third = np.empty(num_items, dtype=np.int64)
    third[order] = np.minimum(3 * above // max(int(counts.sum()), 1), 2)
    third[counts == 0] = 2
    sizes = np.bincount(third, minlength=3)
    return [
        _slice("target popularity", f"{name}: {size} items", third[histories.targets] == part)
        for part, (name, size) in enumerate(zip(("head", "mid", "tail"), sizes, strict=True))
    ]


def _by_missing_modality(
    histories: FlatHistories, items_imputed: Mapping[str, BoolArray], *, num_items: int
) -> list[_Slice]:
    """Divide the users by whether their target has an image or a text, if any target lacks it."""
    slices = []
    for modality, stream_word in _MODALITY_STREAMS.items():
        imputed = items_imputed.get(modality)
        if imputed is None:
            continue
        if imputed.shape != (num_items,):
            raise DataError(
                f"items_imputed[{modality!r}] has shape {imputed.shape}, expected ({num_items},): one flag per item."
            )
        missing = imputed[histories.targets].astype(bool)
        if missing.any():
            slices += [
                _Slice(
                    f"target's {modality}",
                    f"{preposition} {_NOUN_PHRASES[modality]}",
                    members,
                    stream=f"evaluation/slice/target's {stream_word}/{preposition} a {stream_word}",
                )
                for preposition, members in (("with", ~missing), ("without", missing))
            ]
    return slices
