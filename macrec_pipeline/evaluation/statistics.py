"""How sure the numbers are: bootstrap over the test users, as percentile intervals and as paired differences.

A resample draws U of the U users with replacement. Metrics are values of ranks, so of users with equal ranks only the
number matters, and how many of each kind a resample holds is one multinomial draw: the same distribution as drawing
users, at the cost of ranks instead of users. U users, M metrics, S resamples, R largest rank, N items.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.flat_histories import NO_ITEM, IntArray
from macrec_pipeline.evaluation.metrics import COVERAGE_DEPTH, FloatArray

Interval = tuple[float, float]
# Resamples are drawn so many users at a time: it bounds the memory, and changing it changes no number.
_DRAWS_AT_ONCE = 4_000_000
# A resample leaves out all of so many users once in 10^13 times: an item that they are shown is never lost.
_NEVER_LOST = 32


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


def resamples(num_users: int, *, num_samples: int, generator: np.random.Generator) -> Iterator[IntArray]:
    """How often each user is drawn: int64 [<= S, U] a chunk, each row summing to U; S rows over all chunks."""
    rows_at_once = max(1, _DRAWS_AT_ONCE // num_users)
    for start in range(0, num_samples, rows_at_once):
        rows = min(rows_at_once, num_samples - start)
        drawn = generator.integers(num_users, size=(rows, num_users), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=rows * num_users)
        yield counts.reshape(rows, num_users)


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
    return np.concatenate([counts.astype(np.float64) @ values / num_users for counts in chunks])


def bootstrap_rank_means(
    ranks: IntArray, values: FloatArray, *, num_samples: int, generator: np.random.Generator
) -> FloatArray:
    """The mean of each value of a rank in each resample of the users.

    Args:
        ranks: int64 [U], 1-based, 0 for missed.
        values: float64 [R + 1, M], what a user of each rank counts for.
        num_samples: S.
        generator: draws the resamples.

    Returns:
        float64 [S, M].
    """
    num_members = np.bincount(ranks, minlength=len(values))
    return bootstrap_means_of_groups(values, num_members, num_samples=num_samples, generator=generator)


def bootstrap_means_of_groups(
    values: FloatArray, num_members: IntArray, *, num_samples: int, generator: np.random.Generator
) -> FloatArray:
    """`bootstrap_means` for users of whom many have the same values: how often a group is drawn is multinomial.

    The resamples have the same distribution as those of single users, at the cost of groups instead of users.

    Args:
        values: float64 [G, M], one row a group of users with these values.
        num_members: int64 [G], users in each group.
        num_samples: S.
        generator: draws the groups; two calls with other groups are not paired.

    Returns:
        float64 [S, M].
    """
    num_users, there = int(num_members.sum()), num_members > 0
    counts = generator.multinomial(num_users, num_members[there] / num_users, size=num_samples)
    means: FloatArray = counts @ values[there] / num_users
    return means


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
        num_samples: S.
        confidence: of the intervals.
        generator: draws the resamples.
        depth: first items of a list that count.
    """
    num_users = len(systems[0])
    with ThreadPoolExecutor() as pool:  # sorting and bit operations free the interpreter
        viewers = list(pool.map(lambda lists: _viewers(lists[:, :depth], num_users=num_users), systems))
        decisive = np.unique(np.concatenate([users for users, _ in viewers]))
        drawn = _drawn(len(decisive), num_users=num_users, num_samples=num_samples, generator=generator)

        def interval(lists: IntArray, seen: tuple[IntArray, IntArray]) -> Interval:
            users, firsts = seen
            lost = len(firsts) - _items_with_a_user(drawn, np.searchsorted(decisive, users), firsts)[:num_samples]
            shown = lists[:, :depth]
            measured = np.count_nonzero(np.bincount(shown[shown != NO_ITEM], minlength=num_items))
            moved = np.clip((measured - lost + lost.mean()) / num_items, 0.0, 1.0)
            return percentile_intervals(moved[:, None], confidence=confidence)[0]

        return list(pool.map(interval, systems, viewers))


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
    return _summarized(differences, draws, confidence=confidence)


def paired_rank_differences(
    first: IntArray,
    second: IntArray,
    values: FloatArray,
    *,
    num_samples: int,
    confidence: float,
    generator: np.random.Generator,
) -> PairedDifference:
    """`paired_differences` of one metric that is a value of ranks: users are drawn by the pair of their ranks.

    Args:
        first: int64 [U], 1-based, 0 for missed.
        second: int64 [U], the same users in the same order.
        values: float64 [R + 1], the metric of each rank.
        num_samples: S.
        confidence: of the interval.
        generator: draws the resamples.
    """
    num_members = np.bincount(first * len(values) + second, minlength=len(values) ** 2)
    differences = np.subtract.outer(values, values).reshape(-1, 1)
    draws = bootstrap_means_of_groups(differences, num_members, num_samples=num_samples, generator=generator)
    (result,) = _summarized((values[first] - values[second])[:, None], draws, confidence=confidence)
    return result


def _summarized(differences: FloatArray, draws: FloatArray, *, confidence: float) -> list[PairedDifference]:
    """From differences float64 [U, M] and their means in resamples [S, M]."""
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


def _viewers(lists: IntArray, *, num_users: int) -> tuple[IntArray, IntArray]:
    """The users of each item that a resample can lose, item after item, and where each item's users begin."""
    users, places = np.nonzero(lists != NO_ITEM)
    items = lists[users, places]
    counts = np.bincount(items)
    can_be_lost = (counts < _NEVER_LOST)[items]
    pairs = np.sort(items[can_be_lost] * num_users + users[can_be_lost])
    return pairs % num_users, np.flatnonzero(np.diff(pairs // num_users, prepend=-1))


def _drawn(num_decisive: int, *, num_users: int, num_samples: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Which of some of the U users each resample holds.

    Returns:
        uint8 [users, ceil(S / 8)], bit s of a user's row (highest first) set where resample s holds the user.
    """
    bits = []
    rows_at_once = 8 * max(1, _DRAWS_AT_ONCE // (8 * max(1, num_decisive)))  # whole bytes
    for start in range(0, num_samples, rows_at_once):
        rows = min(rows_at_once, num_samples - start)
        draws = generator.binomial(num_users, num_decisive / num_users, size=rows)
        held = np.zeros(rows * num_decisive, dtype=bool)
        held[np.repeat(np.arange(rows) * num_decisive, draws) + generator.integers(num_decisive, size=draws.sum())] = 1
        bits.append(np.packbits(held.reshape(rows, num_decisive), axis=0))
    return np.ascontiguousarray(np.concatenate(bits).T)


def _items_with_a_user(drawn: NDArray[np.uint8], users: IntArray, firsts: IntArray) -> IntArray:
    """How many items are shown to at least one drawn user, in each resample: int64 [8 * bytes of a row of `drawn`].

    Resamples are bits, so that a byte of one user answers for eight of them.
    """
    if not len(firsts):
        return np.zeros(8 * drawn.shape[1], dtype=np.int64)
    shown = np.bitwise_or.reduceat(drawn[users], firsts, axis=0)  # [items, bytes]
    counts: IntArray = np.unpackbits(shown, axis=1).sum(axis=0, dtype=np.int64)
    return counts
