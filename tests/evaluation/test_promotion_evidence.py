"""The evidence on the champion: pooled over challengers, each target once, kept between runs, dropped for a new one."""

from math import sqrt
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.errors import StorageError
from macrec_pipeline.evaluation.promotion.evidence import WEEK_MS, Evidence, paired_scores


def compare(
    evidence: Evidence,
    week: int,
    targets: list[tuple[str, str, int]],
    challenger: list[float],
    *,
    champion: str = "old",
    recipe: str = "weekly",
    max_weeks: int = 52,
) -> Evidence:
    """Add the comparison of a week, in which the champion always has NDCG@10 0.5."""
    return evidence.with_comparison(
        champion=champion,
        challenger=f"bundle {week}",
        recipe=recipe,
        as_of=week * WEEK_MS,
        targets=pl.DataFrame(targets, schema=["user_id", "item_id", "timestamp"], orient="row"),
        challenger_ndcg=np.array(challenger),
        champion_ndcg=np.full(len(targets), 0.5),
        max_weeks=max_weeks,
    )


FIRST = [("u", "a", 1), ("v", "b", 2)]
SECOND = [("u", "c", 9), ("v", "b", 2)]  # only user u has a new interaction


def test_scores_computed_by_hand() -> None:
    """Four targets of four users; the comments derive the standard errors."""
    found = paired_scores(np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 0, 0]))
    assert (found.challenger, found.champion, found.difference) == (0.5, 0.25, 0.25)
    assert (found.num_targets, found.num_users, found.num_comparisons) == (4, 4, 1)
    # The differences are 0, 1, 0, 0: mean 1/4, sample variance 1/4, so the mean's standard error is sqrt(1/16).
    assert found.standard_error() == pytest.approx(0.25)
    # Without the champion: 1, 1, 0, 0 has the sample variance 1/3.
    assert found.standard_error(champion_weight=0) == pytest.approx(sqrt(1 / 12))


def test_the_targets_of_one_user_count_as_dependent() -> None:
    """Two users with two equal targets each are as uncertain as two users with one target each."""
    challenger, champion = np.array([1.0, 0]), np.zeros(2)
    twice = paired_scores(np.repeat(challenger, 2), np.repeat(champion, 2), users=np.array([0, 0, 1, 1]))
    assert twice.standard_error() == paired_scores(challenger, champion).standard_error() == 0.5
    assert (twice.num_targets, twice.num_users) == (4, 2)
    assert paired_scores(challenger, champion, users=np.array([0, 0])).standard_error() == float("inf")


def test_a_target_counts_once_with_the_newest_challenger() -> None:
    """User v has no new interaction: the second challenger's result replaces the first one's."""
    evidence = compare(compare(Evidence(), 1, FIRST, [1.0, 0.0]), 2, SECOND, [0.5, 0.75])
    pooled = evidence.pooled("weekly")
    assert (pooled.num_targets, pooled.num_users, pooled.num_comparisons) == (3, 2, 2)
    assert pooled.challenger == (1.0 + 0.5 + 0.75) / 3
    again = compare(evidence, 2, SECOND, [0.5, 0.75])  # the run was repeated
    assert again.targets.equals(evidence.targets)


def test_the_evidence_survives_a_restart(tmp_path: Path) -> None:
    """It is read back as it was written, and the same evidence gives the same bytes."""
    evidence = compare(Evidence(), 1, FIRST, [1.0, 0.0])
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    evidence.save(first)
    read = Evidence.load(first)
    assert (read.champion, read.origins) == ("old", {"bundle 1": WEEK_MS, "old": WEEK_MS})
    read.save(second)
    for name in ("evidence.parquet", "evidence.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert compare(read, 2, SECOND, [0.5, 0.75]).pooled("weekly") == compare(evidence, 2, SECOND, [0.5, 0.75]).pooled(
        "weekly"
    )


def test_another_champion_starts_without_evidence() -> None:
    """The results against the former champion say nothing about its successor."""
    evidence = compare(compare(Evidence(), 1, FIRST, [1.0, 0.0]), 2, SECOND, [0.5, 0.75], champion="bundle 1")
    assert (evidence.champion, evidence.pooled("weekly").num_targets) == ("bundle 1", 2)


def test_other_settings_are_another_recipe() -> None:
    """A challenger that was trained with other settings is not pooled, and does not remove the earlier evidence."""
    evidence = compare(compare(Evidence(), 1, FIRST, [1.0, 0.0]), 2, SECOND, [0.5, 0.75], recipe="monthly")
    assert (evidence.pooled("weekly").num_targets, evidence.pooled("monthly").num_targets) == (2, 2)
    assert evidence.pooled("weekly").challenger == 0.5


def test_old_comparisons_are_dropped() -> None:
    """With a limit of 4 weeks, a comparison of week 1 counts in week 5 but not in week 6."""
    evidence = compare(Evidence(), 1, FIRST, [1.0, 0.0])
    targets = [("u", "x", 99)]
    assert compare(evidence, 5, targets, [1.0], max_weeks=4).pooled("weekly").num_targets == 3
    assert compare(evidence, 6, targets, [1.0], max_weeks=4).pooled("weekly").num_targets == 1


def test_the_age_of_the_champion_counts_from_its_own_data() -> None:
    """The champion of week 3 was the challenger of week 1. An unknown champion is new when it is first seen."""
    evidence = Evidence().with_origin("bundle 1", WEEK_MS)
    assert compare(evidence, 3, SECOND, [0.5, 0.75], champion="bundle 1").champion_weeks(3 * WEEK_MS) == 2
    unknown = compare(evidence, 3, SECOND, [0.5, 0.75], champion="from elsewhere")
    assert [unknown.champion_weeks(week * WEEK_MS) for week in (2, 3, 7)] == [0, 0, 4]
    many = compare(Evidence(), 1, FIRST, [1.0, 0.0])
    for week in range(2, 300):
        many = compare(many, week, SECOND, [0.5, 0.75])
    assert len(many.origins) == 101
    assert many.champion_weeks(299 * WEEK_MS) == 298


def test_damaged_evidence_is_reported(tmp_path: Path) -> None:
    """A folder without evidence, from an earlier version, is no error; a damaged file is."""
    assert Evidence.load(tmp_path).targets.is_empty()
    compare(Evidence(), 1, FIRST, [1.0, 0.0]).save(tmp_path)
    (tmp_path / "evidence.parquet").write_bytes(b"nothing")
    with pytest.raises(StorageError, match=r"evidence.parquet and evidence.json do not hold the evidence"):
        Evidence.load(tmp_path)
