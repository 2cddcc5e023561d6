"""Reader `movielens`, on small files in the three layouts with the irregularities of the published ones."""

import gzip
from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.movielens import MovielensReader
from macrec_pipeline.datasets import MovielensSource
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS

_RATINGS = [("196", "242", 3.0, 881250949), ("186", "302", 3.5, 891717742)]
_SEPARATORS = {"100k": "\t", "1m": "::", "latest": ","}
_FILES = {
    "100k": ("u.data", "u.item"),
    "1m": ("ratings.dat", "movies.dat"),
    "latest": ("ratings.csv", "movies.csv"),
}
_HEADER = "userId,movieId,rating,timestamp\n"


def _reader(data_dir: Path, layout: str, image: str | None = None) -> MovielensReader:
    return MovielensReader(MovielensSource(reader="movielens", folder="ml", layout=layout, image=image), data_dir)


def _interactions(data_dir: Path, layout: str) -> pl.DataFrame:
    parts = _reader(data_dir, layout).interaction_parts()
    return RAW_INTERACTIONS.check(pl.concat([RAW_INTERACTIONS.empty(), *parts]))


def _write(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / "ml").mkdir(exist_ok=True)
    (tmp_path / "ml" / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _flags(*positions: int) -> str:
    return "|".join("1" if position in positions else "0" for position in range(19))


@pytest.mark.parametrize("layout", list(_FILES))
def test_the_three_layouts_give_the_same_ratings(tmp_path: Path, layout: str) -> None:
    """Only `latest` has a header, so its rows begin in line 2; gzip files are read as well."""
    rows = "\n".join(_SEPARATORS[layout].join(map(str, row)) for row in _RATINGS) + "\n"
    first_row = 2 if layout == "latest" else 1
    content = ((_HEADER if layout == "latest" else "") + rows).encode()
    for name, data in ((_FILES[layout][0], content), (_FILES[layout][0] + ".gz", gzip.compress(content))):
        _write(tmp_path, name, data)
        assert _interactions(tmp_path, layout).rows() == [
            (user, movie, rating, seconds * 1000, f"ml/{name}", row, None)
            for row, (user, movie, rating, seconds) in enumerate(_RATINGS, start=first_row)
        ]
        (tmp_path / "ml" / name).unlink()


def test_bad_lines_of_ratings_dat(tmp_path: Path) -> None:
    """Lines with an extra cell, a word for a number or a wrong separator keep their number and have a problem."""
    _write(tmp_path, "ratings.dat", "1::2::5::978300760::9\n1::x::five::978300760\n1\t2::5::978300760\n1::2::5::\n")
    table = _interactions(tmp_path, "1m")
    assert table.select("user_id", "item_id", "timestamp", "problem").rows() == [
        (None, None, None, "wrong_number_of_cells: more than 4, separated by '::'"),
        ("1", "x", 978300760000, "wrong_type: rating is 'five', expected a number"),
        ("1 2", "5", None, None),
        ("1", "2", None, None),
    ]


def test_movies_100k(tmp_path: Path) -> None:
    """u.item is latin-1 with 19 flags; `unknown` is no genre, and a line of another length has a problem."""
    content = (
        f"1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy|{_flags(3, 4, 5)}\n"
        f"543|Misérables, Les (1995)|01-Jan-1995||http://x|{_flags(8)}\n"
        f"267|unknown||||{_flags(0)}\n"
        "9|Too short|01-Jan-1995||http://x|0|1\n"
        "\n"
        f"|No id (1990)||||{_flags()}\n"
    ).encode("latin-1")
    _write(tmp_path, "u.item", content)
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "1.jpg").touch()
    table = _reader(tmp_path, "100k", "posters/{item_id}.jpg").items()
    assert table.drop("source_file", "image_url", "categories").rows() == [
        (
            "1",
            "Toy Story (1995)",
            "Toy Story (1995). Genres: Animation, Children's, Comedy.",
            "posters/1.jpg",
            1,
            None,
        ),
        ("543", "Misérables, Les (1995)", "Misérables, Les (1995). Genres: Drama.", None, 2, None),
        ("267", "unknown", "unknown.", None, 3, None),
        (None, None, None, None, 4, "wrong_number_of_cells: 7, expected 24"),
        (None, "No id (1990)", "No id (1990).", None, 6, None),
    ]
    assert table["categories"].to_list() == [["Animation", "Children's", "Comedy"], ["Drama"], None, None, None]


