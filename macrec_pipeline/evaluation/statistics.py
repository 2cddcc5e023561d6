"""Bootstrap statistics over the test users: percentile intervals and paired differences between systems.

A resample draws U users with replacement from the U test users. Every metric is a function of the target's rank, so
users with equal ranks are interchangeable, and a single multinomial draw decides how many of each kind a resample
contains. This has the same distribution as drawing the users one by one, and its cost depends on the number of distinct
ranks instead of the number of users.
Shapes (docs/notation.md): U users, N items in the catalogue. Further axes carry names: `num_samples` resamples,
`num_metrics` metrics, `num_ranks` ranks including 0 for a miss, `num_groups` groups of users with equal values.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.flat_histories import NO_ITEM, IntArray
from macrec_pipeline.evaluation.metrics import COVERAGE_DEPTH, FloatArray

Interval = tuple[float, float]
# Limits how many draws are in memory at a time. The results do not depend on it.
_DRAWS_PER_CHUNK = 4_000_000
# A resample misses all of this many users about once in 10^13 times, so an item recommended to that many users is
# treated as never lost.
_NEVER_LOST = 32


@dataclass(frozen=True)
class PairedDifference:
    """The paired bootstrap of one metric for two systems evaluated on the same users.

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
    """Yield how often each user is drawn, in chunks of resamples.

    Yields:
        int64 [rows of the chunk, U]; each row sums to U. All chunks together have `num_samples` rows.
    """
    rows_per_chunk = max(1, _DRAWS_PER_CHUNK // num_users)
    for start in range(0, num_samples, rows_per_chunk):
        rows = min(rows_per_chunk, num_samples - start)
        drawn = generator.integers(num_users, size=(rows, num_users), dtype=np.int64)
        drawn += np.arange(rows)[:, None] * num_users
        counts = np.bincount(drawn.ravel(), minlength=rows * num_users)
        yield counts.reshape(rows, num_users)


def bootstrap_means(values: FloatArray, *, num_samples: int, generator: np.random.Generator) -> FloatArray:
    """Compute the mean of each metric in each resample of the users.

    Args:
        values: float64 [U, num_metrics], one row per user.
        num_samples: number of resamples.
        generator: draws the users. Two calls with equally seeded generators use the same resamples.

    Returns:
        float64 [num_samples, num_metrics].
    """
    num_users = len(values)
    chunks = resamples(num_users, num_samples=num_samples, generator=generator)
    return np.concatenate([counts.astype(np.float64) @ values / num_users for counts in chunks])


def bootstrap_rank_means(
    ranks: IntArray, values: FloatArray, *, num_samples: int, generator: np.random.Generator
) -> FloatArray:
    """Compute the mean of each metric in each resample, for metrics that are functions of the rank.

    Args:
        ranks: int64 [U], 1-based, 0 for a miss.
        values: float64 [num_ranks, num_metrics], the metrics of a user whose target has that rank.
        num_samples: number of resamples.
        generator: draws the resamples.

    Returns:
        float64 [num_samples, num_metrics].
    """
    group_sizes = np.bincount(ranks, minlength=len(values))
    return bootstrap_means_of_groups(values, group_sizes, num_samples=num_samples, generator=generator)


def bootstrap_means_of_groups(
    values: FloatArray, group_sizes: IntArray, *, num_samples: int, generator: np.random.Generator
) -> FloatArray:
    """Compute the means of `bootstrap_means` for users that fall into few groups with equal values.

    How often each group is drawn follows a multinomial distribution. The resamples are distributed like those of
    single users, and the cost depends on the number of groups instead of the number of users.

    Args:
        values: float64 [num_groups, num_metrics], the values shared by the users of a group.
        group_sizes: int64 [num_groups], users per group.
        num_samples: number of resamples.
        generator: draws the groups. Calls with different groups are not paired, even with equally seeded generators.

    Returns:
        float64 [num_samples, num_metrics].
    """
    num_users, occupied = int(group_sizes.sum()), group_sizes > 0
    counts = generator.multinomial(num_users, group_sizes[occupied] / num_users, size=num_samples)
    means: FloatArray = counts @ values[occupied] / num_users
    return means


def percentile_intervals(draws: FloatArray, *, confidence: float) -> list[Interval]:
    """Return (low, high) of the central `confidence` share of each column of float64 [num_samples, num_metrics]."""
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
    """Compute an interval of `metrics.coverage` for each system, all on the same resamples.

    A resample leaves some users out, so it can only lose items, and its coverage is below the measured one by
    construction. The resamples are therefore shifted so that their mean equals the measured coverage. The interval
    shows their spread.

    Args:
        systems: int64 [U, list_length] per system, padded with `NO_ITEM`.
        num_items: N, the size of the catalogue.
        num_samples: number of resamples.
        confidence: confidence level of the intervals, such as 0.95.
        generator: draws the resamples.
        depth: number of items at the head of a list that count.
    """
    num_users = len(systems[0])
    with ThreadPoolExecutor() as pool:  # NumPy releases the GIL while it sorts and computes on bits
        at_risk = list(pool.map(lambda lists: _items_at_risk(lists[:, :depth], num_users=num_users), systems))
        relevant_users = np.unique(np.concatenate([users for users, _ in at_risk]))
        membership = _resample_membership(
            len(relevant_users), num_users=num_users, num_samples=num_samples, generator=generator
        )

        def interval(lists: IntArray, system_at_risk: tuple[IntArray, IntArray]) -> Interval:
            users, first_users = system_at_risk
            rows = np.searchsorted(relevant_users, users)
            num_lost = len(first_users) - _num_items_kept(membership, rows, first_users)[:num_samples]
            recommended = lists[:, :depth]
            measured = np.count_nonzero(np.bincount(recommended[recommended != NO_ITEM], minlength=num_items))
            shifted = np.clip((measured - num_lost + num_lost.mean()) / num_items, 0.0, 1.0)
            return percentile_intervals(shifted[:, None], confidence=confidence)[0]

        return list(pool.map(interval, systems, at_risk))


def paired_differences(
    first: FloatArray,
    second: FloatArray,
    *,
    num_samples: int,
    confidence: float,
    generator: np.random.Generator,
) -> list[PairedDifference]:
    """Compare two systems user by user, all metrics on the same resamples.

    Args:
        first: float64 [U, num_metrics], the values of each user under the first system.
        second: float64 [U, num_metrics], the same users in the same order under the second system.
        num_samples: number of resamples.
        confidence: confidence level of the intervals, such as 0.95.
        generator: draws the users.

    Returns:
        One difference per metric.
    """
    assert first.shape == second.shape, "paired values must belong to the same users"
    differences = first - second
    draws = bootstrap_means(differences, num_samples=num_samples, generator=generator)
    return _summarize(differences, draws, confidence=confidence)


def paired_rank_differences(
    first: IntArray,
    second: IntArray,
    values: FloatArray,
    *,
    num_samples: int,
    confidence: float,
    generator: np.random.Generator,
) -> PairedDifference:
    """Compute `paired_differences` of one metric that is a function of the rank, by drawing pairs of ranks.

    Args:
        first: int64 [U], ranks under the first system, 1-based, 0 for a miss.
        second: int64 [U], ranks of the same users in the same order under the second system.
        values: float64 [num_ranks], the metric of each rank.
        num_samples: number of resamples.
        confidence: confidence level of the interval, such as 0.95.
        generator: draws the resamples.
    """
    group_sizes = np.bincount(first * len(values) + second, minlength=len(values) ** 2)
    differences = np.subtract.outer(values, values).reshape(-1, 1)
    draws = bootstrap_means_of_groups(differences, group_sizes, num_samples=num_samples, generator=generator)
    (result,) = _summarize((values[first] - values[second])[:, None], draws, confidence=confidence)
    return result


def _summarize(differences: FloatArray, draws: FloatArray, *, confidence: float) -> list[PairedDifference]:
    """Summarize differences [U, num_metrics] and their means per resample [num_samples, num_metrics]."""
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


def _items_at_risk(lists: IntArray, *, num_users: int) -> tuple[IntArray, IntArray]:
    """Find the items that a resample can lose because few users receive them.

    Returns:
        The users who receive each such item, item after item, and the position of each item's first user.
    """
    users, places = np.nonzero(lists != NO_ITEM)
    items = lists[users, places]
    counts = np.bincount(items)
    can_be_lost = (counts < _NEVER_LOST)[items]
    pairs = np.sort(items[can_be_lost] * num_users + users[can_be_lost])
    return pairs % num_users, np.flatnonzero(np.diff(pairs // num_users, prepend=-1))


def _resample_membership(
    num_relevant: int, *, num_users: int, num_samples: int, generator: np.random.Generator
) -> NDArray[np.uint8]:
    """Draw which of `num_relevant` of the U users each resample contains.

    Returns:
        uint8 [num_relevant, ceil(num_samples / 8)]. Bit s of a user's row, highest bit first, is set if resample s
        contains the user.
    """
    bits = []
    rows_per_chunk = 8 * max(1, _DRAWS_PER_CHUNK // (8 * max(1, num_relevant)))  # whole bytes
    for start in range(0, num_samples, rows_per_chunk):
        rows = min(rows_per_chunk, num_samples - start)
        num_drawn = generator.binomial(num_users, num_relevant / num_users, size=rows)
        contained = np.zeros(rows * num_relevant, dtype=bool)
        row_starts = np.repeat(np.arange(rows) * num_relevant, num_drawn)
        contained[row_starts + generator.integers(num_relevant, size=num_drawn.sum())] = True
        bits.append(np.packbits(contained.reshape(rows, num_relevant), axis=0))
    return np.ascontiguousarray(np.concatenate(bits).T)


def _num_items_kept(membership: NDArray[np.uint8], rows: IntArray, first_users: IntArray) -> IntArray:
    """Count the items that at least one user of each resample receives: int64 [8 * bytes per row of `membership`].

    The resamples are bits, so one byte of a user covers eight of them.

    Args:
        membership: what `_resample_membership` returned.
        rows: row in `membership` of each user of `_items_at_risk`.
        first_users: position of each item's first user in `rows`.
    """
    if not len(first_users):
        return np.zeros(8 * membership.shape[1], dtype=np.int64)
    kept = np.bitwise_or.reduceat(membership[rows], first_users, axis=0)  # [items at risk, bytes]
    counts: IntArray = np.unpackbits(kept, axis=1).sum(axis=0, dtype=np.int64)
    return counts
