"""Measure how often each system recommends new items, which are items that it was never trained on.

The input is the recommendation lists and the histories of the test users. The output is, for each system, the share of
the recommended items that are new, with a confidence interval, and the number of new items that anyone gets. An item is
new if it is in the catalogue and the training part of the histories does not contain it; an item that is only a
validation or test target is new too. Popularity and item-kNN count interactions, so they recommend new items only where
nothing else is left, and SASRec has not learned a vector for them. MACRec finds them by their text and image.
Shapes (docs/notation.md): U users, N items in the catalogue; `list_length` is the length of a recommendation list.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation.baselines import popularity_counts
from macrec_pipeline.evaluation.flat_histories import NO_ITEM, FlatHistories, IntArray
from macrec_pipeline.evaluation.statistics import Interval, bootstrap_means_of_groups, percentile_intervals
from macrec_pipeline.runtime.seeds import numpy_generator

DEPTH = 10
"""Number of items at the head of a list that count as recommended."""


@dataclass(frozen=True)
class RecommendedNewItems:
    """The new items among the first `DEPTH` recommendations of one system.

    Attributes:
        share: share of the recommended items that are new, over the lists of all test users, in [0, 1].
        share_ci: its interval from a bootstrap over the users.
        num_items: number of different new items that at least one user gets.
    """

    share: float
    share_ci: Interval
    num_items: int


@dataclass(frozen=True)
class NewItems:
    """The new items of the catalogue, and how often each system recommends them.

    Attributes:
        num_items: number of new items in the catalogue.
        num_catalogue_items: number of items in the catalogue, which excludes those that have left it.
        num_target_users: number of test users whose target is new.
        systems: system -> what it recommends with seen items allowed.
        systems_excluding_seen: the same with the items of the input history excluded.
    """

    num_items: int
    num_catalogue_items: int
    num_target_users: int
    systems: dict[str, RecommendedNewItems]
    systems_excluding_seen: dict[str, RecommendedNewItems]

    def document(self) -> dict[str, Any]:
        """Return the result for `metrics.json`, in which an interval is a list."""
        document = asdict(self)
        for setting in ("systems", "systems_excluding_seen"):
            for found in document[setting].values():
                found["share_ci"] = list(found["share_ci"])
        return document


def measure_new_items(
    histories: FlatHistories,
    lists: Mapping[tuple[str, bool], IntArray],
    *,
    num_items: int,
    config: EvaluationConfig,
    seed: int,
    listed: NDArray[np.bool_] | None = None,
) -> NewItems:
    """Measure how often each system recommends items that the training part of the histories does not contain.

    Args:
        histories: the histories of the test users, with those of the users who are only trained on.
        lists: (system, exclude_seen) -> int64 [U, list_length], best item first, padded with `NO_ITEM`.
        num_items: N, the number of items in the tables.
        config: the bootstrap settings.
        seed: the root seed; every system and setting has its own random stream.
        listed: bool [N], the items that are in the catalogue; None for all.
    """
    in_catalogue = np.ones(num_items, dtype=np.bool_) if listed is None else listed
    is_new = (popularity_counts(histories, num_items=num_items) == 0) & in_catalogue

    def measure(system: str, exclude_seen: bool) -> RecommendedNewItems:
        stream = f"evaluation/new_items/{system}/{'unseen' if exclude_seen else 'all'}"
        generator = numpy_generator(seed, stream)
        return _measure(lists[system, exclude_seen][:, :DEPTH], is_new, config=config, generator=generator)

    by_setting = {
        exclude_seen: {system: measure(system, exclude_seen) for system, setting in lists if setting == exclude_seen}
        for exclude_seen in (False, True)
    }
    return NewItems(
        num_items=int(is_new.sum()),
        num_catalogue_items=int(in_catalogue.sum()),
        num_target_users=int(is_new[histories.targets].sum()),
        systems=by_setting[False],
        systems_excluding_seen=by_setting[True],
    )


def _measure(
    lists: IntArray, is_new: NDArray[np.bool_], *, config: EvaluationConfig, generator: np.random.Generator
) -> RecommendedNewItems:
    """Measure one system.

    Users with as many new items and as many items as others form a group, because the share depends on nothing else.

    Args:
        lists: int64 [U, at most DEPTH].
        is_new: bool [N].
        config: the bootstrap settings.
        generator: draws the resamples.
    """
    exists = lists != NO_ITEM
    recommended = np.zeros(len(is_new), dtype=np.bool_)
    recommended[lists[exists]] = True
    new = np.append(is_new, False)[lists]  # `NO_ITEM` is the last position
    sizes = np.arange(DEPTH + 1)
    values = np.stack([np.repeat(sizes, len(sizes)), np.tile(sizes, len(sizes))], axis=1).astype(np.float64)
    users = np.bincount(new.sum(axis=1) * len(sizes) + exists.sum(axis=1), minlength=len(values))
    draws = bootstrap_means_of_groups(values, users, num_samples=config.bootstrap_samples, generator=generator)
    # The mean length of a resample's lists is at least 1 / U, or else all of them are empty and the share is 0.
    shares = draws[:, :1] / np.maximum(draws[:, 1:], 1.0 / len(lists))
    (interval,) = percentile_intervals(shares, confidence=config.confidence)
    return RecommendedNewItems(
        share=float(new.sum()) / max(int(exists.sum()), 1),
        share_ci=interval,
        num_items=int((recommended & is_new).sum()),
    )
