"""Cells become ids, numbers, times and the text of an item; cells that cannot be read become null."""

from datetime import UTC, date, datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.readers.column_parsing import (
    compose_texts,
    flag_cells,
    id_cells,
    join_flags,
    number_cells,
    text_cells,
    time_cells,
    title_and_rest,
)


def test_ids_are_strings_without_decimal_point() -> None:
    """Whole numbers lose `.0` whatever their type; strings only lose surrounding whitespace."""
    assert id_cells(pl.Series([1, None, 30])).to_list() == ["1", None, "30"]
    assert id_cells(pl.Series([1.0, None, 2.5, float("nan")])).to_list() == ["1", None, "2.5", None]
    assert id_cells(pl.Series(["007", " B1 ", "", "  ", "1.0"])).to_list() == ["007", "B1", None, None, "1.0"]


def test_texts_are_one_line() -> None:
    """Runs of whitespace become one space, empty texts become null, and lists are joined."""
    assert text_cells(pl.Series(["a\n  b\t", " ", None])).to_list() == ["a b", None, None]
    assert text_cells(pl.Series([["x", None, "y"], [], None])).to_list() == ["x, y", None, None]


def test_numbers_and_flags() -> None:
    """Unreadable numbers are null; a flag is true only for 1, 1.0, true and yes."""
    assert number_cells(pl.Series(["4", " 3.5 ", "four", "", None])).to_list() == [4.0, 3.5, None, None, None]
    assert flag_cells(pl.Series(["1", "0", "1.0", "TRUE", "", None])).to_list() == [
        True,
        False,
        True,
        True,
        False,
        False,
    ]
    assert flag_cells(pl.Series([1, 0, None])).to_list() == [True, False, False]


@pytest.mark.parametrize(
    ("unit", "cells", "expected"),
    [
        (
            "s",
            ["881250949", "881250949.25", " 5 ", "soon", "", None],
            [881250949000, 881250949250, 5000, None, None, None],
        ),
        ("ms", ["881250949123", "1e3"], [881250949123, 1000]),
        ("us", ["881250949123456", "-1"], [881250949123, -1]),
        ("s", ["inf", "nan"], [None, None]),
    ],
)
def test_epoch_times(unit: str, cells: list[str | None], expected: list[int | None]) -> None:
    """Seconds, milliseconds and microseconds all become whole milliseconds; other cells become null."""
    assert time_cells(pl.Series(cells, dtype=pl.String), unit).to_list() == expected


def test_large_numbers_do_not_overflow_into_plausible_times() -> None:
    """A time far in the future stays far in the future, so that cleaning finds it out of range."""
    huge = 2**63 - 1
    for column in (pl.Series([huge]), pl.Series([str(huge)]), pl.Series([1e18])):
        assert time_cells(column, "s")[0] > 2**53
        assert time_cells(-column if column.dtype != pl.String else "-" + column, "s")[0] < -(2**53)


def test_one_column_may_mix_all_iso_spellings() -> None:
    """The format is not guessed from the first row; a time without a zone is UTC."""
    cells = [
        "2018-01-31",
        "2018-01-31 10:00",
        "2018-01-31T10:00:00Z",
        "2018-01-31T12:00:00+02:00",
        "2018-01-31T12:30:00.250+0230",
        "2018-13-31",
        "31/01/2018",
        "yesterday",
        None,
    ]
    ten = int(datetime(2018, 1, 31, 10, tzinfo=UTC).timestamp() * 1000)
    expected = [ten - 36_000_000, ten, ten, ten, ten + 250, None, None, None, None]
    assert time_cells(pl.Series(cells), "iso").to_list() == expected


def test_date_types_carry_their_own_unit() -> None:
    """The configured unit does not apply to the dates and datetimes of a parquet file."""
    noon = datetime(2018, 1, 31, 12)
    for unit in ("us", "ns", "ms"):
        column = pl.Series([noon, None]).cast(pl.Datetime(unit))
        assert time_cells(column, "s").to_list() == [1517400000000, None]
    assert time_cells(pl.Series([noon]).dt.replace_time_zone("Europe/Berlin"), "s").to_list() == [1517396400000]
    assert time_cells(pl.Series([date(1970, 1, 2)]), "iso").to_list() == [86_400_000]


@settings(max_examples=50, deadline=None)
@given(st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2100, 1, 1)))
def test_iso_and_epoch_agree_with_the_standard_library(moment: datetime) -> None:
    """A time written as ISO text or as microseconds gives the same millisecond."""
    moment = moment.replace(microsecond=moment.microsecond // 1000 * 1000, tzinfo=UTC)
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1000
    assert time_cells(pl.Series([moment.isoformat()]), "iso").to_list() == [round(expected)]
    assert time_cells(pl.Series([str(round(expected * 1000))]), "us").to_list() == [round(expected)]


@pytest.mark.parametrize(
    ("title", "parts", "expected"),
    [
        (
            "Toy Story (1995)",
            ["Led by Woody...", "Genres: Animation, Comedy"],
            "Toy Story (1995). Led by Woody... Genres: Animation, Comedy.",
        ),
        ("Toy Story (1995)", [None, None], "Toy Story (1995)."),
        (None, [None, "Genres: Comedy"], "Genres: Comedy."),
        (None, [None, None], None),
        ("Acoustic guitar", ["acoustic guitar, spruce top", None], "acoustic guitar, spruce top."),
        ("It", ["It's late.", None], "It. It's late."),
        ("Cat", ["Category five storm", None], "Cat. Category five storm."),
        ("Who?", ['He said "no!"', None], 'Who? He said "no!"'),
    ],
)
def test_title_and_parts_become_sentences(title: str | None, parts: list[str | None], expected: str | None) -> None:
    """Sentences end once, a title that a part begins with is not repeated, and an item without texts has none."""
    columns = [pl.Series([part], dtype=pl.String) for part in parts]
    assert compose_texts(pl.Series([title], dtype=pl.String), columns).to_list() == [expected]


def test_rows_do_not_mix() -> None:
    """The text of an item depends on its own cells only."""
    titles = pl.Series(["A", None, "C"])
    assert compose_texts(titles, [pl.Series(["C is", "B is", "C is"])]).to_list() == ["A. C is.", "B is.", "C is."]
    assert compose_texts(titles, []).to_list() == ["A.", None, "C."]


def test_join_flags_lists_the_columns_that_are_set() -> None:
    """The names keep the given order; a row without any is null."""
    flags = {"Action": pl.Series([True, False, True]), "War": pl.Series([False, False, True])}
    assert join_flags("Genres", flags).to_list() == ["Genres: Action", None, "Genres: Action, War"]


def test_title_and_rest_reverses_compose_texts() -> None:
    """The rest is the text after the title's sentence; a text that itself begins with the title stays whole."""
    title = pl.Series(["Toy Story", "Alien", None, "Up", None], dtype=pl.String)
    part = pl.Series(["Toys live.", None, "A text.", "Up is a film.", None], dtype=pl.String)
    text = compose_texts(title, [part])
    assert title_and_rest(title, text) == [
        ["Toy Story", "Toys live."],
        ["Alien", None],
        [None, "A text."],
        ["Up", "Up is a film."],
        [None, None],
    ]
