"""The checks of the clean tables: valid tables pass, and each broken rule is reported."""

from collections.abc import Callable

import polars as pl
import pytest

from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.table_checks import histories_problems, interactions_problems, items_problems
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import HISTORIES, INTERACTIONS, ITEMS

_START = 1_700_000_000_000
_ROWS = [("u", "abcd"), ("v", "dca"), ("w", "bda")]


def _interactions(rows: list[tuple[str, str]] = _ROWS) -> pl.DataFrame:
    full = [(user, item, 4.0, _START + position) for user, items in rows for position, item in enumerate(items)]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row").sort("user_id", "timestamp", "item_id")


def _catalogue(rows: list[tuple[str, str]] = _ROWS) -> pl.DataFrame:
    all_items = "".join(items for _, items in rows)
    full = [
        (index, item, "T", None, f"shop/{item}.jpg", None, all_items.count(item))
        for index, item in enumerate(sorted(set(all_items)))
    ]
    return pl.DataFrame(full, schema=ITEMS.columns, orient="row")


def _with_cell(table: pl.DataFrame, row: int, column: str, value: object) -> pl.DataFrame:
    values = table[column].to_list()
    values[row] = value
    return table.with_columns(pl.Series(column, values, dtype=table[column].dtype))


def test_valid_tables_have_no_problems() -> None:
    """Tables as cleaning and splitting produce them pass, also if users repeat items."""
    interactions, items = _interactions(), _catalogue()
    histories = build_histories(interactions, items)
    assert interactions_problems(interactions) == []
    assert items_problems(items, interactions) == []
    assert histories_problems(histories, interactions, items) == []
    repeats = [("u", "abca"), ("v", "cbb")]
    histories = build_histories(_interactions(repeats), _catalogue(repeats))
    assert interactions_problems(_interactions(repeats)) == []
    assert histories_problems(histories, _interactions(repeats), _catalogue(repeats)) == []


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("user_id", None, "missing user_id"),
        ("user_id", "", "missing user_id"),
        ("item_id", None, "missing item_id"),
        ("timestamp", None, "missing timestamp"),
        ("timestamp", 631_151_999_999, "timestamp before 1990"),
        ("timestamp", 4_000_000_000_000, "timestamp in the future"),
        ("rating", float("nan"), "rating that is not finite"),
    ],
)
def test_an_invalid_cell_in_interactions_is_reported(column: str, value: object, problem: str) -> None:
    """The line names the rule, how many rows break it, and the first of them."""
    problems = interactions_problems(_with_cell(_interactions(), 4, column, value))
    assert any(f"1 x {problem}; the first: {{'row': 4" in line for line in problems), problems


def test_invalid_interactions_as_a_whole_are_reported() -> None:
    """Duplicates, users with too few interactions, rows out of order, and an empty table."""
    valid = _interactions()
    assert (
        "repeated user, item and time"
        in interactions_problems(pl.concat([valid, valid[:1]]).sort("user_id", "timestamp"))[0]
    )
    assert "1 x user with fewer than 3" in interactions_problems(valid.head(6))[0]
    assert interactions_problems(valid.reverse()) == ["interactions: rows are not sorted by user_id, timestamp."]
    assert interactions_problems(valid.clear()) == ["interactions: the table has no rows."]


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("item_id", "", "missing item_id"),
        ("item_id", "a", "repeated item_id"),
        ("item_id", "zz", "item without an interaction"),
        ("item_id", "zz", "interaction with an item that is not in items"),
        ("item_id", "zz", "item_id out of order"),
        ("item_index", 7, "item_index that differs from the row's position"),
        ("num_interactions", 9, "num_interactions that differs"),
        ("image_path", "../secret.jpg", "image_path that leaves"),
        ("image_path", "shop/../../x.jpg", "image_path that leaves"),
        ("image_path", "/etc/x.jpg", "image_path that leaves"),
    ],
)
def test_an_invalid_cell_in_items_is_reported(column: str, value: object, problem: str) -> None:
    """Each rule of the catalogue is checked, both by itself and against the interactions."""
    problems = items_problems(_with_cell(_catalogue(), 1, column, value), _interactions())
    assert any(problem in line for line in problems), problems


def _swap(items: list[int], times: list[int], first: int, second: int) -> tuple[list[int], list[int]]:
    items[first], items[second] = items[second], items[first]
    times[first], times[second] = times[second], times[first]
    return items, times


