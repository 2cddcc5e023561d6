"""Sessions: a user's interactions cut where the pause is long, whatever the order of the rows."""

from itertools import pairwise

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean, user_slices
from macrec_pipeline.data.cleaning.encoded_log import KEPT, Rule, encode_log
from macrec_pipeline.data.cleaning.sessions import split_sessions
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_Rows = list[tuple[str, int]]


def _split(rows: _Rows, *, gap_ms: float) -> _Rows:
    """Session and time of the rows whose time is not negative, in the order of their users."""
    table = pl.DataFrame(rows, schema={"user_id": pl.String, "timestamp": pl.Int64}, orient="row").with_columns(
        item_id=pl.lit("i"), rating=pl.lit(None, dtype=pl.Float64), source_file=pl.lit("log"), source_row=pl.row_index()
    )
    coded = encode_log(table, [Rule("early", pl.col("timestamp") < 0, pl.lit(None, dtype=pl.String))])
    log = split_sessions(coded, gap_ms=gap_ms)
    assert log.user_ids.is_sorted()
    kept = [row for row in range(len(log)) if log.reasons[row] == KEPT]
    places = sorted(kept, key=lambda row: (rows[row], row))
    return [(log.user_ids[int(log.users[row])], int(log.timestamps[row])) for row in places]


def test_a_longer_pause_begins_a_session() -> None:
    """A pause as long as the gap does not; ids that look like sessions stay apart."""
    rows = [("u", 0), ("u", 10), ("u", 21), ("u#1", 0), ("v", 5), ("u#1", 99)]
    assert _split(rows, gap_ms=10) == [
        ("u#1", 0),
        ("u#1", 10),
        ("u#2", 21),
        ("u#1#1", 0),
        ("u#1#2", 99),
        ("v#1", 5),
    ]


def test_rows_with_a_reason_join_no_sessions() -> None:
    """A row that was dropped before neither begins a session nor bridges a pause."""
    assert _split([("u", -1), ("u", 0), ("v", -2)], gap_ms=5) == [("u#1", 0)]
    assert _split([("v", -2)], gap_ms=5) == []


@pytest.mark.parametrize("at_once", [1, 4, 1000])
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["u", "u#1", "v"]), st.integers(0, 60)), max_size=30),
    gap=st.integers(0, 9),
    data=st.data(),
)
def test_sessions_partition_what_a_user_did(at_once, rows, gap, data) -> None:
    """No pause inside a session is longer than the gap, every one between two is, and shuffling changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(user_slices, "_ROWS_A_SLICE", at_once)
        split = _split(rows, gap_ms=gap)
        shuffled = _split(data.draw(st.permutations(rows)), gap_ms=gap)
    assert sorted((session.rpartition("#")[0], time) for session, time in split) == sorted(rows)
    for user in {user for user, _ in rows}:
        times = [(time, session) for session, time in split if session.rpartition("#")[0] == user]
        for (before, first), (after, second) in pairwise(times):
            assert (first == second) == (after - before <= gap)
    assert shuffled == split


def test_each_session_has_a_history() -> None:
    """Through cleaning to histories: an item may come again in another session, copies are those of one session."""
    minute, start = 60_000, 1_700_000_000_000
    events = [("u", item, place) for place, item in enumerate("abcb")] + [("u", item, 100) for item in "bca"]
    log = pl.DataFrame(
        [
            (user, item, None, start + minute * time, "log", line, None)
            for line, (user, item, time) in enumerate(events)
        ],
        schema=RAW_INTERACTIONS.columns,
        orient="row",
    )
    items = pl.DataFrame(
        [(item, item, *[None] * 4, "items", line, None) for line, item in enumerate("abc")],
        schema=RAW_ITEMS.columns,
        orient="row",
    )
    tables = clean(log, items, CleaningConfig(k_core=1, session_gap_minutes=30))
    histories = build_histories(tables.interactions, tables.items)
    assert histories.select("user_id", "item_indices").rows() == [("u#1", [0, 1, 2]), ("u#2", [0, 1, 2])]
    assert tables.quarantine.select("user_id", "source_row", "reason").rows() == [("u#1", 3, "duplicate")]
