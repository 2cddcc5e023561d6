"""Reader `movielens`: GroupLens' own files -> raw interactions and raw items.

100k      u.data (tabs) and u.item (bars, latin-1, 19 columns of genres)
1m        ratings.dat and movies.dat (`::`); 10M has the same files
latest    ratings.csv and movies.csv with headers, as 20M, 25M and 32M have them
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.column_parsing import category_cells, id_cells, text_cells
from macrec_pipeline.data.readers.delimited import read_delimited, read_header
from macrec_pipeline.data.readers.image_files import existing_images
from macrec_pipeline.data.readers.input_files import require_file_or_gz
from macrec_pipeline.data.readers.item_texts import compose_texts
from macrec_pipeline.data.readers.line_blocks import line_blocks
from macrec_pipeline.data.readers.rating_logs import check_header, rating_parts
from macrec_pipeline.datasets import MovielensSource
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_MOVIES_HEADER = ("movieId", "title", "genres")
# The columns of u.item after movie id, title, two dates and a link.
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
_NO_GENRE = {"unknown", "(no genres listed)", ""}


@dataclass(frozen=True)
class _Layout:
    ratings: str
    separator: str
    header: str | None
    movies: str


_LAYOUTS = {
    "100k": _Layout("u.data", "\t", None, "u.item"),
    "1m": _Layout("ratings.dat", "::", None, "movies.dat"),
    "latest": _Layout("ratings.csv", ",", "userId,movieId,rating,timestamp", "movies.csv"),
}


def movielens_interaction_parts(source: MovielensSource, data_dir: Path) -> Iterator[pl.DataFrame]:
    """Read the ratings as parts of `RAW_INTERACTIONS`, one after the other.

    Raises:
        MissingFileError: the file is not there.
        DataError: it cannot be read to its end, or (`SchemaError`) has another header.
    """
    layout = _LAYOUTS[source.layout]
    path, file = _find(source, layout.ratings, data_dir)
    columns = ("user_id", "item_id", "rating", "timestamp")
    return rating_parts(path, file, columns=columns, separator=layout.separator, header=layout.header)


def read_movielens_interactions(source: MovielensSource, data_dir: Path) -> pl.DataFrame:
    """The parts as one `RAW_INTERACTIONS`; errors as there."""
    parts = movielens_interaction_parts(source, data_dir)
    return RAW_INTERACTIONS.check(pl.concat([RAW_INTERACTIONS.empty(), *parts]), source.folder)


def read_movielens_items(source: MovielensSource, data_dir: Path) -> pl.DataFrame:
    """Read the movies as `RAW_ITEMS`; the text is title and genres, the genres are the categories. Errors as there."""
    path, file = _find(source, _LAYOUTS[source.layout].movies, data_dir)
    if source.layout == "latest":
        table = _movies_csv(path, file)
    else:
        rows = _movies_100k(path) if source.layout == "100k" else _movies_1m(path)
        table = pl.DataFrame(list(rows), schema=_MOVIE, orient="row")
    item_ids, titles = id_cells(table["item_id"]), text_cells(table["title"])
    genres = table.select("Genres: " + pl.col("genres").list.join(", ")).to_series()
    frame = table.with_columns(
        item_ids.alias("item_id"),
        titles.alias("title"),
        compose_texts(titles, [genres.set(table["genres"].list.len() == 0, None)]).alias("text"),
        pl.lit(None, dtype=pl.String).alias("image_path")
        if source.image is None
        else existing_images(item_ids, source.image, data_dir),
        pl.lit(None, dtype=pl.String).alias("image_url"),
        category_cells(table["genres"]).alias("categories"),
        pl.lit(file).alias("source_file"),
    )
    return RAW_ITEMS.check(frame.select(*RAW_ITEMS.columns), file)


def movielens_files(source: MovielensSource, data_dir: Path) -> list[Path]:
    """The files of ratings and movies. Raises `MissingFileError`."""
    layout = _LAYOUTS[source.layout]
    return [_find(source, name, data_dir)[0] for name in (layout.ratings, layout.movies)]


def movielens_problems(source: MovielensSource, data_dir: Path) -> list[str]:
    """What keeps these files from being read: those that are not there, and other headers."""
    layout = _LAYOUTS[source.layout]
    problems = []
    for name in (layout.ratings, layout.movies):
        try:
            path, file = _find(source, name, data_dir)
            if name == layout.ratings and layout.header is not None:
                check_header(path, file, layout.header)
            elif source.layout == "latest":
                _check_movies_header(read_header(path, file, separator=",", header=True)[0], file)
        except DataError as error:
            problems.append(str(error))
    return problems


_MOVIE: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "genres": pl.List(pl.String),
    "source_row": pl.Int64,
    "problem": pl.String,
}
_Movie = tuple[str | None, str | None, list[str], int, str | None]


def _movies_100k(path: Path) -> Iterator[_Movie]:
    for number, cells in _cells(path, "|"):
        flags = cells[5:]
        if len(flags) != len(_GENRES_100K):
            yield _wrong_number(number, len(cells), 5 + len(_GENRES_100K))
            continue
        genres = [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag.strip() == "1"]
        yield cells[0], cells[1], _known(genres), number, None


def _movies_1m(path: Path) -> Iterator[_Movie]:
    for number, cells in _cells(path, "::"):
        if len(cells) != len(_MOVIES_HEADER):
            yield _wrong_number(number, len(cells), len(_MOVIES_HEADER))
            continue
        yield cells[0], cells[1], _known(cells[2].split("|")), number, None


def _movies_csv(path: Path, file: str) -> pl.DataFrame:
    table = read_delimited(path, file, separator=",", header=True)
    _check_movies_header(table.names, file)
    genres = [_known((text or "").split("|")) for text in table.column("genres")]
    return pl.DataFrame(
        {
            "item_id": table.column("movieId"),
            "title": table.column("title"),
            "genres": pl.Series(genres, dtype=pl.List(pl.String)),
            "source_row": table.lines,
            "problem": table.problems(),
        }
    )


def _check_movies_header(names: tuple[str, ...] | None, file: str) -> None:
    if names != _MOVIES_HEADER:
        raise SchemaError(f"{file}: its columns are {', '.join(names or ())}, expected {', '.join(_MOVIES_HEADER)}.")


def _known(genres: list[str]) -> list[str]:
    return [genre.strip() for genre in genres if genre.strip() not in _NO_GENRE]


def _cells(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """The cells of each line that is not blank; latin-1 where it is no UTF-8, as the older of these files are."""
    for block in line_blocks(path, path.name):
        for number, line in block.lines():
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("latin-1")
            if text.strip():
                yield number, text.split(separator)


def _wrong_number(number: int, got: int, expected: int) -> _Movie:
    return None, None, [], number, f"wrong_number_of_cells: {got}, expected {expected}"


def _find(source: MovielensSource, name: str, data_dir: Path) -> tuple[Path, str]:
    return require_file_or_gz(data_dir, f"{source.folder}/{name}", what=f"reader movielens, layout {source.layout}")
