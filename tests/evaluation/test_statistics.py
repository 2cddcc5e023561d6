"""The bootstrap is reproducible and paired, and it agrees with theory where there is theory."""

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
    """The counts of a resample sum to the number of users, and the number of resamples is the requested one."""
    counts = np.concatenate(list(resamples(7, num_samples=30, generator=numpy_generator(1, "a"))))
    assert counts.shape == (30, 7)
    assert (counts.sum(axis=1) == 7).all()
    assert len(np.unique(counts, axis=0)) > 1


def test_chunks_do_not_change_the_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing one resample at a time gives the same numbers as drawing all at once."""
    values = np.random.default_rng(0).random((50, 3))
    at_once = bootstrap_means(values, num_samples=20, generator=numpy_generator(1, "a"))
    monkeypatch.setattr(statistics, "_DRAWS_PER_CHUNK", 1)
    one_by_one = bootstrap_means(values, num_samples=20, generator=numpy_generator(1, "a"))
    np.testing.assert_allclose(at_once, one_by_one, rtol=1e-12)


def test_interval_of_a_rate_is_close_to_the_normal_approximation() -> None:
    """For 100 hits among 400 users, the 95% interval is about 0.25 +- 1.96 * sqrt(0.25 * 0.75 / 400)."""
    values = np.r_[np.ones(100), np.zeros(300)][:, None]
    draws = bootstrap_means(values, num_samples=4000, generator=numpy_generator(5, "a"))
    ((low, high),) = percentile_intervals(draws, confidence=0.95)
    half_width = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - half_width, abs=0.005)
    assert high == pytest.approx(0.25 + half_width, abs=0.005)


def test_the_interval_of_a_constant_has_no_width() -> None:
    """If all users have the same value, all resamples have it too."""
    draws = bootstrap_means(np.full((20, 1), 0.5), num_samples=10, generator=numpy_generator(1, "a"))
    assert percentile_intervals(draws, confidence=0.9) == [(0.5, 0.5)]


def test_percentiles_cut_equal_tails() -> None:
    """The central 80% of 0..10 range from 1 to 9."""
    assert percentile_intervals(np.arange(11.0)[:, None], confidence=0.8) == [(pytest.approx(1.0), pytest.approx(9.0))]


def test_paired_difference_removes_the_noise_that_systems_share() -> None:
    """A small constant gain on noisy users has an interval of zero width, which unpaired intervals could not show."""
    noise = np.random.default_rng(2).random(200)
    (result,) = paired_differences(
        noise[:, None] + 0.01, noise[:, None], num_samples=100, confidence=0.95, generator=numpy_generator(1, "a")
    )
    assert result.difference == pytest.approx(0.01)
    assert (result.low, result.high) == (pytest.approx(0.01), pytest.approx(0.01))
    assert result.share_better == 1.0
    assert result.num_users == 200


def test_equal_systems_are_never_better() -> None:
    """A system compared with itself has difference zero and is strictly better in no resample."""
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


def test_coverage_interval_contains_the_measured_coverage() -> None:
    """Although resamples can only lose items, the interval surrounds the measured value."""
    lists = np.random.default_rng(0).integers(0, 40, (30, 3))
    measured = len(np.unique(lists)) / 50
    low, high = _coverage_interval(lists, 50, 400, 0.95)
    assert low < measured < high <= 1.0


def test_coverage_interval_matches_a_slow_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The spread equals that of counting the distinct items in resamples of all users, including popular items."""
    draw = np.random.default_rng(3)
    lists = (60 * draw.random((300, 2)) ** 6).astype(np.int64)  # most lists share a few items, and there is a long tail
    lists[:5, 1] = -1
    counts = np.concatenate(list(resamples(300, num_samples=4000, generator=numpy_generator(9, "a"))))
    slow = np.array([len(np.unique(drawn[drawn >= 0])) for drawn in (lists[row > 0] for row in counts)])
    measured = len(np.unique(lists[lists >= 0]))
    assert np.bincount(lists[lists >= 0]).max() > statistics._NEVER_LOST, (
        "the test needs an item that counts as never lost"
    )
    expected = np.quantile((slow - slow.mean() + measured) / 60, [0.05, 0.95])
    monkeypatch.setattr(statistics, "_DRAWS_PER_CHUNK", 10_000)
    found = _coverage_interval(lists, 60, 4000, 0.9)
    # The number of distinct items is an integer, so a bound may be off by one item.
    np.testing.assert_allclose(found, expected, atol=1.01 / 60)


