"""Histories: each user's interactions in chronological order."""

from collections import Counter

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macrec_pipeline.data.cleaning import encoded_log
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.histories.splits import HeldOutPeriod
from macrec_pipeline.data.ties import count_tied_in_histories, count_tied_interactions, count_undetermined_targets
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import INTERACTIONS


def _interactions(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    full = [(user, item, None, time) for user, item, time in rows]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row")


_ITEMS = pl.DataFrame({"item_id": ["1", "10", "2"], "item_index": [0, 1, 2]})


def test_histories_worked_out_by_hand() -> None:
    """Items are oldest first and keep the table's order at equal times; users are sorted; repeats are kept."""
    rows = [("u", "2", 7), ("u", "10", 7), ("u", "1", 9), ("v", "1", 3), ("v", "2", 4), ("v", "2", 5)]
    histories = build_histories(_interactions(rows), _ITEMS)
    assert histories.rows() == [(0, "u", [2, 1, 0], [7, 7, 9], True, 1), (1, "v", [0, 2, 2], [3, 4, 5], True, 1)]


def test_interactions_at_the_time_of_the_test_target_are_counted() -> None:
    """The target counts itself; interactions of other users or at other times do not count, in any batch size."""
    times = {"a": (7, 7, 9), "b": (9, 9, 9), "c": (9, 9, 9, 9), "d": (1, 9, 9), "e": (9, 10, 11)}
    rows = [(user, "1", time) for user, of_user in times.items() for time in of_user]
    histories = build_histories(_interactions(rows), _ITEMS)
    assert histories["num_at_target_time"].to_list() == [1, 3, 4, 2, 1]
    assert count_undetermined_targets(histories) == 3
    assert count_tied_in_histories(histories) == count_tied_interactions(_interactions(rows)) == 2 + 3 + 4 + 2


def test_after_a_split_by_time_the_interactions_that_it_leaves_out_count_too() -> None:
    """The test target is the first of the interactions at the first time in the period; the others are left out."""
    times = {"a": (1, 2, 5, 5, 5, 6), "b": (1, 2, 5, 6, 6), "c": (1, 2, 2), "d": (1, 5, 5), "e": (1, 1, 6, 6)}
    rows = [(user, "1", time) for user, of_user in times.items() for time in of_user]
    histories = build_histories(_interactions(rows), _ITEMS, HeldOutPeriod(5))
    assert histories.select("user_id", "tested", "num_at_target_time").rows() == [
        ("a", True, 3),
        ("b", True, 1),
        ("c", False, None),
        ("e", True, 2),
    ]
    assert count_undetermined_targets(histories) == 2
    assert count_tied_in_histories(histories) == 2 + 2  # of c and e, before the period


@given(
    st.lists(st.tuples(st.sampled_from("uvw"), st.integers(0, 4)), min_size=1, max_size=40).filter(
        lambda rows: len({user for user, _ in rows}) > 1
    )
)
def test_ties_are_counted_as_in_plain_python(rows: list[tuple[str, int]]) -> None:
    """Rows tied in `interactions` and in histories are those whose user and time occur more than once."""
    rows = sorted(rows)
    counts = Counter(rows)
    table = _interactions([(user, "1", time) for user, time in rows])
    histories = build_histories(table, _ITEMS)
    last = dict(rows)
    assert count_tied_interactions(table) == sum(number for number in counts.values() if number > 1)
    assert count_tied_in_histories(histories) == count_tied_interactions(table)
    assert histories["num_at_target_time"].to_list() == [counts[user, last[user]] for user in sorted(last)]


@pytest.mark.parametrize("batch_rows", [1, 100])
@pytest.mark.parametrize(
    "rows",
    [
        [("u", "2", 7), ("u", "10", 6)],
        [("u", "2", 7), ("v", "2", 8), ("v", "1", 9), ("u", "1", 9)],
        [("v", "2", 7), ("u", "2", 8)],
    ],
    ids=["time goes back", "user in two places", "users not sorted"],
)
def test_interactions_out_of_order_are_rejected(
    rows: list[tuple[str, str, int]], batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histories take the order of the table, so a table or scan that is not sorted is an error, in any batch size."""
    monkeypatch.setattr(encoded_log, "_BATCH_ROWS", batch_rows)
    table = _interactions(rows)
    for source in (table, table.lazy()):
        with pytest.raises(
            SchemaError, match=r"interactions \(for histories\): rows must be sorted by user_id, timestamp"
        ):
            build_histories(source, _ITEMS)


def test_an_item_outside_the_catalogue_is_rejected() -> None:
    """The error names the item and the user."""
    with pytest.raises(SchemaError, match="item 'x' of user 'u' is not in items"):
        build_histories(_interactions([("u", "x", 1)]), _ITEMS)
