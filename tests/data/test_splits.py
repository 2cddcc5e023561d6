"""The split by time keeps what it should, by hand-worked examples and against plain Python, and leaks nothing."""

from datetime import UTC, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from macrec_pipeline.config import SplitConfig
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.histories.splits import HeldOutPeriod, find_period, period_from_details
from macrec_pipeline.data.table_checks import histories_problems
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.time_units import HOUR_MS
from macrec_pipeline.schemas import INTERACTIONS, ITEMS

_ITEM_IDS = "abcdef"


def _interactions(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    """Build clean interactions from rows of (user, item, time)."""
    full = [(user, item, None, time) for user, item, time in rows]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row").sort("user_id", "timestamp", "item_id")


_ITEMS = pl.DataFrame(
    [(index, item, None, None, None, None, 1) for index, item in enumerate(_ITEM_IDS)],
    schema=ITEMS.columns,
    orient="row",
)


def _by_shares(test: float, later: float = 0.0) -> SplitConfig:
    return SplitConfig(method="global_time", test_share=test, later_share=later)


_LOG = [
    *(("both", item, time) for item, time in zip("abcde", (1, 2, 5, 10, 11), strict=True)),
    *(("early", item, time) for item, time in zip("abc", (1, 3, 4), strict=True)),
    *(("gap", item, time) for item, time in zip("abcd", (1, 3, 20, 21), strict=True)),
    *(("late", item, time) for item, time in zip("abc", (9, 10, 12), strict=True)),
]


def test_a_period_worked_out_by_hand() -> None:
    """In [10, 20), a user's first item is the test target; users need two items before the period."""
    histories = build_histories(_interactions(_LOG), _ITEMS, HeldOutPeriod(10, 20))
    assert histories.rows() == [
        (0, "both", [0, 1, 2, 3], [1, 2, 5, 10], True, 1),
        (1, "early", [0, 1, 2], [1, 3, 4], False, None),
        (2, "gap", [0, 1], [1, 3], False, None),  # its next item is after the period
    ]
    assert build_histories(_interactions(_LOG), _ITEMS, HeldOutPeriod(10)).row(2) == (
        2,
        "gap",
        [0, 1, 2],
        [1, 3, 20],
        True,
        1,
    )


def test_shares_determine_the_period() -> None:
    """Of times 0 to 9, the last fifth is [8, 10), or [5, 7) if three tenths are left out. Ties stay together."""
    log = _interactions([("u", "a", time) for time in range(10)])
    assert find_period(log, _by_shares(0.2)) == HeldOutPeriod(8, None)
    assert find_period(log.lazy(), _by_shares(0.2, 0.3)) == HeldOutPeriod(5, 7)
    tied = _interactions([("u", "a", time) for time in (0, 1, 1, 1, 1)])
    assert find_period(tied, _by_shares(0.2)) == HeldOutPeriod(1, None)
    assert find_period(log, SplitConfig()) is None


def test_a_period_between_two_moments() -> None:
    """A moment without a time zone is UTC, one with a time zone is converted, and the manifest preserves the period."""
    log = _interactions([("u", "a", time * HOUR_MS) for time in range(48)])
    config = SplitConfig(
        method="global_time",
        test_from=datetime(1970, 1, 2),
        test_until=datetime.fromisoformat("1970-01-02T12:00+02:00"),
    )
    period = find_period(log, config)
    assert period == HeldOutPeriod(24 * HOUR_MS, 34 * HOUR_MS)
    assert str(period) == "from 1970-01-02 00:00 UTC on until 1970-01-02 10:00 UTC"
    assert period_from_details(period.details()) == period
    assert period_from_details(None) is None


@pytest.mark.parametrize(
    "invalid",
    [
        {"test_share": 0.6, "later_share": 0.4},
        {"test_until": datetime(2020, 1, 1, tzinfo=UTC)},
        {"test_share": 0},
    ],
)
def test_inconsistent_settings_are_rejected(invalid: dict[str, object]) -> None:
    """Shares that leave nothing for training, an end without a beginning, and an empty share are invalid settings."""
    with pytest.raises(ValidationError):
        SplitConfig(method="global_time", **invalid)


def test_empty_periods_are_errors() -> None:
    """A log with a single time, a period after the log's end, and a period in which no user can be tested."""
    single_time = _interactions([("u", item, 7) for item in "abc"])
    with pytest.raises(DataError, match=r"contains 3 interactions and has 0 before it, .* 3 interactions are from"):
        find_period(single_time, _by_shares(0.2))
    with pytest.raises(DataError, match=r"split\.test_from"):
        find_period(single_time, SplitConfig(method="global_time", test_from=datetime(2020, 1, 1, tzinfo=UTC)))
    with pytest.raises(DataError, match="No user can be tested: none has 2 interactions before"):
        build_histories(_interactions(_LOG), _ITEMS, HeldOutPeriod(2))


_events = st.lists(st.tuples(st.sampled_from("uvwxyz"), st.sampled_from(_ITEM_IDS), st.integers(0, 12)))
_TESTED = [("t", "a", 0), ("t", "b", 0)]  # a user who is tested whatever else is drawn


@settings(max_examples=150, deadline=None)
@given(rows=_events, begin=st.integers(1, 12), length=st.sampled_from([None, 1, 3]))
def test_nothing_leaks_and_nothing_else_is_lost(
    rows: list[tuple[str, str, int]], begin: int, length: int | None
) -> None:
    """As in plain Python: training and validation lie before the period, the test target is the first item in it."""
    log = _interactions([*rows, *_TESTED, ("t", "c", begin)])
    period = HeldOutPeriod(begin, None if length is None else begin + length)
    expected = {}
    for user in sorted(set(log["user_id"])):
        rows_of_user = log.filter(pl.col("user_id") == user).select("item_id", "timestamp").rows()
        events = [(_ITEM_IDS.index(item), time) for item, time in rows_of_user]
        before, after = ([e for e in events if (e[1] >= begin) == late] for late in (False, True))
        tested = [event for event in after[:1] if period.end is None or event[1] < period.end]
        if len(before) >= 2:
            expected[user] = (before + tested, bool(tested))
    histories = build_histories(log.lazy(), _ITEMS, period)
    found = {
        row["user_id"]: (list(zip(row["item_indices"], row["timestamps"], strict=True)), row["tested"])
        for row in histories.iter_rows(named=True)
    }
    assert found == expected
    has_no_duplicates = not log.select(pl.struct("user_id", "item_id", "timestamp").is_duplicated().any()).item()
    if has_no_duplicates:
        assert histories_problems(histories, log, _ITEMS, period=period) == []


_PROBLEMS_OF_OTHER_PERIODS = {
    "training interaction or validation target that is not before the period": HeldOutPeriod(5, 20),
    "test target outside the period": HeldOutPeriod(11, 20),
    "user who is not tested": None,
    "history that is not exactly the user's interactions": HeldOutPeriod(10, 21),
}


@pytest.mark.parametrize(("problem", "other_period"), _PROBLEMS_OF_OTHER_PERIODS.items())
def test_histories_of_another_period_are_reported(problem: str, other_period: HeldOutPeriod | None) -> None:
    """Histories for the period [10, 20) break a rule if they are checked against another period."""
    log = _interactions(_LOG)
    histories = build_histories(log, _ITEMS, HeldOutPeriod(10, 20))
    assert histories_problems(histories, log, _ITEMS, period=HeldOutPeriod(10, 20)) == []
    problems = histories_problems(histories, log, _ITEMS, period=other_period)
    assert any(problem in line for line in problems), problems
