"""Titles and descriptive cells become one readable text."""

import polars as pl
import pytest

from macrec_pipeline.data.readers.item_texts import compose_texts, join_flags, title_and_rest


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
def test_composition(title: str | None, parts: list[str | None], expected: str | None) -> None:
    """Sentences end once, a title that the text begins with is not said twice, and nothing stays nothing."""
    columns = [pl.Series([part], dtype=pl.String) for part in parts]
    assert compose_texts(pl.Series([title], dtype=pl.String), columns).to_list() == [expected]


def test_rows_do_not_mix() -> None:
    """Each row is composed of its own cells alone."""
    titles = pl.Series(["A", None, "C"])
    assert compose_texts(titles, [pl.Series(["C is", "B is", "C is"])]).to_list() == ["A. C is.", "B is.", "C is."]
    assert compose_texts(titles, []).to_list() == ["A.", None, "C."]


def test_flags() -> None:
    """The names of the columns that are set, in the order given; null where none is."""
    flags = {"Action": pl.Series([True, False, True]), "War": pl.Series([False, False, True])}
    assert join_flags("Genres", flags).to_list() == ["Genres: Action", None, "Genres: Action, War"]


def test_title_and_rest_undo_the_joining() -> None:
    """The rest is what stands behind the title's sentence; nothing is lost where a part begins with the title."""
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