_HISTORY_FAULTS: list[tuple[str, Callable[[list[int], list[int]], tuple[list[int], list[int]]]]] = [
    ("history that is not exactly the user's interactions", lambda items, times: (items[1:], times[1:])),
    ("history that is not exactly the user's interactions", lambda items, times: ([2, *items[1:]], times)),
    ("history that is not exactly the user's interactions", lambda items, times: (items, [_START - 5, *times[1:]])),
    ("item index outside the catalogue", lambda items, times: ([*items[:-1], 4], times)),
    ("item index outside the catalogue", lambda items, times: ([-1, *items[1:]], times)),
    ("history shorter than 3", lambda items, times: (items[:2], times[:2])),
    ("a different number of times than items", lambda items, times: (items, times[:-1])),
    ("history that goes back in time", lambda items, times: _swap(items, times, 0, 1)),
    ("training interaction later than the validation target", lambda items, times: _swap(items, times, 0, 2)),
    ("training interaction later than the validation target", lambda items, times: (items, [_START + 9, *times[1:]])),
    ("training interaction later than the test target", lambda items, times: _swap(items, times, 0, 3)),
    ("validation target later than the test target", lambda items, times: _swap(items, times, 2, 3)),
    ("test target that is in the user's training part", lambda items, times: ([*items[:-1], items[0]], times)),
    (
        "validation target that is in the user's training part",
        lambda items, times: ([*items[:2], items[0], items[3]], times),
    ),
]


@pytest.mark.parametrize(("problem", "fault"), _HISTORY_FAULTS)
def test_an_invalid_history_is_reported(
    problem: str, fault: Callable[[list[int], list[int]], tuple[list[int], list[int]]]
) -> None:
    """Every leak and every difference from the interactions is found in a single invalid history, with its user."""
    interactions, items = _interactions(), _catalogue()
    histories = build_histories(interactions, items)
    changed_items, times = fault(histories["item_indices"][0].to_list(), histories["timestamps"][0].to_list())
    invalid = _with_cell(_with_cell(histories, 0, "item_indices", changed_items), 0, "timestamps", times)
    problems = histories_problems(invalid, interactions, items)
    assert any(problem in line and "'user_id': 'u'" in line for line in problems), problems


def test_a_wrong_number_of_interactions_at_the_target_time_is_reported() -> None:
    """The check counts them in the interactions, so a number that only looks valid is found too."""
    interactions, items = _interactions(), _catalogue()
    histories = build_histories(interactions, items)
    wrong = _with_cell(histories, 0, "num_at_target_time", 2)
    problem = "histories: 1 x num_at_target_time that is not the number of such interactions"
    assert [line.split(";")[0] for line in histories_problems(wrong, interactions, items)] == [problem]
    for value, rule in ((0, "does not count the test target"), (None, "does not count the test target")):
        with pytest.raises(SchemaError, match=rule):
            HISTORIES.check(_with_cell(histories, 0, "num_at_target_time", value))
    untested = histories.with_columns(tested=pl.lit(False))
    with pytest.raises(SchemaError, match="num_at_target_time of a user who is not tested"):
        HISTORIES.check(untested)


def test_missing_and_repeated_users_are_reported() -> None:
    """A user without a history, one who should have none, and one with two are found."""
    interactions, items = _interactions(), _catalogue()
    histories = build_histories(interactions, items)
    assert "not exactly" in histories_problems(histories[:2], interactions, items)[0]
    twice = pl.concat([histories, histories[:1]])
    assert [line.split(";")[0] for line in histories_problems(twice, interactions, items)] == [
        "histories: 1 x repeated user_id",
        "histories: 1 x user_index that differs from the row's position",
    ]
    assert "not exactly" in histories_problems(histories, interactions.filter(pl.col("user_id") != "v"), items)[0]
    assert histories_problems(histories.clear(), interactions, items) == ["histories: the table has no rows."]


def test_repeated_items_are_no_leak() -> None:
    """If users repeat items, a target may be in the training part, but no training event may follow the target."""
    repeats = [("u", "abca"), ("v", "cbb")]
    interactions, items = _interactions(repeats), _catalogue(repeats)
    histories = build_histories(interactions, items)
    assert histories_problems(histories, interactions, items) == []
    changed_items, times = _swap(histories["item_indices"][0].to_list(), histories["timestamps"][0].to_list(), 0, 3)
    invalid = _with_cell(_with_cell(histories, 0, "item_indices", changed_items), 0, "timestamps", times)
    assert any("later than the test target" in line for line in histories_problems(invalid, interactions, items))
