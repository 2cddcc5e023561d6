"""The encoded log: its rows are sorted as a plain sort of all columns would sort them."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.cleaning.encoded_log import sort_by_user_and_time
from macrec_pipeline.runtime.time_units import DAY_MS


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.sampled_from([1.0, 2.0, math.nan])),
        max_size=30,
    ),
    unit=st.sampled_from([1, 999, 1000, DAY_MS]),
    far_ms=st.sampled_from([0, 2**31, 2**61]),
)
def test_rows_are_sorted_by_user_time_item_and_rating(
    rows: list[tuple[int, int, int, float]], unit: int, far_ms: int
) -> None:
    """The order is that of a plain sort with missing ratings last, however many columns fit into one integer."""
    users, times, items, ratings = (np.array([row[column] for row in rows]) for column in range(4))
    times = times.astype(np.int64) * unit + np.where(times == 4, far_ms, 0)
    order = sort_by_user_and_time(users.astype(np.uint32), times, items.astype(np.uint32), ratings.astype(np.float64))
    key = [(users[row], times[row], items[row], math.isnan(ratings[row]), ratings[row]) for row in range(len(rows))]
    expected = sorted(range(len(rows)), key=lambda row: [0 if value != value else value for value in key[row]])
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert [repr(key[row]) for row in order] == [repr(key[row]) for row in expected]
