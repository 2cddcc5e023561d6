"""Reader `movielens`: the original GroupLens files become raw interactions and raw items.

100k      u.data (tab-separated) and u.item (separated by bars, latin-1, with 19 genre columns)
1m        ratings.dat and movies.dat (separated by `::`); MovieLens-10M has the same files
latest    ratings.csv and movies.csv with headers, as in MovieLens-20M, 25M and 32M
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from macrec_pipeline.data.readers.column_parsing import category_cells, compose_texts, id_cells, text_cells
from macrec_pipeline.data.readers.image_files import existing_images, tried_images
from macrec_pipeline.data.readers.rating_logs import check_header, rating_parts
from macrec_pipeline.data.readers.reader import Reader
from macrec_pipeline.data.readers.row_splitting import Quoting
from macrec_pipeline.data.readers.text_files import line_blocks, read_delimited, read_header, require_file_or_gz
from macrec_pipeline.datasets import MovielensSource
from macrec_pipeline.errors import DataError, SchemaError
from macrec_pipeline.schemas import RAW_ITEMS

_MOVIES_HEADER = ("movieId", "title", "genres")
# The columns of u.item after movie id, title, two dates and a link.
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on
_NUM_COLUMNS_BEFORE_GENRES = 5
_QUOTED = Quoting(is_declared=True)
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

_Movie = tuple[str | None, str | None, list[str], int, str | None]
_MOVIE_SCHEMA: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "genres": pl.List(pl.String),
    "source_row": pl.Int64,
    "problem": pl.String,
}


@dataclass(frozen=True)
class MovielensReader(Reader):
    """Reads the ratings and movies of one MovieLens release."""

    source: MovielensSource
    data_dir: Path

    def interaction_parts(self) -> Iterator[pl.DataFrame]:
        """Yield the ratings as parts of `RAW_INTERACTIONS`.

        Raises:
            MissingFileError: the file does not exist.
            SchemaError: the file has another header.
            DataError: the file cannot be read to its end.
        """
        layout = _LAYOUTS[self.source.layout]
        path, file = self._find(layout.ratings)
        columns = ("user_id", "item_id", "rating", "timestamp")
        return rating_parts(path, file, columns=columns, separator=layout.separator, header=layout.header)

    def items(self) -> pl.DataFrame:
        """Return the movies as `RAW_ITEMS`: the text is title and genres, and the genres are the categories.

        Raises:
            MissingFileError: the file does not exist.
            SchemaError: the file has another header.
            DataError: the file cannot be read to its end.
        """
        source = self.source
        path, file = self._find(_LAYOUTS[source.layout].movies)
        if source.layout == "latest":
            table = _movies_csv(path, file)
        else:
            rows = _movies_100k(path) if source.layout == "100k" else _movies_1m(path)
            table = pl.DataFrame(list(rows), schema=_MOVIE_SCHEMA, orient="row")
        item_ids, titles = id_cells(table["item_id"]), text_cells(table["title"])
        genres = table.select("Genres: " + pl.col("genres").list.join(", ")).to_series()
        frame = table.with_columns(
            item_ids.alias("item_id"),
            titles.alias("title"),
            compose_texts(titles, [genres.set(table["genres"].list.len() == 0, None)]).alias("text"),
            pl.lit(None, dtype=pl.String).alias("image_path")
            if source.image is None
            else existing_images(item_ids, source.image, self.data_dir),
            pl.lit(None, dtype=pl.String).alias("image_url"),
            category_cells(table["genres"]).alias("categories"),
            pl.lit(file).alias("source_file"),
        )
        return RAW_ITEMS.check(frame.select(*RAW_ITEMS.columns), file)

    def problems(self) -> list[str]:
        """Return the missing files and unexpected headers."""
        layout = _LAYOUTS[self.source.layout]
        problems = []
        for name in (layout.ratings, layout.movies):
            try:
                path, file = self._find(name)
                if name == layout.ratings and layout.header is not None:
                    check_header(path, file, layout.header)
                elif self.source.layout == "latest":
                    _check_movies_header(read_header(path, file, separator=",", header=True, quoting=_QUOTED)[0], file)
            except DataError as error:
                problems.append(str(error))
        return problems

    def source_files(self) -> list[Path]:
        """Return the files of ratings and movies. Raise `MissingFileError`."""
        layout = _LAYOUTS[self.source.layout]
        return [self._find(name)[0] for name in (layout.ratings, layout.movies)]

    def images_tried(self, items: pl.DataFrame) -> list[str] | None:
        """Return where the images of items without one were looked for; None without `source.image`."""
        return None if self.source.image is None else tried_images(items, (self.source.image,))

    def _find(self, name: str) -> tuple[Path, str]:
        what = f"reader movielens, layout {self.source.layout}"
        return require_file_or_gz(self.data_dir, f"{self.source.folder}/{name}", what=what)


def _movies_100k(path: Path) -> Iterator[_Movie]:
    for number, cells in _cells(path, "|"):
        flags = cells[_NUM_COLUMNS_BEFORE_GENRES:]
        if len(flags) != len(_GENRES_100K):
            yield _wrong_number_of_cells(number, len(cells), _NUM_COLUMNS_BEFORE_GENRES + len(_GENRES_100K))
            continue
        genres = [genre for genre, flag in zip(_GENRES_100K, flags, strict=True) if flag.strip() == "1"]
        yield cells[0], cells[1], _real_genres(genres), number, None


def _movies_1m(path: Path) -> Iterator[_Movie]:
    for number, cells in _cells(path, "::"):
        if len(cells) != len(_MOVIES_HEADER):
            yield _wrong_number_of_cells(number, len(cells), len(_MOVIES_HEADER))
            continue
        yield cells[0], cells[1], _real_genres(cells[2].split("|")), number, None


def _movies_csv(path: Path, file: str) -> pl.DataFrame:
    table = read_delimited(path, file, separator=",", header=True, quoting=_QUOTED)
    _check_movies_header(table.column_names, file)
    genres = [_real_genres((text or "").split("|")) for text in table.column("genres")]
    return pl.DataFrame(
        {
            "item_id": table.column("movieId"),
            "title": table.column("title"),
            "genres": pl.Series(genres, dtype=pl.List(pl.String)),
            "source_row": table.line_numbers,
            "problem": table.problems(),
        }
    )


def _check_movies_header(names: tuple[str, ...] | None, file: str) -> None:
    if names != _MOVIES_HEADER:
        raise SchemaError(f"{file}: the columns are {', '.join(names or ())}, expected {', '.join(_MOVIES_HEADER)}.")


def _real_genres(genres: list[str]) -> list[str]:
    """Return the genres without those that only say that there is none."""
    return [genre.strip() for genre in genres if genre.strip() not in _NO_GENRE]


def _cells(path: Path, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line that is not blank. Lines that are not UTF-8 are latin-1, as in older releases."""
    for block in line_blocks(path, path.name):
        for number, line in block.lines():
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError:
                text = line.decode("latin-1")
            if text.strip():
                yield number, text.split(separator)


def _wrong_number_of_cells(line_number: int, actual: int, expected: int) -> _Movie:
    return None, None, [], line_number, f"wrong_number_of_cells: {actual}, expected {expected}"
