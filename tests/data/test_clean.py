"""Cleaning: every row is kept or in quarantine with a reason, whatever the order of the lines."""

import math
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.table_checks import items_problems
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.schemas import EARLIEST_MS, RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000


def _log(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Rows of (user, item, rating, timestamp)."""
    full = [(*row, "log.csv", line, None) for line, row in enumerate(rows, start=2)]
    return pl.DataFrame(full, schema=RAW_INTERACTIONS.columns, orient="row")


def _items(*rows: tuple[Any, ...]) -> pl.DataFrame:
    """Rows of (item, title, text, image), and categories where there are any."""
    full = [(*row[:4], None, [*row[4:], None][0], "items.csv", line, None) for line, row in enumerate(rows, start=2)]
    return pl.DataFrame(full, schema=RAW_ITEMS.columns, orient="row")


def _catalogue(ids: str) -> pl.DataFrame:
    return _items(*((item, f"Item {item}", None, None) for item in ids))


def _good(user: str, items: str, start: int = _NOW) -> list[tuple[Any, ...]]:
    return [(user, item, 5.0, start + place) for place, item in enumerate(items)]


_LOOSE = CleaningConfig(k_core=1, max_quarantined_share=1)


def _reasons(quarantine: pl.DataFrame, table: str = "raw_interactions") -> dict[int, str]:
    rows = quarantine.filter(pl.col("table") == table)
    return dict(zip(rows["source_row"], rows["reason"], strict=True))


def test_each_bad_value_has_its_reason() -> None:
    """Ids, times, ratings and items that cannot be used are told apart by reason, and by line."""
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
    raw = _log(*_good("u", "abc"), *(row for row, _ in bad))
    result = clean(raw, _catalogue("abc"), _LOOSE, latest=_NOW + 1000)
    assert _reasons(result.quarantine) == {5 + place: reason for place, (_, reason) in enumerate(bad)}
    assert result.interactions["item_id"].to_list() == ["a", "b", "c"]
    assert result.quarantine["source_file"].unique().to_list() == ["log.csv"]


def test_the_range_of_times_includes_its_ends() -> None:
    """1990-01-01 and the latest time are plausible; a time two days from now is not, without being told."""
    raw = _log(("u", "a", None, EARLIEST_MS), ("u", "b", None, _NOW), ("u", "c", None, _NOW + 1))
    with pytest.raises(DataError, match="timestamp_out_of_range"):
        clean(raw, _catalogue("abc"), _LOOSE, latest=_NOW)
    assert clean(raw, _catalogue("abc"), _LOOSE, latest=_NOW + 1).interactions.height == 3
    far = 4_000_000_000_000  # in the year 2096
    assert _reasons(clean(_log(*_good("u", "abc"), ("u", "a", None, far)), _catalogue("abc"), _LOOSE).quarantine) == {
        5: "timestamp_out_of_range"
    }


def test_min_rating() -> None:
    """Ratings below the threshold, and rows without one, go; without a threshold both stay."""
    raw = _log(*_good("u", "abc"), ("u", "d", 2.9, _NOW), ("u", "e", None, _NOW), ("u", "f", 3.0, _NOW))
    strict = clean(raw, _catalogue("abcdef"), CleaningConfig(k_core=1, min_rating=3.0))
    assert _reasons(strict.quarantine) == {5: "below_min_rating", 6: "missing_rating"}
    assert clean(raw, _catalogue("abcdef"), _LOOSE).quarantine.is_empty()


@pytest.mark.parametrize(
    ("policy", "kept", "gone"),
    [("first", [(5, 4.0)], {2, 4}), ("last", [(9, 1.0)], {3, 4}), ("keep", [(5, 4.0), (9, 1.0)], {4})],
)
def test_repeated_rows_follow_the_policy(policy: str, kept: list[tuple[int, float]], gone: set[int]) -> None:
    """first and last keep one row a user and item, by time; keep keeps repeats but not copies of one moment."""
    raw = _log(
        ("u", "a", 1.0, _NOW + 9), ("u", "a", 4.0, _NOW + 5), ("u", "a", 4.0, _NOW + 5), *_good("u", "bcd", _NOW + 20)
    )
    result = clean(raw, _catalogue("abcd"), CleaningConfig(k_core=1, duplicates=policy))
    of_a = result.interactions.filter(pl.col("item_id") == "a")
    assert [(stamp - _NOW, rating) for stamp, rating in of_a.select("timestamp", "rating").rows()] == kept
    assert set(_reasons(result.quarantine)) == gone
    assert set(_reasons(result.quarantine).values()) == {"duplicate"}


def test_ties_break_by_item_id_or_by_position() -> None:
    """At one time, item_id says what came first; with `position` the file does, among copies of one item too."""
    raw = _log(("u", "c", 2.0, _NOW), ("u", "a", 1.0, _NOW), ("u", "b", 1.0, _NOW), ("u", "c", 1.0, _NOW))
    by_id = clean(raw, _catalogue("abc"), _LOOSE).interactions
    assert by_id.select("item_id", "rating").rows() == [("a", 1.0), ("b", 1.0), ("c", 1.0)]
    by_line = clean(raw, _catalogue("abc"), CleaningConfig(k_core=1, ties="position")).interactions
    assert by_line.select("item_id", "rating").rows() == [("c", 2.0), ("a", 1.0), ("b", 1.0)]
    last = clean(raw, _catalogue("abc"), CleaningConfig(k_core=1, ties="position", duplicates="last")).interactions
    assert last.select("item_id", "rating").rows() == [("a", 1.0), ("b", 1.0), ("c", 1.0)]


def test_what_the_reader_found_goes_first() -> None:
    """A row with a problem is in quarantine with the reader's reason and detail, whatever else is wrong with it."""
    raw = _log(*_good("u", "abc"), (None, None, None, None), ("u", "a", None, None)).with_columns(
        pl.Series("problem", [None, None, None, "invalid_json: Extra data: line 1", "wrong_type"])
    )
    items = _catalogue("abcd").with_columns(pl.Series("problem", [None, None, None, "wrong_type: title is {}"]))
    quarantine = clean(raw, items, _LOOSE).quarantine
    assert quarantine.select("source_file", "source_row", "reason", "detail").rows() == [
        ("log.csv", 5, "invalid_json", "Extra data: line 1"),
        ("log.csv", 6, "wrong_type", None),
        ("items.csv", 5, "wrong_type", "title is {}"),
    ]


def test_duplicated_items_keep_the_most_complete_row() -> None:
    """Most cells filled, then the longest text; the others are in quarantine and name the row that stays."""
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
    result = clean(_log(*_good("u", "abcdef")), items, _LOOSE)
    assert _reasons(result.quarantine, "raw_items") == {
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


def test_items_that_nobody_keeps_are_in_quarantine() -> None:
    """An item without usable interactions and one whose users all left are told apart."""
    raw = _log(*_good("u", "abc"), *_good("short", "de"), ("u", "f", None, None))
    result = clean(raw, _catalogue("abcdefg"), _LOOSE)
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
    assert set(_reasons(result.quarantine).values()) == {"too_short", "missing_timestamp"}


def test_items_without_interactions_stay_if_asked() -> None:
    """Untouched (c, d) or outside the core (e): in the catalogue with no interaction; what is unsound stays out."""
    log = _log(*(row for user in "uvw" for row in _good(user, "abf")), *_good("x", "e"), ("u", "d", 1.0, None))
    raw_items = pl.concat([_catalogue("abcdef"), _items((None, "No id", None, None))])
    core = CleaningConfig(k_core=3, max_quarantined_share=1)
    keeping = core.model_copy(update={"keep_items_without_interactions": True})
    tables, strict = (clean(log, raw_items, config) for config in (keeping, core))
    assert dict(tables.items.select("item_id", "num_interactions").iter_rows()) == {
        "a": 3, "b": 3, "c": 0, "d": 0, "e": 0, "f": 3
    }  # fmt: skip
    assert tables.items["item_index"].to_list() == list(range(6))
    assert set(_reasons(tables.quarantine, "raw_items").values()) == {"missing_item_id"}
    assert tables.interactions.equals(strict.interactions)
    assert items_problems(tables.items, tables.interactions, may_be_untouched=True) == []
    assert "item without an interaction" in " ".join(items_problems(tables.items, tables.interactions))


def test_items_are_ordered_as_strings() -> None:
    """item_index follows item_id as strings: 1, 10, 2."""
    raw = _log(("u", "2", None, _NOW), ("u", "10", None, _NOW), ("u", "1", None, _NOW))
    items = _items(*((item, None, None, None) for item in ("2", "10", "1")))
    result = clean(raw, items, _LOOSE)
    assert result.items["item_id"].to_list() == ["1", "10", "2"]
    assert result.interactions["item_id"].to_list() == ["1", "10", "2"]


def test_an_empty_result_says_which_step_removed_how_many() -> None:
    """The message counts the rows by reason and says what to look at."""
    raw = _log(("u", "x", None, _NOW), ("u", "y", None, _NOW), ("u", "a", None, None))
    with pytest.raises(
        DataError, match=r"none of 3 interactions.*unknown_item 2, missing_timestamp 1.*item ids of both"
    ):
        clean(raw, _catalogue("ab"), _LOOSE)
    with pytest.raises(DataError, match=r"k_core 3\. Lower k_core \(now 5\)"):
        clean(_log(*_good("u", "abc")), _catalogue("abc"), CleaningConfig(k_core=5))
    with pytest.raises(DataError, match="the interaction file is empty"):
        clean(RAW_INTERACTIONS.empty(), _catalogue("ab"), _LOOSE)


def test_other_tables_are_refused() -> None:
    """A table that is not of the raw schema is named before anything is computed."""
    with pytest.raises(SchemaError, match="raw_items"):
        clean(_log(), _log(), _LOOSE)


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
    session_gap_minutes=st.sampled_from([None, 1 / 60_000]),
    max_quarantined_share=st.just(1.0),
)


@settings(max_examples=60, deadline=None)
@given(rows=_rows, items=_item_rows, config=_configs, data=st.data())
def test_no_row_is_lost_and_the_order_of_lines_does_not_matter(rows, items, config, data) -> None:
    """kept + quarantined == raw for both tables, each line once; shuffled files give the same clean tables."""
    rows = rows + _good("u", "abcd") + _good("v", "abcd", _NOW + 1) + _good("w", "abcd", _NOW + 2)
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
