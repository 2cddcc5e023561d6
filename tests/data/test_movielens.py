"""MovieLens' own files in its three layouts, written here with the oddities that they have."""

import gzip
from pathlib import Path

import pytest

from macrec_pipeline.data.readers.movielens import movielens_problems, read_movielens_interactions, read_movielens_items
from macrec_pipeline.datasets import MovielensSource
from macrec_pipeline.errors import MissingFileError, SchemaError

_RATINGS = [("196", "242", 3.0, 881250949), ("186", "302", 3.5, 891717742)]
_SEPARATORS = {"100k": "\t", "1m": "::", "latest": ","}
_FILES = {
    "100k": ("u.data", "u.item"),
    "1m": ("ratings.dat", "movies.dat"),
    "latest": ("ratings.csv", "movies.csv"),
}
_HEADER = "userId,movieId,rating,timestamp\n"


def _source(layout: str, image: str | None = None) -> MovielensSource:
    return MovielensSource(reader="movielens", folder="ml", layout=layout, image=image)


def _write(tmp_path: Path, name: str, content: str | bytes) -> None:
    (tmp_path / "ml").mkdir(exist_ok=True)
    (tmp_path / "ml" / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def _flags(*places: int) -> str:
    return "|".join("1" if place in places else "0" for place in range(19))


@pytest.mark.parametrize("layout", list(_FILES))
def test_the_same_ratings_in_three_layouts(tmp_path: Path, layout: str) -> None:
    """Users, movies, half stars and seconds are the same in each; only `latest` has a header; gzip is read too."""
    rows = "\n".join(_SEPARATORS[layout].join(map(str, row)) for row in _RATINGS) + "\n"
    first = 2 if layout == "latest" else 1
    content = ((_HEADER if layout == "latest" else "") + rows).encode()
    for name, data in ((_FILES[layout][0], content), (_FILES[layout][0] + ".gz", gzip.compress(content))):
        _write(tmp_path, name, data)
        assert read_movielens_interactions(_source(layout), tmp_path).rows() == [
            (user, movie, rating, stamp * 1000, f"ml/{name}", place, None)
            for place, (user, movie, rating, stamp) in enumerate(_RATINGS, start=first)
        ]
        (tmp_path / "ml" / name).unlink()


def test_bad_lines_of_ratings_dat(tmp_path: Path) -> None:
    """A cell too many, a word for a number and a tab where `::` belongs keep their lines and say why."""
    _write(tmp_path, "ratings.dat", "1::2::5::978300760::9\n1::x::five::978300760\n1\t2::5::978300760\n1::2::5::\n")
    table = read_movielens_interactions(_source("1m"), tmp_path)
    assert table.select("user_id", "item_id", "timestamp", "problem").rows() == [
        (None, None, None, "wrong_number_of_cells: more than 4, separated by '::'"),
        ("1", "x", 978300760000, "wrong_type: rating is 'five', expected a number"),
        ("1 2", "5", None, None),
        ("1", "2", None, None),
    ]


def test_movies_100k(tmp_path: Path) -> None:
    """u.item is latin-1 with bars and 19 flags; a missing release date, `unknown` and wrong lines are as they are."""
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
    table = read_movielens_items(_source("100k", "posters/{item_id}.jpg"), tmp_path)
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
    """1M writes latin-1, 10M UTF-8; the title of both is the same."""
    lines = "73::Misérables, Les (1995)::Drama|Musical\n8::Tom::and Huck::Children's\n9::No genre (1990)::\n"
    for encoding in ("latin-1", "utf-8"):
        _write(tmp_path, "movies.dat", lines.encode(encoding))
        table = read_movielens_items(_source("1m"), tmp_path)
        assert table.select("item_id", "text", "problem").rows() == [
            ("73", "Misérables, Les (1995). Genres: Drama, Musical.", None),
            (None, None, "wrong_number_of_cells: 4, expected 3"),
            ("9", "No genre (1990).", None),
        ]


def test_movies_latest(tmp_path: Path) -> None:
    """movies.csv quotes titles with commas, doubles quotes in them and says when there is no genre."""
    content = (
        "movieId,title,genres\n"
        '11,"American President, The (1995)",Comedy|Drama|Romance\n'
        '12,"""Great Performances"" Cats (1998)",(no genres listed)\n'
        "13,One,Two,Three\n"
    )
    _write(tmp_path, "movies.csv", content)
    table = read_movielens_items(_source("latest"), tmp_path)
    assert table["categories"].to_list() == [["Comedy", "Drama", "Romance"], None, None]
    assert table.select("item_id", "text", "source_row", "problem").rows() == [
        ("11", "American President, The (1995). Genres: Comedy, Drama, Romance.", 2, None),
        ("12", '"Great Performances" Cats (1998).', 3, None),
        (None, None, 4, "wrong_number_of_cells: more than the 3 columns of the file"),
    ]


def test_another_layout_is_refused_by_its_header(tmp_path: Path) -> None:
    """Reading and validation name the file, what its first line is and what was expected."""
    _write(tmp_path, "ratings.csv", "1,31,2.5,1260759144\n")
    _write(tmp_path, "movies.csv", "id,title,genres\n1,A,Drama\n")
    with pytest.raises(
        SchemaError, match=r"ml/ratings\.csv: its first line is '1,31,2\.5,1260759144', expected 'userId"
    ):
        read_movielens_interactions(_source("latest"), tmp_path)
    with pytest.raises(SchemaError, match=r"ml/movies\.csv: its columns are id, title, genres, expected movieId"):
        read_movielens_items(_source("latest"), tmp_path)
    assert [problem.split(":")[0] for problem in movielens_problems(_source("latest"), tmp_path)] == [
        "ml/ratings.csv",
        "ml/movies.csv",
    ]


def test_missing_files_are_named(tmp_path: Path) -> None:
    """Validation lists both; a ready data set has no problems."""
    assert [problem.split(" is not")[0] for problem in movielens_problems(_source("100k"), tmp_path)] == [
        str(tmp_path / "ml" / name) for name in _FILES["100k"]
    ]
    with pytest.raises(MissingFileError, match="reader movielens, layout 1m"):
        read_movielens_interactions(_source("1m"), tmp_path)
    _write(tmp_path, "ratings.csv", _HEADER)
    _write(tmp_path, "movies.csv", "movieId,title,genres\n")
    assert movielens_problems(_source("latest"), tmp_path) == []
    assert read_movielens_interactions(_source("latest"), tmp_path).is_empty()
    assert read_movielens_items(_source("latest"), tmp_path).is_empty()
