"""How sure the numbers are: bootstrap over the test users, as percentile intervals and as paired differences.

A resample draws U of the U users with replacement. It is held as counts a user, so that one matrix product gives the
means of every metric; the same generator state gives the same resamples, which is what pairs two systems.
U users, M metrics, S resamples.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.metrics import COVERAGE_DEPTH, FloatArray
from macrec_pipeline.evaluation.sequences import NO_ITEM, IntArray

Interval = tuple[float, float]
# Resamples are drawn so many users at a time: it bounds the memory, and changing it changes no number.
_DRAWS_AT_ONCE = 2_000_000


@dataclass(frozen=True)
class PairedDifference:
    """What a paired bootstrap says about one metric of two systems on the same users.

    Attributes:
        difference: mean of (first - second) over the users.
        low, high: percentile interval of that mean.
        share_better: share of the resamples in which the first system is strictly better, in [0, 1].
        num_users: U.
    """

    difference: float
    low: float
    high: float
    share_better: float
    num_users: int


def resamples(num_users: int, *, num_samples: int, generator: np.random.Generator) -> Iterator[FloatArray]:
    """How often each user is drawn: float64 [<= S, U] a chunk, each row summing to U; S rows over all chunks."""
    rows_at_once = max(1, _DRAWS_AT_ONCE // num_users)
    for start in range(0, num_samples, rows_at_once):
        rows = min(rows_at_once, num_samples - start)
        drawn = generator.integers(num_users, size=(rows, num_users), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=rows * num_users)
        yield counts.reshape(rows, num_users).astype(np.float64)


def bootstrap_means(values: FloatArray, *, num_samples: int, generator: np.random.Generator) -> FloatArray:
    """The mean of each column in each resample of the rows.

    Args:
        values: float64 [U, M], one row a user.
        num_samples: S.
        generator: draws the users; the same state pairs two calls.

    Returns:
        float64 [S, M].
    """
    num_users = len(values)
    chunks = resamples(num_users, num_samples=num_samples, generator=generator)
    return np.concatenate([counts @ values / num_users for counts in chunks])


def percentile_intervals(draws: FloatArray, *, confidence: float) -> list[Interval]:
    """The central `confidence` share of each column of float64 [S, M], as (low, high)."""
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(draws, [tail, 1.0 - tail], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def coverage_intervals(
    systems: Sequence[IntArray],
    *,
    num_items: int,
    num_samples: int,
    confidence: float,
    generator: np.random.Generator,
    depth: int = COVERAGE_DEPTH,
) -> list[Interval]:
    """An interval for `metrics.coverage` of each system's lists, all on the same resamples.

    A resample leaves users out and so can only lose items: its coverage lies below the measured one by construction.
    The resamples are therefore moved so that their mean is the measured coverage; their spread is what is reported.

    Args:
        systems: int64 [U, R] lists of each system, padded with `NO_ITEM`.
        num_items: N.
        num_samples: resamples of the users.
        confidence: of the intervals.
        generator: draws the users.
        depth: first items of a list that count.
    """
    shown = [_users_by_item(lists[:, :depth]) for lists in systems]
    covered: list[list[IntArray]] = [[] for _ in systems]
    for counts in resamples(len(systems[0]), num_samples=num_samples, generator=generator):
        drawn = counts > 0
        for (users, firsts), found in zip(shown, covered, strict=True):
            found.append(_items_with_a_user(drawn, users, firsts))
    intervals = []
    for (_, firsts), found in zip(shown, covered, strict=True):
        draws = np.concatenate(found)
        moved = np.clip((draws - draws.mean() + len(firsts)) / num_items, 0.0, 1.0)
        intervals += percentile_intervals(moved[:, None], confidence=confidence)
    return intervals


def paired_differences(
    first: FloatArray,
    second: FloatArray,
    *,
    num_samples: int,
    confidence: float,
    generator: np.random.Generator,
) -> list[PairedDifference]:
    """Compare two systems user by user, one column a metric (or a rival), all on the same resamples.

    Args:
        first: float64 [U, M], values of each user under the first system.
        second: float64 [U, M], the same users in the same order under the second.
        num_samples: resamples of the users.
        confidence: of the intervals, as in 0.95.
        generator: draws the users.

    Returns:
        One difference a column.
    """
    assert first.shape == second.shape, "paired values must be of the same users"
    differences = first - second
    draws = bootstrap_means(differences, num_samples=num_samples, generator=generator)
    return [
        PairedDifference(
            difference=float(differences[:, column].mean()),
            low=low,
            high=high,
            share_better=float((draws[:, column] > 0).mean()),
            num_users=len(differences),
        )
        for column, (low, high) in enumerate(percentile_intervals(draws, confidence=confidence))
    ]


def _users_by_item(lists: IntArray) -> tuple[IntArray, IntArray]:
    """The users who are shown an item, item after item, and where each item's users begin."""
    users, places = np.nonzero(lists != NO_ITEM)
    items = lists[users, places]
    order = np.argsort(items, kind="stable")
    _, firsts = np.unique(items[order], return_index=True)
    return users[order], firsts


def _items_with_a_user(drawn: NDArray[np.bool_], users: IntArray, firsts: IntArray) -> IntArray:
    """How many items are shown to at least one drawn user: int64 [S] for bool [S, U]."""
    if not len(firsts):
        return np.zeros(len(drawn), dtype=np.int64)
    shown: IntArray = np.logical_or.reduceat(drawn[:, users], firsts, axis=1).sum(axis=1)
    return shown
