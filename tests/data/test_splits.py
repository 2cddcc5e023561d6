"""A split by time: what it keeps, worked out by hand and against plain Python, and that nothing leaks."""

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from macrec_pipeline.config import SplitConfig
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.histories.splits import HeldOutPeriod, find_period, period_of
from macrec_pipeline.data.table_checks import histories_problems
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import INTERACTIONS, ITEMS

_IDS = "abcdef"


def _interactions(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Rows of (user, item, time)."""
    full = [(user, item, None, stamp) for user, item, stamp in rows]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row").sort("user_id", "timestamp", "item_id")


_ITEMS_TABLE = pl.DataFrame(
    [(index, item, None, None, None, None, 1) for index, item in enumerate(_IDS)], schema=ITEMS.columns, orient="row"
)


def _by_shares(test: float, later: float = 0.0) -> SplitConfig:
    return SplitConfig(method="global_time", test_share=test, later_share=later)


_LOG = [
    *(("both", item, stamp) for item, stamp in zip("abcde", (1, 2, 5, 10, 11), strict=True)),
    *(("early", item, stamp) for item, stamp in zip("abc", (1, 3, 4), strict=True)),
    *(("gap", item, stamp) for item, stamp in zip("abcd", (1, 3, 20, 21), strict=True)),
    *(("late", item, stamp) for item, stamp in zip("abc", (9, 10, 12), strict=True)),
]


def test_a_period_worked_out_by_hand() -> None:
    """From 10 until 20: the first one in it is tested, later ones go, and two before it are needed to stay."""
    histories = build_histories(_interactions(_LOG), _ITEMS_TABLE, HeldOutPeriod(10, 20))
    assert histories.rows() == [
        (0, "both", [0, 1, 2, 3], [1, 2, 5, 10], True),
        (1, "early", [0, 1, 2], [1, 3, 4], False),
        (2, "gap", [0, 1], [1, 3], False),  # its next one is after the period
    ]
    assert build_histories(_interactions(_LOG), _ITEMS_TABLE, HeldOutPeriod(10)).row(2) == (
        2,
        "gap",
        [0, 1, 2],
        [1, 3, 20],
        True,
    )


def test_where_shares_put_the_period() -> None:
    """Of times 0..9 the last fifth begins at 8; with three tenths left out it is [5, 7); equal times stay together."""
    log = _interactions([("u", "a", stamp) for stamp in range(10)])
    assert find_period(log, _by_shares(0.2)) == HeldOutPeriod(8, None)
    assert find_period(log.lazy(), _by_shares(0.2, 0.3)) == HeldOutPeriod(5, 7)
    tied = _interactions([("u", "a", stamp) for stamp in (0, 1, 1, 1, 1)])
    assert find_period(tied, _by_shares(0.2)) == HeldOutPeriod(1, None)
    assert find_period(log, SplitConfig()) is None


def test_a_period_between_two_moments() -> None:
    """A moment without a zone is UTC, one with a zone is what it says; both survive the manifest."""
    log = _interactions([("u", "a", stamp * 3_600_000) for stamp in range(48)])
    config = SplitConfig(
        method="global_time",
        test_from=datetime(1970, 1, 2),
        test_until=datetime.fromisoformat("1970-01-02T12:00+02:00"),
    )
    period = find_period(log, config)
    assert period == HeldOutPeriod(24 * 3_600_000, 34 * 3_600_000)
    assert str(period) == "from 1970-01-02 00:00 UTC on until 1970-01-02 10:00 UTC"
    assert period_of(period.details()) == period
    assert period_of(None) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"test_share": 0.6, "later_share": 0.4},
        {"test_until": datetime(2020, 1, 1, tzinfo=UTC)},
        {"test_share": 0},
    ],
)
def test_settings_that_leave_nothing_are_refused(wrong: dict[str, object]) -> None:
    """Before a file is read."""
    with pytest.raises(ValidationError):
        SplitConfig(method="global_time", **wrong)


def test_periods_that_hold_nothing_are_errors() -> None:
    """Made-up times that are all one, a moment after the log's end, and a period in which nobody can be tested."""
    one_time = _interactions([("u", item, 7) for item in "abc"])
    with pytest.raises(DataError, match="has 3 interactions and 0 before it, of 3"):
        find_period(one_time, _by_shares(0.2))
    with pytest.raises(DataError, match=r"split\.test_from"):
        find_period(one_time, SplitConfig(method="global_time", test_from=datetime(2020, 1, 1, tzinfo=UTC)))
    with pytest.raises(DataError, match="No user has 2 interactions before"):
        build_histories(_interactions(_LOG), _ITEMS_TABLE, HeldOutPeriod(2))


_events = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from(_IDS), st.integers(0, 12)))
_TESTED = [("t", "a", 0), ("t", "b", 0)]  # who is tested by whatever else is drawn


@settings(max_examples=150, deadline=None)
@given(rows=_events, begin=st.integers(1, 12), length=st.sampled_from([None, 1, 3]))
def test_nothing_leaks_and_nothing_else_is_lost(
    rows: list[tuple[str, str, int]], begin: int, length: int | None
) -> None:
    """Against plain Python: training and validation lie before the period, the target is the first one in it."""
    log = _interactions([*rows, *_TESTED, ("t", "c", begin)])
    period = HeldOutPeriod(begin, None if length is None else begin + length)
    expected = {}
    for user in sorted(set(log["user_id"])):
        own = log.filter(pl.col("user_id") == user)
        events = [(_IDS.index(item), stamp) for item, stamp in own.select("item_id", "timestamp").rows()]
        before, after = ([e for e in events if (e[1] >= begin) == late] for late in (False, True))
        tested = [event for event in after[:1] if period.end is None or event[1] < period.end]
        if len(before) >= 2:
            expected[user] = (before + tested, bool(tested))
    histories = build_histories(log.lazy(), _ITEMS_TABLE, period)
    found = {
        row["user_id"]: (list(zip(row["item_indices"], row["timestamps"], strict=True)), row["tested"])
        for row in histories.iter_rows(named=True)
    }
    assert found == expected
    distinct = not log.select(pl.struct("user_id", "item_id", "timestamp").is_duplicated().any()).item()
    if distinct:
        assert histories_problems(histories, log, _ITEMS_TABLE, period=period) == []


_FAULTS = {
    "training interaction or validation target that is not before the period": HeldOutPeriod(5, 20),
    "test target outside the period": HeldOutPeriod(11, 20),
    "user who is not tested": None,
    "history that is not exactly the user's interactions": HeldOutPeriod(10, 21),
}


@pytest.mark.parametrize(("problem", "judged_by"), _FAULTS.items())
def test_histories_of_another_period_are_found_out(problem: str, judged_by: HeldOutPeriod | None) -> None:
    """Each rule, by histories that were cut for the period from 10 until 20."""
    log = _interactions(_LOG)
    histories = build_histories(log, _ITEMS_TABLE, HeldOutPeriod(10, 20))
    assert histories_problems(histories, log, _ITEMS_TABLE, period=HeldOutPeriod(10, 20)) == []
    problems = histories_problems(histories, log, _ITEMS_TABLE, period=judged_by)
    assert any(problem in line for line in problems), problems
