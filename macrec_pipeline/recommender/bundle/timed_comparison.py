"""Several bundles recommend for the same histories in turns, so that their times can be compared.

The input is bundles, possibly of different catalogues, and histories of item ids; the output is the recommendations of
each bundle and its time per history. The bundles alternate from batch to batch, so other load on the machine affects
all of them alike. The median over the batches ignores those that were slowed down.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle

# Number of histories per turn.
BATCH_SIZE = 128
_WARM_UP_SIZE = 8


@dataclass(frozen=True)
class TimedRecommendations:
    """The recommendations of one bundle, and how long they took.

    Attributes:
        lists: item ids for each history, best first, in the order of the histories.
        milliseconds: time per history in the median turn, without loading and warming up.
    """

    lists: list[list[str]]
    milliseconds: float


def recommend_in_turns(
    bundles: Sequence[RecommenderBundle],
    histories: Sequence[Sequence[str]],
    *,
    k: int,
    progress: Progress = quiet_progress,
) -> list[TimedRecommendations]:
    """Let each bundle recommend as in a service: fused routes, its own beam width, unknown items skipped.

    Args:
        bundles: which of them goes first changes from turn to turn.
        histories: item ids, oldest first; at least one history.
        k: number of items per history; fewer if a bundle's catalogue is smaller.
        progress: receives the number of finished histories.

    Returns:
        One `TimedRecommendations` per bundle.
    """
    lists: list[list[list[str]]] = [[[] for _ in histories] for _ in bundles]
    seconds: list[list[float]] = [[] for _ in bundles]  # per history, in each turn
    for bundle in bundles:  # the first call includes one-time costs
        bundle.recommend_ids(histories[:_WARM_UP_SIZE], k=min(k, bundle.num_items))
    by_length = np.argsort([len(history) for history in histories], kind="stable")  # similar lengths share a batch
    for turn, begin in enumerate(range(0, len(by_length), BATCH_SIZE)):
        chosen = by_length[begin : begin + BATCH_SIZE]
        for number, bundle in sorted(enumerate(bundles), key=lambda pair: (pair[0] - turn) % len(bundles)):
            start = time.perf_counter()
            results = bundle.recommend_ids([histories[index] for index in chosen], k=min(k, bundle.num_items))
            seconds[number].append((time.perf_counter() - start) / len(chosen))
            for index, recommendation in zip(chosen, results, strict=True):
                lists[number][index] = recommendation.item_ids
        progress("comparing bundles", min(begin + BATCH_SIZE, len(histories)), len(histories))
    return [
        TimedRecommendations(lists_of_bundle, 1000 * float(np.median(times)))
        for lists_of_bundle, times in zip(lists, seconds, strict=True)
    ]
