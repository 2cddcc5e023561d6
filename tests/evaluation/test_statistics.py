"""The bootstrap: repeatable, paired, and near what theory says where there is theory."""

import numpy as np
import pytest

from macrec_pipeline.evaluation import statistics
from macrec_pipeline.evaluation.statistics import (
    Bootstrap,
    bootstrap,
    bootstrap_means,
    bootstrap_means_of_groups,
    coverage_intervals,
    paired_differences,
    percentile_intervals,
    resamples,
)
from macrec_pipeline.runtime.seeds import numpy_generator


def _resampled(num_users: int, num_samples: int, seed: int) -> Bootstrap:
    return bootstrap(
        np.zeros((num_users, 1), dtype=np.int64), num_samples=num_samples, generator=numpy_generator(seed, "a")
    )


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


def test_coverage_interval_holds_the_measured_coverage() -> None:
    """Though resamples can only lose items, the interval lies around the measured value and has a width."""
    lists = np.random.default_rng(0).integers(0, 40, (30, 3))
    measured = len(np.unique(lists)) / 50
    ((low, high),) = coverage_intervals([lists], num_items=50, resampled=_resampled(30, 400, 1), confidence=0.95)
    assert low < measured < high <= 1.0


def test_coverage_interval_matches_a_slow_version() -> None:
    """The spread is that of counting the distinct items of each resample by hand."""
    lists = np.array([[0, 1, -1], [1, 2, 5], [3, 1, 0], [4, -1, -1]])
    counts = np.concatenate(list(resamples(4, num_samples=200, generator=numpy_generator(9, "a"))))
    slow = np.array(
        [len({item for user in np.nonzero(row)[0] for item in lists[user] if item >= 0}) / 8 for row in counts]
    )
    expected = np.quantile(np.clip(slow - slow.mean() + 6 / 8, 0, 1), [0.05, 0.95])
    (found,) = coverage_intervals([lists], num_items=8, resampled=_resampled(4, 200, 9), confidence=0.9)
    assert found == pytest.approx(tuple(expected))


def test_coverage_of_nothing_is_zero() -> None:
    """Lists without any item cover nothing, for certain."""
    found = coverage_intervals([np.full((3, 2), -1)], num_items=5, resampled=_resampled(3, 10, 1), confidence=0.9)
    assert found == [(0.0, 0.0)]


def test_who_was_drawn_is_a_bit_a_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacked, the bits are the counts above zero, whatever the chunks; bits beyond the last resample are clear."""
    counts = np.concatenate(list(resamples(9, num_samples=21, generator=numpy_generator(3, "a"))))
    for draws_at_once in (1, 9 * 5, 10**6):
        monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", draws_at_once)
        bits = np.unpackbits(_resampled(9, 21, 3).drawn, axis=1)
        np.testing.assert_array_equal(bits[:, :21], (counts > 0).T)
        assert not bits[:, 21:].any()


@pytest.mark.parametrize("users_looked_at", [1, 2, 32])
def test_popular_items_are_counted_exactly(users_looked_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking at a few users of an item first changes nothing: where all of those are missing, the others decide."""
    monkeypatch.setattr(statistics, "_USERS_LOOKED_AT", users_looked_at)
    lists = np.array([[0, 1]] * 3 + [[0, 2]] * 3 + [[3, 0]])
    counts = np.concatenate(list(resamples(7, num_samples=40, generator=numpy_generator(2, "a"))))
    expected = [len(np.unique(lists[row > 0])) for row in counts]
    users, firsts = statistics._users_by_item(lists)
    found = statistics._items_with_a_user(_resampled(7, 40, 2).drawn, users, firsts)
    assert found[:40].tolist() == expected


def test_groups_give_the_spread_of_single_users() -> None:
    """Mean and standard deviation over many resamples are those of drawing the users one by one."""
    groups, members = np.array([[0.0, 1.0], [1.0, 0.5], [0.25, 0.0]]), np.array([50, 30, 20])
    single = bootstrap_means(np.repeat(groups, members, axis=0), num_samples=20_000, generator=numpy_generator(1, "a"))
    grouped = bootstrap_means_of_groups(groups, members, num_samples=20_000, generator=numpy_generator(1, "b"))
    np.testing.assert_allclose(grouped.mean(axis=0), single.mean(axis=0), atol=0.002)
    np.testing.assert_allclose(grouped.std(axis=0), single.std(axis=0), rtol=0.03)
    np.testing.assert_allclose(np.corrcoef(grouped.T), np.corrcoef(single.T), atol=0.03)


def test_ranks_give_the_means_of_single_users() -> None:
    """Counting ranks in each resample gives the mean of any value of a rank, on the resamples of `bootstrap_means`."""
    ranks = np.random.default_rng(4).integers(0, 4, (60, 3))
    ranks[:, 2] = 0
    values = np.array([0.0, 1.0, 0.5, 0.25])
    resampled = bootstrap(ranks, num_samples=21, generator=numpy_generator(3, "a"))
    single = bootstrap_means(values[ranks], num_samples=21, generator=numpy_generator(3, "a"))
    for column in range(3):
        np.testing.assert_allclose(resampled.means(column, values), single[:, column], rtol=1e-12)
    assert (resampled.histograms.sum(axis=2) == 60).all()
