"""Measure the headline metrics on subsets of the test users, to show where each system is strong or weak.

The input is the ranks of the test targets, plus what was known about users and items before the test. The output is,
for each slice, the number of users and HR@10 and NDCG@10 with confidence intervals. Slices without users are omitted.
How often an item was trained on is counted in the training part of the histories alone: that is all that the evaluated
models have learned from, in a refresh too.
Shapes (docs/notation.md): U users, N items in the catalogue; `num_bands` consecutive ranges of a count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
TARGET_TRAINING, HISTORY_LENGTH, TARGET_POPULARITY = (
    "target_training_interactions",
    "history_length",
    "target_popularity",
)
_TARGET_MODALITY = {"image": "target_image", "text": "target_text"}
_CUTOFF = 10
# The first count of each band; a band ends before the next one begins, and the last one is open.
_TRAINING_BANDS = (0, 1, 3, 10)
_LENGTH_BANDS = (1, 5, 10, 20, 50)


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
        group: the property that divides the users, such as "history_length".
        part: the part's key within the group, such as "5-9".
        num_users: number of users in the part.
        systems: system -> its metrics on these users.
        num_items: for a part that is defined by a set of target items, the number of these items.
    """

    group: str
    part: str
    num_users: int
    systems: dict[str, SliceMetrics]
    num_items: int | None = None


@dataclass(frozen=True)
class _Division:
    """A property that divides the test users into parts.

    Attributes:
        group: the key of the property.
        parts: the keys of the parts.
        part_of_user: int64 [U], the position in `parts` of each user's part.
        num_items: for each part, the number of target items that define it, if a set of items does.
    """

    group: str
    parts: tuple[str, ...]
    part_of_user: IntArray
    num_items: tuple[int, ...] | None = None


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
        seed: the root seed; every slice and system has its own random stream.
    """
    counts = popularity_counts(histories, num_items=num_items)
    divisions = [
        _by_bands(TARGET_TRAINING, counts[histories.targets], _TRAINING_BANDS),
        _by_bands(HISTORY_LENGTH, histories.lengths - 1, _LENGTH_BANDS),
        _by_target_popularity(histories.targets, counts),
        *_by_missing_modality(histories, items_imputed, num_items=num_items),
    ]
    places = {system: np.where(found <= _CUTOFF, found, MISSED) for system, found in ranks.items()}
    return tuple(result for one in divisions for result in _measure(one, places, config=config, seed=seed))


def slices_document(slices: tuple[SliceResult, ...]) -> dict[str, Any]:
    """Arrange the results for `metrics.json`: group -> part -> {"num_users", "systems": {system: metrics}}."""
    document: dict[str, Any] = {}
    for result in slices:
        document.setdefault(result.group, {})[result.part] = {
            "num_users": result.num_users,
            **({} if result.num_items is None else {"num_items": result.num_items}),
            "systems": {
                system: {
                    "hr_10": metrics.hr_10,
                    "ndcg_10": metrics.ndcg_10,
                    "hr_10_ci": list(metrics.hr_10_ci),
                    "ndcg_10_ci": list(metrics.ndcg_10_ci),
                }
                for system, metrics in result.systems.items()
            },
        }
    return document


def _measure(
    division: _Division, places: Mapping[str, IntArray], *, config: EvaluationConfig, seed: int
) -> list[SliceResult]:
    """Measure each system in each part that has users.

    Args:
        division: the parts.
        places: system -> rank of each user's target if it counts, else 0: int64 [U].
        config: the bootstrap settings.
        seed: the root seed.
    """
    num_parts, all_places = len(division.parts), np.arange(_CUTOFF + 1)
    values = np.stack([hit_rate(all_places, cutoff=_CUTOFF), ndcg(all_places, cutoff=_CUTOFF)], axis=1)
    first_cells = division.part_of_user * len(all_places)
    users = {
        system: np.bincount(first_cells + found, minlength=num_parts * len(all_places)).reshape(num_parts, -1)
        for system, found in places.items()
    }  # system -> users by part and place, int64 [num_parts, places]

    def measure(part: int, system: str) -> SliceMetrics:
        users_by_place = users[system][part]
        stream = f"evaluation/slice/{division.group}/{division.parts[part]}/{system}"
        draws = bootstrap_means_of_groups(
            values, users_by_place, num_samples=config.bootstrap_samples, generator=numpy_generator(seed, stream)
        )
        hr_10, ndcg_10 = users_by_place @ values / users_by_place.sum()
        hr_10_ci, ndcg_10_ci = percentile_intervals(draws, confidence=config.confidence)
        return SliceMetrics(float(hr_10), hr_10_ci, float(ndcg_10), ndcg_10_ci)

    users_by_part = np.bincount(division.part_of_user, minlength=num_parts)
    return [
        SliceResult(
            division.group,
            division.parts[part],
            int(users_by_part[part]),
            {system: measure(part, system) for system in places},
            None if division.num_items is None else division.num_items[part],
        )
        for part in range(num_parts)
        if users_by_part[part]
    ]


def _by_bands(group: str, values: IntArray, starts: tuple[int, ...]) -> _Division:
    """Divide the users by a count, int64 [U], into bands that begin at `starts`, int [num_bands].

    A count below the first start, which no valid table has, belongs to the first band.
    """
    bands = np.maximum(np.searchsorted(starts, values, side="right") - 1, 0)
    names = tuple(
        f"{start}+" if end is None else str(start) if end == start + 1 else f"{start}-{end - 1}"
        for start, end in zip(starts, (*starts[1:], None), strict=True)
    )
    return _Division(group, names, bands)


def _by_target_popularity(targets: IntArray, counts: IntArray) -> _Division:
    """Divide the users by the popularity of their target: head, mid and tail.

    The head is the most popular items that together have a third of the training interactions. The mid is the items
    with the next third, and the tail is all others.

    Args:
        targets: int64 [U], the test targets.
        counts: int64 [N], the training interactions of each item.
    """
    order = np.argsort(-counts, kind="stable")
    above = np.cumsum(counts[order]) - counts[order]  # interactions of all items that are more popular
    third = np.empty(len(counts), dtype=np.int64)
    third[order] = np.minimum(3 * above // max(int(counts.sum()), 1), 2)
    third[counts == 0] = 2
    sizes = np.bincount(third, minlength=3)
    return _Division(TARGET_POPULARITY, ("head", "mid", "tail"), third[targets], tuple(int(size) for size in sizes))


def _by_missing_modality(
    histories: FlatHistories, items_imputed: Mapping[str, BoolArray], *, num_items: int
) -> list[_Division]:
    """Divide the users by whether their target has an image or a text, if any target lacks it."""
    divisions = []
    for modality, group in _TARGET_MODALITY.items():
        imputed = items_imputed.get(modality)
        if imputed is None:
            continue
        if imputed.shape != (num_items,):
            raise DataError(
                f"items_imputed[{modality!r}] has shape {imputed.shape}, expected ({num_items},): one flag per item."
            )
        missing = imputed[histories.targets].astype(bool)
        if missing.any():
            divisions.append(_Division(group, ("with", "without"), missing.astype(np.int64)))
    return divisions
