"""Measure what recommendation lists are like besides their accuracy: diversity, novelty, exposure, and popularity bias.

The input is the recommendation lists, the ranks of the test targets, and how often each item was trained on. The output
is four figures per system. The first ten items of each list count.

- Intra-list diversity: the mean distance of two items of a list (Ziegler et al. 2005). The distance is the share of
  codes after the codes with which both semantic IDs start, averaged over the modalities: 0 for equal IDs, 1 for IDs
  that differ in the first code. `decoding.diversity` uses the same measure.
- Novelty: the mean self-information of a recommended item in bits, -log2 of its share of the training interactions
  (Zhou et al. 2010; Castells et al. 2011). One interaction is added per item, so that it is finite for new items.
- Exposure Gini: the Gini coefficient of how often each item of the catalogue is recommended: 0 if all items are
  recommended equally often, near 1 if all recommendations are of a single item.
- Popularity-debiased NDCG@10: the mean NDCG@10 with the weight (c + 1)^-0.5 per user, where c is the number of training
  interactions of the user's target, divided by the sum of the weights. Popular items are observed more often than
  others that are as relevant. If the probability of being observed is proportional to an item's true popularity
  (gamma = 1), the exponent is gamma / (gamma + 1) = 0.5 (Steck 2011, popularity-stratified recall).

Shapes (docs/notation.md): L levels, N items in the catalogue, U users; `list_length` is the length of a list.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.flat_histories import NO_ITEM, IntArray
from macrec_pipeline.evaluation.metrics import FloatArray, ndcg

DEPTH = 10
"""Number of items at the head of a list that count as recommended."""
DEBIASING_EXPONENT = 0.5
# Pairs of items that are compared at once, which bounds memory.
_USERS_AT_ONCE = 4_096

DEFINITIONS = {
    "intra_list_diversity": "How different the first ten items of a list are: the mean share of codes that follow the "
    "codes with which the semantic IDs of two of them start (0 to 1).",
    "novelty": "How unexpected the recommended items are: the mean self-information, log2(1 / share of the training "
    "interactions), in bits.",
    "exposure_gini": "How unequally the recommendations are spread over the catalogue: 0 if every item is recommended "
    "equally often, near 1 if a single item gets all of them.",
    "debiased_ndcg_10": "NDCG@10 in which users with a rarely trained target count more: the weight of a user is 1 "
    "divided by the square root of the training interactions of the target plus 1.",
}
"""Metric -> its definition in one sentence."""


@dataclass(frozen=True)
class ListQuality:
    """The figures of one system.

    Attributes:
        intra_list_diversity: in [0, 1]; None without semantic IDs, or if no list has two items.
        novelty: in bits; None if nothing is recommended.
        exposure_gini: in [0, 1]; None if nothing is recommended.
        debiased_ndcg_10: in [0, 1].
    """

    intra_list_diversity: float | None
    novelty: float | None
    exposure_gini: float | None
    debiased_ndcg_10: float


@dataclass(frozen=True)
class BeyondAccuracy:
    """The figures of all systems: with seen items allowed, and with the items of the input history excluded."""

    systems: dict[str, ListQuality]
    systems_excluding_seen: dict[str, ListQuality]

    def document(self) -> dict[str, Any]:
        """Return the result for `metrics.json`."""
        return {"definitions": DEFINITIONS, **asdict(self)}


def measure_beyond_accuracy(
    lists: Mapping[tuple[str, bool], IntArray],
    ranks: Mapping[tuple[str, bool], IntArray],
    *,
    targets: IntArray,
    training_counts: IntArray,
    listed: NDArray[np.bool_] | None = None,
    codes: Mapping[str, IntArray] | None = None,
) -> BeyondAccuracy:
    """Measure every system.

    Args:
        lists: (system, exclude_seen) -> int64 [U, list_length], best item first, padded with `NO_ITEM`.
        ranks: (system, exclude_seen) -> int64 [U], the rank of each user's target, 0 for a miss.
        targets: int64 [U].
        training_counts: int64 [N], training interactions of each item.
        listed: bool [N], the items that are in the catalogue; None for all.
        codes: {modality: int64 [N, L]}, semantic IDs; None for no intra-list diversity.
    """
    weights = (training_counts[targets] + 1.0) ** -DEBIASING_EXPONENT
    information = self_information(training_counts)
    in_catalogue = np.ones(len(training_counts), dtype=np.bool_) if listed is None else listed

    def measure(key: tuple[str, bool]) -> ListQuality:
        items = lists[key][:, :DEPTH]
        recommended = items[items != NO_ITEM]
        exposure = np.bincount(recommended, minlength=len(training_counts))[in_catalogue]
        return ListQuality(
            intra_list_diversity=None if codes is None else intra_list_diversity(items, codes),
            novelty=float(information[recommended].mean()) if len(recommended) else None,
            exposure_gini=gini(exposure) if len(recommended) else None,
            debiased_ndcg_10=float(np.average(ndcg(ranks[key], cutoff=DEPTH), weights=weights)),
        )

    by_setting = {
        exclude_seen: {system: measure((system, exclude_seen)) for system, setting in lists if setting == exclude_seen}
        for exclude_seen in (False, True)
    }
    return BeyondAccuracy(by_setting[False], by_setting[True])


def intra_list_diversity(lists: IntArray, codes: Mapping[str, IntArray]) -> float | None:
    """Compute the mean distance of two items of a list, averaged over the lists with at least two items.

    Args:
        lists: int64 [U, list_length], padded with `NO_ITEM` at the end.
        codes: {modality: int64 [N, L]}.
    """
    first, second = np.triu_indices(lists.shape[1], k=1)
    total, num_lists = 0.0, 0
    for begin in range(0, len(lists), _USERS_AT_ONCE):
        items = lists[begin : begin + _USERS_AT_ONCE]
        exists = (items != NO_ITEM)[:, first] & (items != NO_ITEM)[:, second]  # [users, pairs]
        num_pairs = exists.sum(axis=1)
        distance = np.mean([_distances(of_item[items], first, second) for of_item in codes.values()], axis=0)
        sums = np.where(exists, distance, 0.0).sum(axis=1)
        total += float((sums[num_pairs > 0] / num_pairs[num_pairs > 0]).sum())
        num_lists += int((num_pairs > 0).sum())
    return total / num_lists if num_lists else None


def self_information(counts: IntArray) -> FloatArray:
    """Compute -log2 of each item's share of the interactions, with one interaction added per item.

    Args:
        counts: int64 [N].

    Returns:
        float64 [N], in bits.
    """
    information: FloatArray = -np.log2((counts + 1.0) / (counts.sum() + len(counts)))
    return information


def gini(amounts: IntArray) -> float:
    """Compute the Gini coefficient of amounts, int64 [N], of which at least one is above 0."""
    ordered = np.sort(amounts).astype(np.float64)
    position = 2.0 * np.arange(1, len(ordered) + 1) - len(ordered) - 1
    return float((position * ordered).sum() / (len(ordered) * ordered.sum()))


def _distances(ids: IntArray, first: IntArray, second: IntArray) -> FloatArray:
    """Return the share of codes after the common prefix: int64 [users, list_length, L] -> float64 [users, pairs]."""
    equal = np.ones((len(ids), len(first)), dtype=np.bool_)
    shared = np.zeros(equal.shape)
    for level in range(ids.shape[2]):
        equal &= ids[:, first, level] == ids[:, second, level]
        shared += equal
    distances: FloatArray = 1.0 - shared / ids.shape[2]
    return distances
