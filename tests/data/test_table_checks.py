"""The blocking checks: good tables pass, and each way of being broken is reported for what it is."""

from collections.abc import Callable

import polars as pl
import pytest

from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.table_checks import histories_problems, interactions_problems, items_problems
from macrec_pipeline.schemas import INTERACTIONS, ITEMS

_T = 1_700_000_000_000
_ROWS = [("u", "abcd"), ("v", "dca"), ("w", "bda")]


def _interactions(rows: list[tuple[str, str]] = _ROWS) -> pl.DataFrame:
    full = [(user, item, 4.0, _T + place) for user, items in rows for place, item in enumerate(items)]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row").sort("user_id", "timestamp", "item_id")


def _items(rows: list[tuple[str, str]] = _ROWS) -> pl.DataFrame:
    everything = "".join(items for _, items in rows)
    full = [
        (index, item, "T", None, f"shop/{item}.jpg", None, everything.count(item))
        for index, item in enumerate(sorted(set(everything)))
    ]
    return pl.DataFrame(full, schema=ITEMS.columns, orient="row")


def _set(table: pl.DataFrame, row: int, column: str, value: object) -> pl.DataFrame:
    values = table[column].to_list()
    values[row] = value
    return table.with_columns(pl.Series(column, values, dtype=table[column].dtype))


def test_good_tables_have_no_problems() -> None:
    """What cleaning and splitting leave is reported as fine, with repeats too."""
    interactions, items = _interactions(), _items()
    histories = build_histories(interactions, items)
    assert interactions_problems(interactions) == []
    assert items_problems(items, interactions) == []
    assert histories_problems(histories, interactions, items) == []
    again = [("u", "abca"), ("v", "cbb")]
    histories = build_histories(_interactions(again), _items(again))
    assert interactions_problems(_interactions(again)) == []
    assert histories_problems(histories, _interactions(again), _items(again)) == []


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
def test_bad_interactions(column: str, value: object, problem: str) -> None:
    """The rule, how often it is broken, and the first row."""
    problems = interactions_problems(_set(_interactions(), 4, column, value))
    assert any(f"1 x {problem}; the first: {{'row': 4" in line for line in problems), problems


def test_bad_interactions_as_a_whole() -> None:
    """Copies, short users, rows out of order and an empty table."""
    good = _interactions()
    assert (
        "repeated user, item and time"
        in interactions_problems(pl.concat([good, good[:1]]).sort("user_id", "timestamp"))[0]
    )
    assert "1 x user with fewer than 3" in interactions_problems(good.head(6))[0]
    assert interactions_problems(good.reverse()) == ["interactions: rows are not in the order of user_id, timestamp."]
    assert interactions_problems(good.clear()) == ["interactions: there is no row."]


@pytest.mark.parametrize(
    ("column", "value", "problem"),
    [
        ("item_id", "", "missing item_id"),
        ("item_id", "a", "repeated item_id"),
        ("item_id", "zz", "item without an interaction"),
        ("item_id", "zz", "interaction with an item that is not in items"),
        ("item_id", "zz", "item_id out of order"),
        ("item_index", 7, "item_index out of line"),
        ("num_interactions", 9, "another number of interactions"),
        ("image_path", "../secret.jpg", "image_path that leaves"),
        ("image_path", "shop/../../x.jpg", "image_path that leaves"),
        ("image_path", "/etc/x.jpg", "image_path that leaves"),
    ],
)
def test_bad_items(column: str, value: object, problem: str) -> None:
    """Each rule of the catalogue, alone and beside the interactions."""
    problems = items_problems(_set(_items(), 1, column, value), _interactions())
    assert any(problem in line for line in problems), problems


def _swap(items: list[int], stamps: list[int], one: int, other: int) -> tuple[list[int], list[int]]:
    items[one], items[other] = items[other], items[one]
    stamps[one], stamps[other] = stamps[other], stamps[one]
    return items, stamps


_HISTORY_FAULTS: list[tuple[str, Callable[[list[int], list[int]], tuple[list[int], list[int]]]]] = [
    ("history that is not exactly the user's interactions", lambda items, stamps: (items[1:], stamps[1:])),
    ("history that is not exactly the user's interactions", lambda items, stamps: ([2, *items[1:]], stamps)),
    ("history that is not exactly the user's interactions", lambda items, stamps: (items, [_T - 5, *stamps[1:]])),
    ("item index outside the catalogue", lambda items, stamps: ([*items[:-1], 4], stamps)),
    ("item index outside the catalogue", lambda items, stamps: ([-1, *items[1:]], stamps)),
    ("history shorter than 3", lambda items, stamps: (items[:2], stamps[:2])),
    ("another number of times than items", lambda items, stamps: (items, stamps[:-1])),
    ("history that goes back in time", lambda items, stamps: _swap(items, stamps, 0, 1)),
    ("training interaction later than the validation target", lambda items, stamps: _swap(items, stamps, 0, 2)),
    ("training interaction later than the validation target", lambda items, stamps: (items, [_T + 9, *stamps[1:]])),
    ("training interaction later than the test target", lambda items, stamps: _swap(items, stamps, 0, 3)),
    ("validation target later than the test target", lambda items, stamps: _swap(items, stamps, 2, 3)),
    ("test target that is in the user's training part", lambda items, stamps: ([*items[:-1], items[0]], stamps)),
    (
        "validation target that is in the user's training part",
        lambda items, stamps: ([*items[:2], items[0], items[3]], stamps),
    ),
]


@pytest.mark.parametrize(("problem", "fault"), _HISTORY_FAULTS)
def test_bad_histories(problem: str, fault: Callable[[list[int], list[int]], tuple[list[int], list[int]]]) -> None:
    """Every leak and every difference from the interactions is found in one spoilt history, and its user named."""
    interactions, items = _interactions(), _items()
    histories = build_histories(interactions, items)
    spoilt, stamps = fault(histories["item_indices"][0].to_list(), histories["timestamps"][0].to_list())
    broken = _set(_set(histories, 0, "item_indices", spoilt), 0, "timestamps", stamps)
    problems = histories_problems(broken, interactions, items)
    assert any(problem in line and "'user_id': 'u'" in line for line in problems), problems


def test_histories_that_lack_or_repeat_users() -> None:
    """A user too many, too few or twice is found."""
    interactions, items = _interactions(), _items()
    histories = build_histories(interactions, items)
    assert "not exactly" in histories_problems(histories[:2], interactions, items)[0]
    twice = pl.concat([histories, histories[:1]])
    assert [line.split(";")[0] for line in histories_problems(twice, interactions, items)] == [
        "histories: 1 x repeated user_id",
        "histories: 1 x user_index out of line with its row",
    ]
    assert "not exactly" in histories_problems(histories, interactions.filter(pl.col("user_id") != "v"), items)[0]
    assert histories_problems(histories.clear(), interactions, items) == ["histories: there is no row."]


def test_wanted_repeats_are_no_leak() -> None:
    """Where users repeat items, a target that was bought before is not reported; a training event after it still is."""
    again = [("u", "abca"), ("v", "cbb")]
    interactions, items = _interactions(again), _items(again)
    histories = build_histories(interactions, items)
    assert histories_problems(histories, interactions, items) == []
    spoilt, stamps = _swap(histories["item_indices"][0].to_list(), histories["timestamps"][0].to_list(), 0, 3)
    broken = _set(_set(histories, 0, "item_indices", spoilt), 0, "timestamps", stamps)
    assert any("later than the test target" in line for line in histories_problems(broken, interactions, items))
