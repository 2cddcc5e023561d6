"""Several bundles asked for the same histories, a batch each in turn, so that their times can be compared.

In: bundles, of whatever catalogues, and histories of item ids. Out: what each recommends, and how long it took. The
machine's other work then hits all of them alike, which it would not if one followed the other, and a turn that it hits
hard does not count, since the median turn is told.
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

BATCH = 128
"""Histories a turn."""
_WARM_UP = 8


@dataclass(frozen=True)
class TimedRecommendations:
    """What one bundle said.

    Attributes:
        lists: item ids of each history, best first, in the order of the histories.
        milliseconds: a history, in the median turn; loading and warming up are not in it.
    """

    lists: list[list[str]]
    milliseconds: float


def recommend_side_by_side(
    bundles: Sequence[RecommenderBundle],
    histories: Sequence[Sequence[str]],
    *,
    k: int,
    progress: Progress = quiet_progress,
) -> list[TimedRecommendations]:
    """Ask each bundle as a service would: its routes fused, its own beam, unknown items of a history skipped.

    Args:
        bundles: those to be asked; who begins changes from turn to turn.
        histories: at least one, of item ids, oldest first.
        k: items a history; fewer where a bundle's catalogue is smaller.

    Returns:
        One `TimedRecommendations` a bundle.
    """
    lists: list[list[list[str]]] = [[[] for _ in histories] for _ in bundles]
    paces: list[list[float]] = [[] for _ in bundles]  # seconds a history, of each turn
    for bundle in bundles:  # the first answers pay for what is made only once
        bundle.recommend_ids(histories[:_WARM_UP], k=min(k, bundle.num_items))
    by_length = np.argsort([len(history) for history in histories], kind="stable")  # like lengths share a batch
    for turn, begin in enumerate(range(0, len(by_length), BATCH)):
        chosen = by_length[begin : begin + BATCH]
        for place, bundle in sorted(enumerate(bundles), key=lambda pair: (pair[0] - turn) % len(bundles)):
            begun = time.perf_counter()
            answers = bundle.recommend_ids([histories[index] for index in chosen], k=min(k, bundle.num_items))
            paces[place].append((time.perf_counter() - begun) / len(chosen))
            for index, answer in zip(chosen, answers, strict=True):
                lists[place][index] = answer.item_ids
        progress("asking in turns", min(begin + BATCH, len(histories)), len(histories))
    return [TimedRecommendations(rows, 1000 * float(np.median(pace))) for rows, pace in zip(lists, paces, strict=True)]