def test_spread_of_coverage_equals_that_of_drawing_all_users() -> None:
    """Each of 60 users gets a different item: a resample contains on average 60 (1 - 1/60)^60 fewer items than 60.

    The variance of the number of users who are not drawn is U (1 - 1/U)^U + U (U - 1) (1 - 2/U)^U - (U (1 - 1/U)^U)^2.
    """
    num_users, num_samples = 60, 20_000
    membership = statistics._resample_membership(
        num_users, num_users=num_users, num_samples=num_samples, generator=numpy_generator(4, "coverage")
    )
    num_contained = np.unpackbits(membership, axis=1)[:, :num_samples].sum(axis=0)
    missed = num_users * (1 - 1 / num_users) ** num_users
    variance = missed + num_users * (num_users - 1) * (1 - 2 / num_users) ** num_users - missed**2
    assert num_contained.mean() == pytest.approx(num_users - missed, abs=5 * np.sqrt(variance / num_samples))
    assert num_contained.var() == pytest.approx(variance, rel=0.05)


def test_a_subset_of_users_is_drawn_as_often_as_among_all_users() -> None:
    """Each of ten of 1,000 users is in a resample with probability 1 - (1 - 1/1000)^1000."""
    membership = statistics._resample_membership(
        10, num_users=1000, num_samples=8003, generator=numpy_generator(4, "coverage")
    )
    assert membership.shape == (10, 1001)
    contained = np.unpackbits(membership, axis=1)[:, :8003]
    np.testing.assert_allclose(contained.mean(axis=1), 1 - (1 - 1 / 1000) ** 1000, atol=5 * np.sqrt(0.25 / 8003))


def test_coverage_of_empty_lists_is_zero() -> None:
    """Lists without items cover nothing, and the interval has no width."""
    assert _coverage_interval(np.full((3, 2), -1), 5, 10, 0.9) == (0.0, 0.0)


def test_items_that_everybody_receives_are_never_lost() -> None:
    """A list that a hundred users share is lost in no resample."""
    assert _coverage_interval(np.tile([0, 1], (100, 1)), 8, 50, 0.9) == (0.25, 0.25)


def test_groups_give_the_spread_of_single_users() -> None:
    """Mean, standard deviation and correlation over many resamples equal those of drawing the users one by one."""
    groups, group_sizes = np.array([[0.0, 1.0], [1.0, 0.5], [0.25, 0.0]]), np.array([50, 30, 20])
    single = bootstrap_means(
        np.repeat(groups, group_sizes, axis=0), num_samples=20_000, generator=numpy_generator(1, "a")
    )
    grouped = bootstrap_means_of_groups(groups, group_sizes, num_samples=20_000, generator=numpy_generator(1, "b"))
    np.testing.assert_allclose(grouped.mean(axis=0), single.mean(axis=0), atol=0.002)
    np.testing.assert_allclose(grouped.std(axis=0), single.std(axis=0), rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(grouped.T), np.corrcoef(single.T), atol=0.03)


def test_ranks_give_the_spread_of_single_users() -> None:
    """Drawing ranks gives every metric the same mean, spread and correlation as drawing users."""
    ranks = np.random.default_rng(4).integers(0, 4, 60)
    values = np.array([[0.0, 0.0], [1.0, 1.0], [0.5, 1.0], [0.25, 0.0], [9.0, 9.0]])  # nobody has rank 4
    single = bootstrap_means(values[ranks], num_samples=20_000, generator=numpy_generator(3, "a"))
    ranked = bootstrap_rank_means(ranks, values, num_samples=20_000, generator=numpy_generator(3, "b"))
    np.testing.assert_allclose(ranked.mean(axis=0), single.mean(axis=0), atol=0.003)
    np.testing.assert_allclose(ranked.std(axis=0), single.std(axis=0), rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(ranked.T), np.corrcoef(single.T), atol=0.03)


def test_pairs_of_ranks_give_the_interval_of_paired_users() -> None:
    """For two systems that mostly agree, the interval equals that of paired users and is far narrower than unpaired."""
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
    """A system compared with itself has no pair of different ranks, so no resample differs."""
    ranks = np.array([0, 1, 2, 2])
    result = paired_rank_differences(
        ranks, ranks, np.array([0.0, 1.0, 0.5]), num_samples=20, confidence=0.9, generator=numpy_generator(3, "a")
    )
    assert (result.difference, result.low, result.high, result.share_better) == (0.0, 0.0, 0.0, 0.0)
