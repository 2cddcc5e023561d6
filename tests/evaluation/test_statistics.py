"""The bootstrap: repeatable, paired, and near what theory says where there is theory."""

import numpy as np
import pytest

from macrec_pipeline.evaluation import statistics
from macrec_pipeline.evaluation.statistics import (
    bootstrap_means,
    bootstrap_means_of_groups,
    bootstrap_rank_means,
    coverage_intervals,
    paired_differences,
    paired_rank_differences,
    percentile_intervals,
    resamples,
)
from macrec_pipeline.runtime.seeds import numpy_generator


def test_every_resample_draws_as_many_users_as_there_are() -> None:
    """Counts of a resample sum to the number of users, and there are as many resamples as asked for."""
    counts = np.concatenate(list(resamples(7, num_samples=30, generator=numpy_generator(1, "a"))))
    assert counts.shape == (30, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert len(np.unique(counts, axis=0)) > 1


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing one resample at a time gives the numbers of drawing all at once."""
    values = np.random.default_rng(0).random((50, 3))
    at_once = bootstrap_means(values, num_samples=20, generator=numpy_generator(1, "a"))
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 1)
    one_by_one = bootstrap_means(values, num_samples=20, generator=numpy_generator(1, "a"))
    np.testing.assert_allclose(at_once, one_by_one, rtol=1e-12)


def test_interval_of_a_rate_is_near_the_normal_one() -> None:
    """For 400 users of whom 100 are hit, the 95% interval is about 0.25 +- 1.96 * sqrt(0.25 * 0.75 / 400)."""
    values = np.r_[np.ones(100), np.zeros(300)][:, None]
    draws = bootstrap_means(values, num_samples=4000, generator=numpy_generator(5, "a"))
    ((low, high),) = percentile_intervals(draws, confidence=0.95)
    half = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - half, abs=0.005)
    assert high == pytest.approx(0.25 + half, abs=0.005)


def test_a_constant_has_no_width() -> None:
    """If every user has the same value, so has every resample."""
    draws = bootstrap_means(np.full((20, 1), 0.5), num_samples=10, generator=numpy_generator(1, "a"))
    assert percentile_intervals(draws, confidence=0.9) == [(0.5, 0.5)]


def test_percentiles_cut_equal_tails() -> None:
    """The central 80% of 0..10 runs from 1 to 9."""
    assert percentile_intervals(np.arange(11.0)[:, None], confidence=0.8) == [(pytest.approx(1.0), pytest.approx(9.0))]


def test_paired_difference_removes_what_users_share() -> None:
    """A small constant gain on noisy users has a point interval, which unpaired intervals could not show."""
    noise = np.random.default_rng(2).random(200)
    (result,) = paired_differences(
        noise[:, None] + 0.01, noise[:, None], num_samples=100, confidence=0.95, generator=numpy_generator(1, "a")
    )
    assert result.difference == pytest.approx(0.01)
    assert (result.low, result.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert result.share_better == 1.0
    assert result.num_users == 200


def test_equal_systems_are_never_better() -> None:
    """A system against itself has difference zero and is strictly better in no resample."""
    values = np.random.default_rng(2).random((30, 1))
    (result,) = paired_differences(values, values, num_samples=50, confidence=0.9, generator=numpy_generator(1, "a"))
    assert (result.difference, result.low, result.high, result.share_better) == (0.0, 0.0, 0.0, 0.0)


def _coverage_interval(lists: np.ndarray, num_items: int, num_samples: int, confidence: float) -> tuple[float, float]:
    (found,) = coverage_intervals(
        [lists],
        num_items=num_items,
        num_samples=num_samples,
        confidence=confidence,
        generator=numpy_generator(1, "coverage"),
    )
    return found


def test_coverage_interval_holds_the_measured_coverage() -> None:
    """Though resamples can only lose items, the interval lies around the measured value and has a width."""
    lists = np.random.default_rng(0).integers(0, 40, (30, 3))
    measured = len(np.unique(lists)) / 50
    low, high = _coverage_interval(lists, 50, 400, 0.95)
    assert low < measured < high <= 1.0


def test_coverage_interval_matches_a_slow_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spread is that of counting the distinct items of resamples of all users by hand, popular items included."""
    draw = np.random.default_rng(3)
    lists = (60 * draw.random((300, 2)) ** 6).astype(np.int64)  # a few items for most, and a long tail
    lists[:5, 1] = -1
    counts = np.concatenate(list(resamples(300, num_samples=4000, generator=numpy_generator(9, "a"))))
    slow = np.array([len(np.unique(shown[shown >= 0])) for shown in (lists[row > 0] for row in counts)])
    measured = len(np.unique(lists[lists >= 0]))
    assert np.bincount(lists[lists >= 0]).max() > statistics._NEVER_LOST, "the test needs an item that is never lost"
    expected = np.quantile((slow - slow.mean() + measured) / 60, [0.05, 0.95])
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 10_000)
    found = _coverage_interval(lists, 60, 4000, 0.9)
    # the number of distinct items is a whole one: a bound may fall on the next
    np.testing.assert_allclose(found, expected, atol=1.01 / 60)


