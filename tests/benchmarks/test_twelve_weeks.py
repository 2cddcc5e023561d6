"""Twelve simulated weeks of refresh, promotion, recommendations and prune, without a person."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.year import Week, read_weeks
from tests.benchmarks.twelve_weeks import DAMAGED_WEEK, EMPTY_WEEK, KILLED_WEEK, NUM_WEEKS

SECONDS = 3000


@pytest.fixture(scope="module")
def weeks(tmp_path_factory: pytest.TempPathFactory) -> list[Week]:
    folder = tmp_path_factory.mktemp("year")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MACREC_", "DAGSTER_"))}
    finished = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.twelve_weeks", str(folder)],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return read_weeks(folder / "weeks.jsonl")


@pytest.mark.slow
def test_twelve_weeks_need_no_person(weeks: list[Week]) -> None:
    """One week has no data, one delivery is damaged and replaced, and one refresh is killed and resumed."""
    assert [week.week for week in weeks] == list(range(NUM_WEEKS))
    assert [week.errors for week in weeks if week.stops] == []
    deliveries = {week.week: week.delivery for week in weeks if week.delivery != "as usual"}
    assert deliveries == {
        EMPTY_WEEK: "no interactions",
        DAMAGED_WEEK: "unreadable_times",
        KILLED_WEEK: "refresh killed",
    }
    assert {week.week: week.refused for week in weeks if week.refused} == {DAMAGED_WEEK: 1}
    assert sum(week.not_sold for week in weeks) == 0
    assert sum(week.without_row for week in weeks) == 0
    assert sum(week.moved_ids for week in weeks) == 0


@pytest.mark.slow
def test_the_served_model_has_learned_the_newest_week_every_week(weeks: list[Week]) -> None:
    """This holds although most challengers are refused, because so few users prove little."""
    assert [week.learnt for week in weeks] == [None if week.week == EMPTY_WEEK else 1.0 for week in weeks]
    assert sum(week.served != week.registered for week in weeks) >= 2, "otherwise no champion was refitted"
    means = {system: np.mean([week.ndcg[system] for week in weeks if week.ndcg]) for system in weeks[0].ndcg}
    assert means["served model"] > means["popularity"]


@pytest.mark.slow
def test_the_home_does_not_grow_for_ever(weeks: list[Week]) -> None:
    """All limits of `retention` are reached after about five weeks."""
    settled, later = weeks[5:8], weeks[8:]
    assert max(week.home_bytes for week in later) < 1.3 * max(week.home_bytes for week in settled)
