"""Cleaning: each raw row is kept or goes to quarantine with a reason, and sessions split where a pause is long."""

import math
from itertools import pairwise
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning import encoded_log
from macrec_pipeline.data.cleaning.clean import clean, split_sessions
from macrec_pipeline.data.cleaning.encoded_log import KEPT, Rule, encode_log
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.table_checks import items_problems
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.runtime.time_units import MINUTE_MS
from macrec_pipeline.schemas import EARLIEST_MS, RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000


def _log(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Build a raw log from rows of (user, item, rating, timestamp); the first is line 2."""
    full = [(*row, "log.csv", line, None) for line, row in enumerate(rows, start=2)]
    return pl.DataFrame(full, schema=RAW_INTERACTIONS.columns, orient="row")


def _items(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Build a raw catalogue from rows of (item, title, text, image), optionally followed by categories."""
    full = [(*row[:4], None, [*row[4:], None][0], "items.csv", line, None) for line, row in enumerate(rows, start=2)]
    return pl.DataFrame(full, schema=RAW_ITEMS.columns, orient="row")


def _catalogue(ids: str) -> pl.DataFrame:
    return _items(*((item, f"Item {item}", None, None) for item in ids))


def _valid_rows(user: str, items: str, start: int = _NOW) -> list[tuple[Any, ...]]:
    return [(user, item, 5.0, start + position) for position, item in enumerate(items)]


_PERMISSIVE = CleaningConfig(k_core=1, max_quarantined_share=1)


def _reasons_by_line(quarantine: pl.DataFrame, table: str = "raw_interactions") -> dict[int, str]:
    rows = quarantine.filter(pl.col("table") == table)
    return dict(zip(rows["source_row"], rows["reason"], strict=True))


def test_each_unusable_value_has_a_reason_of_its_own() -> None:
    """Quarantine names the line and the reason for unusable IDs, times, ratings and items."""
    bad: list[tuple[tuple[Any, ...], str]] = [
        ((None, "a", 1.0, _NOW), "missing_user_id"),
        (("", "a", 1.0, _NOW), "missing_user_id"),
        (("u", None, 1.0, _NOW), "missing_item_id"),
        (("u", "a", 1.0, None), "missing_timestamp"),
        (("u", "a", 1.0, EARLIEST_MS - 1), "timestamp_out_of_range"),
        (("u", "a", 1.0, _NOW + 1001), "timestamp_out_of_range"),
        (("u", "a", math.nan, _NOW), "non_finite_rating"),
        (("u", "a", math.inf, _NOW), "non_finite_rating"),
        (("u", "z", 1.0, _NOW), "unknown_item"),
    ]
    raw = _log(*_valid_rows("u", "abc"), *(row for row, _ in bad))
    result = clean(raw, _catalogue("abc"), _PERMISSIVE, latest=_NOW + 1000)
    assert _reasons_by_line(result.quarantine) == {5 + position: reason for position, (_, reason) in enumerate(bad)}
    assert result.interactions["item_id"].to_list() == ["a", "b", "c"]
    assert result.quarantine["source_file"].unique().to_list() == ["log.csv"]


def test_the_range_of_accepted_times_includes_its_ends() -> None:
    """1990-01-01 and `latest` are accepted. Without `latest`, a time in the far future is not."""
    raw = _log(("u", "a", None, EARLIEST_MS), ("u", "b", None, _NOW), ("u", "c", None, _NOW + 1))
    with pytest.raises(DataError, match="timestamp_out_of_range"):
        clean(raw, _catalogue("abc"), _PERMISSIVE, latest=_NOW)
    assert clean(raw, _catalogue("abc"), _PERMISSIVE, latest=_NOW + 1).interactions.height == 3
    far = 4_000_000_000_000  # in the year 2096
    assert _reasons_by_line(
        clean(_log(*_valid_rows("u", "abc"), ("u", "a", None, far)), _catalogue("abc"), _PERMISSIVE).quarantine
    ) == {5: "timestamp_out_of_range"}


def test_min_rating() -> None:
    """With a threshold, lower ratings and rows without a rating are dropped; without one, both are kept."""
    raw = _log(*_valid_rows("u", "abc"), ("u", "d", 2.9, _NOW), ("u", "e", None, _NOW), ("u", "f", 3.0, _NOW))
    strict = clean(raw, _catalogue("abcdef"), CleaningConfig(k_core=1, min_rating=3.0))
    assert _reasons_by_line(strict.quarantine) == {5: "below_min_rating", 6: "missing_rating"}
    assert clean(raw, _catalogue("abcdef"), _PERMISSIVE).quarantine.is_empty()


@pytest.mark.parametrize(
    ("policy", "kept", "dropped"),
    [("first", [(5, 4.0)], {2, 4}), ("last", [(9, 1.0)], {3, 4}), ("keep", [(5, 4.0), (9, 1.0)], {4})],
)
def test_duplicates_follow_the_policy(policy: str, kept: list[tuple[int, float]], dropped: set[int]) -> None:
    """`first` and `last` keep one row per user and item, by time; `keep` drops only rows that also agree in time."""
    raw = _log(
        ("u", "a", 1.0, _NOW + 9),
        ("u", "a", 4.0, _NOW + 5),
        ("u", "a", 4.0, _NOW + 5),
        *_valid_rows("u", "bcd", _NOW + 20),
    )
    result = clean(raw, _catalogue("abcd"), CleaningConfig(k_core=1, duplicates=policy))
    of_a = result.interactions.filter(pl.col("item_id") == "a")
    assert [(stamp - _NOW, rating) for stamp, rating in of_a.select("timestamp", "rating").rows()] == kept
    assert set(_reasons_by_line(result.quarantine)) == dropped
    assert set(_reasons_by_line(result.quarantine).values()) == {"duplicate"}


def test_equal_times_are_ordered_by_item_id_or_by_position() -> None:
    """At equal times, item_id decides; with `ties: position` the file does, also among duplicates."""
    raw = _log(("u", "c", 2.0, _NOW), ("u", "a", 1.0, _NOW), ("u", "b", 1.0, _NOW), ("u", "c", 1.0, _NOW))
    by_id = clean(raw, _catalogue("abc"), CleaningConfig(k_core=1, ties="item_id")).interactions
    assert by_id.select("item_id", "rating").rows() == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    by_line = clean(raw, _catalogue("abc"), CleaningConfig(k_core=1, ties="position")).interactions
    assert by_line.select("item_id", "rating").rows() == [("c", 2.0), ("a", 1.0), ("b", 1.0)]
    last = clean(raw, _catalogue("abc"), CleaningConfig(k_core=1, ties="position", duplicates="last")).interactions
    assert last.select("item_id", "rating").rows() == [("a", 1.0), ("b", 1.0), ("c", 1.0)]


def test_the_readers_problem_takes_precedence() -> None:
    """A row with a problem goes to quarantine with the reader's reason and detail, whatever else is wrong with it."""
    raw = _log(*_valid_rows("u", "abc"), (None, None, None, None), ("u", "a", None, None)).with_columns(
        pl.Series("problem", [None, None, None, "invalid_json: Extra data: line 1", "wrong_type"])
    )
    items = _catalogue("abcd").with_columns(pl.Series("problem", [None, None, None, "wrong_type: title is {}"]))
    quarantine = clean(raw, items, _PERMISSIVE).quarantine
    assert quarantine.select("source_file", "source_row", "reason", "detail").rows() == [
        ("log.csv", 5, "invalid_json", "Extra data: line 1"),
        ("log.csv", 6, "wrong_type", None),
        ("items.csv", 5, "wrong_type", "title is {}"),
    ]


def test_of_duplicate_items_the_most_complete_row_is_kept() -> None:
    """The most filled cells win, then the longest text. The other rows go to quarantine and name the kept one."""
    items = _items(
        ("a", "A", None, None),
        ("a", "A", "long text", "a.jpg"),
        ("a", "A", "longest text", "a.jpg"),
        ("b", "B", None, None),
        ("b", "B", None, None),
        ("c", "C", None, None),
        (None, "?", "no id", None),
        ("d", None, "the longest text of them all", None),
        ("d", "D", "short", "d.jpg"),
        ("e", "E", None, None),
        ("e", "E", None, None, ["Shoes"]),
        ("f", "F", None, None, ["Shoes"]),
        ("f", "F", None, None, ["Boots", "Shoes"]),
    )
    result = clean(_log(*_valid_rows("u", "abcdef")), items, _PERMISSIVE)
    assert _reasons_by_line(result.quarantine, "raw_items") == {
        2: "duplicate_item",
        3: "duplicate_item",
        6: "duplicate_item",
        8: "missing_item_id",
        9: "duplicate_item",
        11: "duplicate_item",
        13: "duplicate_item",
    }
    assert result.items["text"].to_list() == ["longest text", None, None, "short", None, None]
    assert result.items["categories"].to_list() == [None] * 4 + [["Shoes"], ["Boots", "Shoes"]]
    assert "row 4 of items.csv is kept" in result.quarantine["detail"].to_list()


def test_items_without_interactions_go_to_quarantine() -> None:
    """Items without usable interactions and items outside the k-core have different reasons."""
    raw = _log(*_valid_rows("u", "abc"), *_valid_rows("short", "de"), ("u", "f", None, None))
    result = clean(raw, _catalogue("abcdefg"), _PERMISSIVE)
    assert result.items.select("item_index", "item_id", "num_interactions").rows() == [
        (0, "a", 1),
        (1, "b", 1),
        (2, "c", 1),
    ]
    items = result.quarantine.filter(pl.col("table") == "raw_items")
    assert dict(zip(items["item_id"], items["reason"], strict=True)) == {
        "d": "k_core",
        "e": "k_core",
        "f": "no_interactions",
        "g": "no_interactions",
    }
    assert set(_reasons_by_line(result.quarantine).values()) == {"too_short", "missing_timestamp"}


def test_items_without_interactions_can_be_kept() -> None:
    """With the setting, items without interactions (c, d) or outside the core (e) stay; unusable ones do not."""
    log = _log(
        *(row for user in "uvw" for row in _valid_rows(user, "abf")), *_valid_rows("x", "e"), ("u", "d", 1.0, None)
    )
    raw_items = pl.concat([_catalogue("abcdef"), _items((None, "No id", None, None))])
    core = CleaningConfig(k_core=3, max_quarantined_share=1)
    keep_all = core.model_copy(update={"keep_items_without_interactions": True})
    tables, strict = (clean(log, raw_items, config) for config in (keep_all, core))
    assert dict(tables.items.select("item_id", "num_interactions").iter_rows()) == {
        "a": 3, "b": 3, "c": 0, "d": 0, "e": 0, "f": 3
    }  # fmt: skip
    assert tables.items["item_index"].to_list() == list(range(6))
    assert set(_reasons_by_line(tables.quarantine, "raw_items").values()) == {"missing_item_id"}
    assert tables.interactions.equals(strict.interactions)
    assert items_problems(tables.items, tables.interactions, allow_items_without_interactions=True) == []
    assert "item without an interaction" in " ".join(items_problems(tables.items, tables.interactions))


def test_items_are_sorted_by_id_as_a_string() -> None:
    """The order of item_index is that of item_id as a string: 1, 10, 2."""
    raw = _log(("u", "2", None, _NOW), ("u", "10", None, _NOW), ("u", "1", None, _NOW))
    items = _items(*((item, None, None, None) for item in ("2", "10", "1")))
    result = clean(raw, items, _PERMISSIVE)
    assert result.items["item_id"].to_list() == ["1", "10", "2"]
    assert result.interactions["item_id"].to_list() == ["1", "10", "2"]


def test_the_catalogue_keeps_image_addresses() -> None:
    """A service can show them. A catalogue without addresses has no such column."""
    raw = _log(*_valid_rows("u", "abc"))
    catalogue = _catalogue("abc")
    assert "image_url" not in clean(raw, catalogue, _PERMISSIVE).items.columns
    addresses = pl.Series("image_url", ["http://x/1.jpg http://x/2.jpg", None, "http://x/3.jpg"])
    items = clean(raw, catalogue.with_columns(addresses), _PERMISSIVE).items
    assert dict(items.select("item_id", "image_url").iter_rows()) == dict(zip("abc", addresses, strict=True))


def test_the_error_for_an_empty_result_counts_dropped_rows_by_reason() -> None:
    """The message counts the dropped rows per reason and says what to check."""
    raw = _log(("u", "x", None, _NOW), ("u", "y", None, _NOW), ("u", "a", None, None))
    with pytest.raises(
        DataError,
        match=r"none of 3 interactions.*unknown_item 2, missing_timestamp 1.*both files use the same item IDs",
    ):
        clean(raw, _catalogue("ab"), _PERMISSIVE)
    raw = _log(("u", "1.0", None, _NOW), ("u", "2.0", None, _NOW))
    sides = r"Only the log has ids such as '1\.0', '2\.0'; the catalogue has '1', '2'\. They match without a fraction"
    with pytest.raises(DataError, match=sides):
        clean(raw, _catalogue("123"), _PERMISSIVE)
    with pytest.raises(DataError, match=r"k_core 3\. Lower `cleaning\.k_core` \(now 5\)"):
        clean(_log(*_valid_rows("u", "abc")), _catalogue("abc"), CleaningConfig(k_core=5))
    with pytest.raises(DataError, match="the interaction file is empty"):
        clean(RAW_INTERACTIONS.empty(), _catalogue("ab"), _PERMISSIVE)


def test_tables_of_another_schema_are_rejected() -> None:
    """A table that breaks the raw schema is named before anything is computed."""
    with pytest.raises(SchemaError, match="raw_items"):
        clean(_log(), _log(), _PERMISSIVE)


_ids = st.sampled_from([None, "", "a", "b", "c", "d"])
_rows = st.lists(
    st.tuples(
        st.sampled_from([None, "u", "v", "w"]),
        _ids,
        st.sampled_from([None, 1.0, 3.0, math.nan]),
        st.sampled_from([None, 0, _NOW, _NOW + 1, _NOW + 2]),
    ),
    max_size=40,
)
_item_rows = st.lists(
    st.tuples(
        _ids,
        st.sampled_from([None, "T"]),
        st.sampled_from([None, "x", "yy"]),
        st.sampled_from([None, "p.jpg"]),
        st.sampled_from([None, ["A"], ["B", "A"]]),
    ),
    max_size=10,
)
_configs = st.builds(
    CleaningConfig,
    k_core=st.integers(1, 3),
    min_rating=st.sampled_from([None, 2.0]),
    duplicates=st.sampled_from(["first", "last", "keep"]),
    session_gap_minutes=st.sampled_from([None, 1 / MINUTE_MS]),
    max_quarantined_share=st.just(1.0),
)


@settings(max_examples=60, deadline=None)
@given(rows=_rows, items=_item_rows, config=_configs, data=st.data())
def test_no_row_is_lost_and_the_order_of_lines_does_not_matter(rows, items, config, data) -> None:
    """Kept and quarantined rows add up to the raw rows, each line once; shuffled files give the same clean tables."""
    rows = rows + _valid_rows("u", "abcd") + _valid_rows("v", "abcd", _NOW + 1) + _valid_rows("w", "abcd", _NOW + 2)
    items = items + [(item, "T", None, None) for item in "abcd"]
    raw, raw_items = _log(*rows), _items(*items)
    result = clean(raw, raw_items, config, latest=_NOW + 10)
    for table, source, kept in (("raw_interactions", raw, result.interactions), ("raw_items", raw_items, result.items)):
        lines = result.quarantine.filter(pl.col("table") == table)["source_row"]
        assert lines.is_unique().all()
        assert kept.height + len(lines) == source.height
    shuffled = clean(
        _log(*data.draw(st.permutations(rows))), _items(*data.draw(st.permutations(items))), config, latest=_NOW + 10
    )
    assert shuffled.interactions.equals(result.interactions)
    assert shuffled.items.equals(result.items)
    reasons = ["table", "user_id", "item_id", "reason"]
    assert shuffled.quarantine.select(reasons).sort(reasons).equals(result.quarantine.select(reasons).sort(reasons))


_Events = list[tuple[str, int]]


def _split_into_sessions(events: _Events, *, gap_ms: float) -> _Events:
    """Return (session, time) of each event with a non-negative time, in the order of users."""
    table = pl.DataFrame(events, schema={"user_id": pl.String, "timestamp": pl.Int64}, orient="row").with_columns(
        item_id=pl.lit("i"), rating=pl.lit(None, dtype=pl.Float64), source_file=pl.lit("log"), source_row=pl.row_index()
    )
    encoded = encode_log(table, [Rule("early", pl.col("timestamp") < 0, pl.lit(None, dtype=pl.String))])
    log = split_sessions(encoded, gap_ms=gap_ms)
    assert log.user_ids.is_sorted()
    kept = [row for row in range(len(log)) if log.reasons[row] == KEPT]
    by_user = sorted(kept, key=lambda row: (events[row], row))
    return [(log.user_ids[int(log.users[row])], int(log.timestamps[row])) for row in by_user]


def test_a_pause_longer_than_the_gap_starts_a_session() -> None:
    """A pause as long as the gap does not, and user IDs that look like session IDs stay distinct."""
    events = [("u", 0), ("u", 10), ("u", 21), ("u#1", 0), ("v", 5), ("u#1", 99)]
    assert _split_into_sessions(events, gap_ms=10) == [
        ("u#1", 0),
        ("u#1", 10),
        ("u#2", 21),
        ("u#1#1", 0),
        ("u#1#2", 99),
        ("v#1", 5),
    ]


def test_dropped_rows_belong_to_no_session() -> None:
    """A row that already breaks a rule neither starts a session nor bridges a pause."""
    assert _split_into_sessions([("u", -1), ("u", 0), ("v", -2)], gap_ms=5) == [("u#1", 0)]
    assert _split_into_sessions([("v", -2)], gap_ms=5) == []


@pytest.mark.parametrize("slice_rows", [1, 4, 1000])
@settings(max_examples=60, deadline=None)
@given(
    events=st.lists(st.tuples(st.sampled_from(["u", "u#1", "v"]), st.integers(0, 60)), max_size=30),
    gap=st.integers(0, 9),
    data=st.data(),
)
def test_sessions_partition_each_users_events(slice_rows, events, gap, data) -> None:
    """Pauses within a session are at most the gap, those between sessions are longer, and row order does not matter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded_log, "_SLICE_ROWS", slice_rows)
        sessions = _split_into_sessions(events, gap_ms=gap)
        shuffled = _split_into_sessions(data.draw(st.permutations(events)), gap_ms=gap)
    assert sorted((session.rpartition("#")[0], time) for session, time in sessions) == sorted(events)
    for user in {user for user, _ in events}:
        times = [(time, session) for session, time in sessions if session.rpartition("#")[0] == user]
        for (earlier, first_session), (later, second_session) in pairwise(times):
            assert (first_session == second_session) == (later - earlier <= gap)
    assert shuffled == sessions


def test_each_session_has_a_history_of_its_own() -> None:
    """An item may occur in two sessions of a user, while duplicates within a session are dropped."""
    events = [("u", item, minutes) for minutes, item in enumerate("abcb")]
    events += [("u", item, 100 + minutes) for minutes, item in enumerate("bca")]
    log = _log(*((user, item, None, _NOW + MINUTE_MS * minutes) for user, item, minutes in events))
    tables = clean(log, _catalogue("abc"), CleaningConfig(k_core=1, session_gap_minutes=30))
    histories = build_histories(tables.interactions, tables.items)
    assert histories.select("user_id", "item_indices").rows() == [("u#1", [0, 1, 2]), ("u#2", [1, 2, 0])]
    assert tables.quarantine.select("user_id", "source_row", "reason").rows() == [("u#1", 5, "duplicate")]