def test_movies_1m_in_latin_1_or_utf_8(tmp_path: Path) -> None:
    """1M is written in latin-1, 10M in UTF-8; both give the same titles."""
    lines = "73::Misérables, Les (1995)::Drama|Musical\n8::Tom::and Huck::Children's\n9::No genre (1990)::\n"
    for encoding in ("latin-1", "utf-8"):
        _write(tmp_path, "movies.dat", lines.encode(encoding))
        table = _reader(tmp_path, "1m").items()
        assert table.select("item_id", "text", "problem").rows() == [
            ("73", "Misérables, Les (1995). Genres: Drama, Musical.", None),
            (None, None, "wrong_number_of_cells: 4, expected 3"),
            ("9", "No genre (1990).", None),
        ]


def test_movies_latest(tmp_path: Path) -> None:
    """movies.csv quotes titles with commas, doubles quotes inside them and has a text for movies without genre."""
    content = (
        "movieId,title,genres\n"
        '11,"American President, The (1995)",Comedy|Drama|Romance\n'
        '12,"""Great Performances"" Cats (1998)",(no genres listed)\n'
        "13,One,Two,Three\n"
    )
    _write(tmp_path, "movies.csv", content)
    table = _reader(tmp_path, "latest").items()
    assert table["categories"].to_list() == [["Comedy", "Drama", "Romance"], None, None]
    assert table.select("item_id", "text", "source_row", "problem").rows() == [
        ("11", "American President, The (1995). Genres: Comedy, Drama, Romance.", 2, None),
        ("12", '"Great Performances" Cats (1998).', 3, None),
        (None, None, 4, "wrong_number_of_cells: more than the 3 columns of the file"),
    ]


def test_an_unexpected_header_is_an_error(tmp_path: Path) -> None:
    """Reading and validation name the file, the header and the expected header."""
    _write(tmp_path, "ratings.csv", "1,31,2.5,1260759144\n")
    _write(tmp_path, "movies.csv", "id,title,genres\n1,A,Drama\n")
    with pytest.raises(
        SchemaError, match=r"ml/ratings\.csv: the first line is '1,31,2\.5,1260759144', expected 'userId"
    ):
        _interactions(tmp_path, "latest")
    with pytest.raises(SchemaError, match=r"ml/movies\.csv: the columns are id, title, genres, expected movieId"):
        _reader(tmp_path, "latest").items()
    assert [problem.split(":")[0] for problem in _reader(tmp_path, "latest").problems()] == [
        "ml/ratings.csv",
        "ml/movies.csv",
    ]


def test_missing_files_are_named(tmp_path: Path) -> None:
    """Validation lists both files; complete files without rows are readable."""
    assert [problem.split(" does not exist")[0] for problem in _reader(tmp_path, "100k").problems()] == [
        str(tmp_path / "ml" / name) for name in _FILES["100k"]
    ]
    with pytest.raises(MissingFileError, match="reader movielens, layout 1m"):
        _interactions(tmp_path, "1m")
    _write(tmp_path, "ratings.csv", _HEADER)
    _write(tmp_path, "movies.csv", "movieId,title,genres\n")
    assert _reader(tmp_path, "latest").problems() == []
    assert _interactions(tmp_path, "latest").is_empty()
    assert _reader(tmp_path, "latest").items().is_empty()
