"""Sessions: a user's interactions cut where the pause is long, whatever the order of the rows."""

from itertools import pairwise

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning import clean
from macrec_pipeline.data.histories import build_histories
from macrec_pipeline.data.sessions import split_sessions
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_SCHEMA = {"user_id": pl.String, "timestamp": pl.Int64}


def test_a_longer_pause_begins_a_session() -> None:
    """A pause as long as the gap does not; ids that look like sessions stay apart."""
    rows = pl.DataFrame(
        [("u", 0), ("u", 10), ("u", 21), ("u#1", 0), ("v", 5), ("u#1", 99)], schema=_SCHEMA, orient="row"
    )
    assert split_sessions(rows, gap_ms=10).rows() == [
        ("u#1", 0),
        ("u#1", 10),
        ("u#2", 21),
        ("u#1#1", 0),
        ("u#1#2", 99),
        ("v#1", 5),
    ]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(["u", "u#1", "v"]), st.integers(0, 60)), max_size=30),
    gap=st.integers(0, 9),
    data=st.data(),
)
def test_sessions_partition_what_a_user_did(rows, gap, data) -> None:
    """No pause inside a session is longer than the gap, every one between two is, and shuffling changes nothing."""
    split = split_sessions(pl.DataFrame(rows, schema=_SCHEMA, orient="row"), gap_ms=gap).rows()
    assert sorted((session.rpartition("#")[0], time) for session, time in split) == sorted(rows)
    for user in {user for user, _ in rows}:
        times = [(time, session) for session, time in split if session.rpartition("#")[0] == user]
        for (before, first), (after, second) in pairwise(times):
            assert (first == second) == (after - before <= gap)
    shuffled = pl.DataFrame(data.draw(st.permutations(rows)), schema=_SCHEMA, orient="row")
    assert split_sessions(shuffled, gap_ms=gap).rows() == split


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
        [(item, item, None, None, None, "items", line, None) for line, item in enumerate("abc")],
        schema=RAW_ITEMS.columns,
        orient="row",
    )
    tables = clean(log, items, CleaningConfig(k_core=1, session_gap_minutes=30))
    histories = build_histories(tables.interactions, tables.items)
    assert histories.select("user_id", "item_indices").rows() == [("u#1", [0, 1, 2]), ("u#2", [0, 1, 2])]
    assert tables.quarantine.select("user_id", "source_row", "reason").rows() == [("u#1", 3, "duplicate")]