def test_spread_of_coverage_is_that_of_drawing_all_users() -> None:
    """Each of 60 users is shown an item of their own: a resample holds 60 (1 - 1/60)^60 items less than 60, on average.

    The variance of the number of users who are left out is U (1 - 1/U)^U + U (U - 1) (1 - 2/U)^U - (U (1 - 1/U)^U)^2.
    """
    num_users, num_samples = 60, 20_000
    drawn = statistics._drawn(
        num_users, num_users=num_users, num_samples=num_samples, generator=numpy_generator(4, "coverage")
    )
    held = np.unpackbits(drawn, axis=1)[:, :num_samples].sum(axis=0)
    missed = num_users * (1 - 1 / num_users) ** num_users
    variance = missed + num_users * (num_users - 1) * (1 - 2 / num_users) ** num_users - missed**2
    assert held.mean() == pytest.approx(num_users - missed, abs=5 * np.sqrt(variance / num_samples))
    assert held.var() == pytest.approx(variance, rel=0.05)


def test_some_users_are_drawn_as_often_as_they_are_among_all() -> None:
    """Ten of 1,000 users: each is in a resample with probability 1 - (1 - 1/1000)^1000, whoever else is asked for."""
    drawn = statistics._drawn(10, num_users=1000, num_samples=8003, generator=numpy_generator(4, "coverage"))
    assert drawn.shape == (10, 1001)
    held = np.unpackbits(drawn, axis=1)[:, :8003]
    np.testing.assert_allclose(held.mean(axis=1), 1 - (1 - 1 / 1000) ** 1000, atol=5 * np.sqrt(0.25 / 8003))


def test_coverage_of_nothing_is_zero() -> None:
    """Lists without any item cover nothing, for certain."""
    assert _coverage_interval(np.full((3, 2), -1), 5, 10, 0.9) == (0.0, 0.0)


def test_items_that_everybody_sees_are_certain() -> None:
    """A list that a hundred users share is lost in no resample."""
    assert _coverage_interval(np.tile([0, 1], (100, 1)), 8, 50, 0.9) == (0.25, 0.25)


def test_groups_give_the_spread_of_single_users() -> None:
    """Mean and standard deviation over many resamples are those of drawing the users one by one."""
    groups, members = np.array([[0.0, 1.0], [1.0, 0.5], [0.25, 0.0]]), np.array([50, 30, 20])
    single = bootstrap_means(np.repeat(groups, members, axis=0), num_samples=20_000, generator=numpy_generator(1, "a"))
    grouped = bootstrap_means_of_groups(groups, members, num_samples=20_000, generator=numpy_generator(1, "b"))
    np.testing.assert_allclose(grouped.mean(axis=0), single.mean(axis=0), atol=0.002)
    np.testing.assert_allclose(grouped.std(axis=0), single.std(axis=0), rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(grouped.T), np.corrcoef(single.T), atol=0.03)


def test_ranks_give_the_spread_of_single_users() -> None:
    """Drawing ranks gives every metric the mean, spread and correlation that drawing users gives it."""
    ranks = np.random.default_rng(4).integers(0, 4, 60)
    values = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0], [0.25, 0.0], [9.0, 9.0]])  # nobody has rank 4
    single = bootstrap_means(values[ranks], num_samples=20_000, generator=numpy_generator(3, "a"))
    ranked = bootstrap_rank_means(ranks, values, num_samples=20_000, generator=numpy_generator(3, "b"))
    np.testing.assert_allclose(ranked.mean(axis=0), single.mean(axis=0), atol=0.003)
    np.testing.assert_allclose(ranked.std(axis=0), single.std(axis=0), rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(ranked.T), np.corrcoef(single.T), atol=0.03)


def test_pairs_of_ranks_give_the_interval_of_paired_users() -> None:
    """Two systems that mostly agree: the interval is that of paired users, far narrower than of unpaired ones."""
    draw = np.random.default_rng(4)
    first = draw.integers(0, 3, 400)
    second = np.where(draw.random(400) < 0.9, first, draw.integers(0, 3, 400))
    values = np.array([0.0, 1.0, 0.5])
    ranked = paired_rank_differences(
        first, second, values, num_samples=20_000, confidence=0.95, generator=numpy_generator(3, "a")
    )
    (single,) = paired_differences(
        values[first][:, None],
        values[second][:, None],
        num_samples=20_000,
        confidence=0.95,
        generator=numpy_generator(3, "b"),
    )
    assert ranked.difference == single.difference
    width = single.high - single.low
    assert (ranked.low, ranked.high) == (
        pytest.approx(single.low, abs=0.04 * width),
        pytest.approx(single.high, abs=0.04 * width),
    )
    assert ranked.share_better == pytest.approx(single.share_better, abs=0.02)
    assert width < 0.6 * 2 * 1.96 * np.sqrt((values[first].var() + values[second].var()) / 400)


def test_equal_ranks_are_never_better() -> None:
    """A system against itself: no pair of different ranks exists, so no resample differs."""
    ranks = np.array([0, 1, 2, 2])
    result = paired_rank_differences(
        ranks, ranks, np.array([0.0, 1.0, 0.5]), num_samples=20, confidence=0.9, generator=numpy_generator(3, "a")
    )
    assert (result.difference, result.low, result.high, result.share_better) == (0.0, 0.0, 0.0, 0.0)
