"""How sure the numbers are: bootstrap over the test users, as percentile intervals and as paired differences.

A resample draws U of the U users with replacement, held as counts a user. Metrics are values of ranks, so counting the
ranks of a resample gives the means of them all; the same generator state gives the same resamples, which is what pairs
two systems. U users, M metrics, S resamples, C columns of ranks, R largest rank.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.evaluation.metrics import COVERAGE_DEPTH, FloatArray
from macrec_pipeline.evaluation.sequences import NO_ITEM, IntArray

Interval = tuple[float, float]
# Resamples are drawn so many users at a time: it bounds the memory, and changing it changes no number.
_DRAWS_AT_ONCE = 4_000_000
# An item that so many users are shown is almost never lost: its other users are looked at only where it is.
_USERS_LOOKED_AT = 32


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


@dataclass(frozen=True)
class Bootstrap:
    """Resamples of the users, of whom each has a rank in several columns.

    Attributes:
        histograms: int64 [S, C, R + 1], how many drawn users have each rank, 0 for missed.
        drawn: uint8 [U, ceil(S / 8)], bit s of a user's row (highest first) set where resample s holds the user.
    """

    histograms: IntArray
    drawn: NDArray[np.uint8]

    def means(self, column: int, values: FloatArray) -> FloatArray:
        """The mean in each resample of what float64 [R + 1] gives for a rank in one column: float64 [S]."""
        histogram = self.histograms[:, column]
        means: FloatArray = (histogram * values).sum(axis=1) / histogram.sum(axis=1)
        return means


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


def bootstrap(ranks: IntArray, *, num_samples: int, generator: np.random.Generator) -> Bootstrap:
    """Resamples of users by their ranks: most users miss, and whoever does not adds to one rank of a column.

    Args:
        ranks: int64 [U, C], 1-based, 0 for missed.
        num_samples: S.
        generator: draws the users, the same ones as `bootstrap_means` in the same state.
    """
    num_users, num_columns = ranks.shape
    depth = int(ranks.max(initial=0))
    columns, users = np.nonzero(ranks.T)
    keys = columns * (depth + 1) + ranks[users, columns]
    order = np.argsort(keys, kind="stable")
    users, keys = users[order], keys[order]
    firsts = np.flatnonzero(np.diff(keys, prepend=-1))
    histograms = np.zeros((num_samples, num_columns * (depth + 1)), dtype=np.int64)

    def count(counts: IntArray) -> IntArray:
        by_user = np.ascontiguousarray(counts.T, dtype=np.int32)  # [U, <= S]
        found: IntArray = np.add.reduceat(by_user[users], firsts, axis=0).T
        return found

    drawn, waiting, done = [], np.zeros((0, num_users), dtype=bool), 0
    with ThreadPoolExecutor() as pool:  # ranks are counted while the next users are drawn
        counted: list[tuple[int, Future[IntArray]]] = []
        for counts in resamples(num_users, num_samples=num_samples, generator=generator):
            if len(firsts):
                counted.append((done, pool.submit(count, counts)))
                if len(counted) > 2:
                    counted[-3][1].result()  # bounds what waits in memory
            done += len(counts)
            waiting = np.concatenate([waiting, counts > 0])
            whole = len(waiting) - len(waiting) % 8  # so many resamples fill bytes
            drawn.append(np.packbits(waiting[:whole], axis=0))
            waiting = waiting[whole:]
        for start, future in counted:
            found = future.result()
            histograms[start : start + len(found), keys[firsts]] = found
    drawn.append(np.packbits(waiting, axis=0))
    by_column = histograms.reshape(num_samples, num_columns, depth + 1)
    by_column[:, :, 0] = num_users - by_column.sum(axis=2)
    return Bootstrap(by_column, np.ascontiguousarray(np.concatenate(drawn).T))


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
    num_users = int(num_members.sum())
    counts = generator.multinomial(num_users, num_members / num_users, size=num_samples)
    means: FloatArray = counts @ values / num_users
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
    resampled: Bootstrap,
    confidence: float,
    depth: int = COVERAGE_DEPTH,
) -> list[Interval]:
    """An interval for `metrics.coverage` of each system's lists, all on the same resamples.

    A resample leaves users out and so can only lose items: its coverage lies below the measured one by construction.
    The resamples are therefore moved so that their mean is the measured coverage; their spread is what is reported.

    Args:
        systems: int64 [U, R] lists of each system, padded with `NO_ITEM`.
        num_items: N.
        resampled: S resamples of the users.
        confidence: of the intervals.
        depth: first items of a list that count.
    """

    def interval(lists: IntArray) -> Interval:
        users, firsts = _users_by_item(lists[:, :depth])
        draws = _items_with_a_user(resampled.drawn, users, firsts)[: len(resampled.histograms)]
        moved = np.clip((draws - draws.mean() + len(firsts)) / num_items, 0.0, 1.0)
        return percentile_intervals(moved[:, None], confidence=confidence)[0]

    with ThreadPoolExecutor() as pool:  # sorting and bit operations free the interpreter
        return list(pool.map(interval, systems))


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
    return summarized_differences(differences, draws, confidence=confidence)


def summarized_differences(differences: FloatArray, draws: FloatArray, *, confidence: float) -> list[PairedDifference]:
    """What `paired_differences` returns, from differences float64 [U, M] and their means in resamples [S, M]."""
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
    pairs = np.sort(lists[users, places] << 32 | users)  # sorting integers is faster than sorting by argument
    items = pairs >> 32
    firsts = np.flatnonzero(np.diff(items, prepend=-1))
    return pairs & 0xFFFFFFFF, firsts


def _items_with_a_user(drawn: NDArray[np.uint8], users: IntArray, firsts: IntArray) -> IntArray:
    """How many items are shown to at least one drawn user, in each resample: int64 [8 * bytes of a row of `drawn`].

    Resamples are bits, so that a byte of one user answers for eight of them.
    """
    if not len(firsts):
        return np.zeros(8 * drawn.shape[1], dtype=np.int64)
    ends = np.append(firsts[1:], len(users))
    looked_at = np.minimum(ends - firsts, _USERS_LOOKED_AT)
    starts = np.cumsum(looked_at) - looked_at
    places = np.arange(looked_at.sum()) + np.repeat(firsts - starts, looked_at)
    shown = np.bitwise_or.reduceat(drawn[users[places]], starts, axis=0)  # [items, bytes]
    ever = np.bitwise_or.reduce(drawn, axis=0)  # padding bits are set for nobody
    for item in np.flatnonzero((shown != ever).any(axis=1) & (ends - firsts > looked_at)):
        shown[item] = np.bitwise_or.reduce(drawn[users[firsts[item] : ends[item]]], axis=0)
    counts: IntArray = np.unpackbits(shown, axis=1).sum(axis=0, dtype=np.int64)
    return counts
