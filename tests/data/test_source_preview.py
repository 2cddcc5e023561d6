"""The first rows of each file, as `macrec datasets validate` shows them, for every reader."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.data.id_matching import match_ids
from macrec_pipeline.data.readers.source_preview import preview_source
from macrec_pipeline.datasets import DatasetSpec


def _spec(source: dict[str, Any]) -> DatasetSpec:
    return DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})


def _tables(log: dict[str, Any] | None = None, items: dict[str, Any] | None = None) -> DatasetSpec:
    interactions = {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t"}
    catalogue = {"file": "items.csv", "item_id": "id", "title": "name"}
    return _spec({"reader": "tables", "interactions": interactions | (log or {}), "items": catalogue | (items or {})})


def _write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_the_first_rows_of_every_file_are_read(tmp_path: Path) -> None:
    """A log of one file per day is looked at on each day, however many rows a day has."""
    for day in (1, 2, 3):
        rows = "".join(f"u{row},A,{1_700_000_000 + 86_400 * day + row}\n" for row in range(7))
        _write(tmp_path, **{f"log/{day}.csv": "u,i,t\n" + rows})
    _write(tmp_path, **{"items.csv": "id,name\nA,Ball\n"})
    preview = preview_source(_tables({"file": "log"}), tmp_path, num_rows=5)
    assert preview.log_files.rows() == [
        (f"log/{day}.csv", 5, 1000 * (1_700_000_000 + 86_400 * day), 1000 * (1_700_000_004 + 86_400 * day))
        for day in (1, 2, 3)
    ]
    assert preview.interactions["source_row"].to_list() == [2, 3, 4, 5, 6] * 3
    assert preview.match is not None
    assert (preview.match.num_matching, preview.match.num_rows, preview.match.num_catalogue) == (15, 15, 1)


def test_long_rows_do_not_shorten_the_sample(tmp_path: Path) -> None:
    """The rows are counted, not the bytes."""
    _write(tmp_path, **{"log.csv": "u,i,t\n1,A,1700000000\n"})
    rows = "".join(f"i{row},{'word ' * 400}\n" for row in range(1500))
    _write(tmp_path, **{"items.csv": "id,name\n" + rows})
    assert preview_source(_tables(), tmp_path).items.height == 1000


def test_all_ids_of_the_catalogue_are_compared(tmp_path: Path) -> None:
    """The share does not depend on where in the catalogue an item stands."""
    _write(tmp_path, **{"log.csv": "u,i,t\n1,i2999,1700000000\n1,x,1700000000\n"})
    _write(tmp_path, **{"items.csv": "id,name\n" + "".join(f"i{row},Thing\n" for row in range(3000))})
    match = preview_source(_tables(), tmp_path).match
    assert match is not None
    assert (match.num_matching, match.num_rows, match.num_catalogue) == (1, 2, 3000)
    assert match.log_examples == ("x",)


def test_two_places_of_missing_images_are_shown(tmp_path: Path) -> None:
    """Also for a column of files, whose names the catalogue gives."""
    _write(tmp_path, **{"log.csv": "u,i,t\n1,A,1700000000\n", "pics/A.jpg": "x"})
    _write(tmp_path, **{"items.csv": "id,name,photo\nA,Ball,A.jpg\nB,Kite,b/B.jpg\nC,Top,\nD,Doll,D.jpg\nE,Car,E\n"})
    by_id = preview_source(_tables(items={"image": "pics/{item_id}.jpg"}), tmp_path)
    assert by_id.images_tried == ("pics/B.jpg", "pics/C.jpg")
    by_column = preview_source(_tables(items={"image_file": "photo", "image_folder": "pics"}), tmp_path)
    assert by_column.images_tried == ("pics/b/B.jpg", "pics/D.jpg")
    assert preview_source(_tables(), tmp_path).images_tried is None


def test_a_catalogue_without_a_usable_row_is_a_problem(tmp_path: Path) -> None:
    """Semicolons of HTML split the cells of each row; validation must not say that the data set is ready."""
    _write(tmp_path, **{"log.csv": "u,i,t\n1,A,1700000000\n"})
    _write(tmp_path, **{"items.csv": "id;name\nA;Cups &amp; plates\nB;Forks &amp; knives\n"})
    (problem,) = preview_source(_tables(items={"separator": ";"}), tmp_path).problems
    assert problem.startswith("The catalogue has no usable row: 2 of the 2 rows that were read. The first is row 2 of ")
    assert "wrong_number_of_cells" in problem


def test_too_many_unusable_rows_are_announced(tmp_path: Path) -> None:
    """What would stop a run later is said before it."""
    _write(tmp_path, **{"log.csv": "u,i,t\n1,A,1700000000\n,A,1700000000\n2,A,\n", "items.csv": "id,name\nA,Ball\n"})
    preview = preview_source(_tables(), tmp_path)
    assert preview.problems == ()
    (note,) = preview.notes
    assert note.startswith("A run stops, because too many rows of the log are unusable: 2 of the 3 rows")


def _write_readers(folder: Path) -> dict[str, dict[str, Any]]:
    """Write a small data set for each built-in reader but `tables`; all have the interaction (7, 1)."""
    _write(
        folder,
        **{
            "ml/ratings.csv": "userId,movieId,rating,timestamp\n7,1,4.0,1704103200\n",
            "ml/movies.csv": "movieId,title,genres\n1,Toy Story (1995),Comedy\n",
            "r/r.inter": "user_id:token\titem_id:token\ttimestamp:float\n7\t1\t1704103200\n",
            "r/r.item": "item_id:token\ttitle:token_seq\n1\tToy Story\n",
            "s.txt": "7 1 1\n",
            "x/x.inter.json": '{"7": [1, 1]}',
            "a/X.csv": "1,7,4.0,1704103200\n",
            "a/meta_X.json": json.dumps({"asin": "1", "title": "Toy"}) + "\n",
            "b/X.jsonl": json.dumps({"user_id": "7", "parent_asin": "1", "rating": 4.0, "timestamp": 1704103200000}),
            "b/meta_X.jsonl": json.dumps({"parent_asin": "1", "title": "Toy"}) + "\n",
        },
    )
    return {
        "movielens": {"reader": "movielens", "folder": "ml", "layout": "latest"},
        "recbole": {"reader": "recbole", "folder": "r", "prefix": "r", "image": "r/{item_id}.jpg"},
        "sequences": {"reader": "sequences", "file": "s.txt"},
        "indexed": {"reader": "indexed", "folder": "x", "prefix": "x"},
        "amazon2018": {"reader": "amazon2018", "folder": "a", "prefix": "X"},
        "amazon2023": {"reader": "amazon2023", "folder": "b", "prefix": "X"},
    }


@pytest.mark.parametrize("name", ["movielens", "recbole", "sequences", "indexed", "amazon2018", "amazon2023"])
def test_every_reader_has_a_preview(tmp_path: Path, name: str) -> None:
    """The rows, the share that matches and the places of images come from each reader."""
    preview = preview_source(_spec(_write_readers(tmp_path)[name]), tmp_path)
    assert preview.interactions.select("user_id", "item_id").row(0) == ("7", "1")
    assert preview.items["item_id"].to_list() == ["1"]
    assert preview.match is not None
    assert (preview.match.share, preview.match.num_catalogue) == (1.0, 1)
    expected = {"recbole": ("r/1.jpg",), "amazon2018": ("a/images/1.jpg",), "amazon2023": ("b/images/1.jpg",)}
    assert preview.images_tried == expected.get(name)


def test_the_demo_shop_has_no_preview_before_it_exists(tmp_path: Path) -> None:
    """Validation generates nothing."""
    preview = preview_source(_spec({"reader": "demo"}), tmp_path)
    assert preview.interactions.is_empty()
    assert preview.match is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("log", "catalogue", "difference"),
    [
        (["108775015", "7"], ["0108775015", "007", "9"], "zeros in front"),
        (["18.0", "19.00", "x"], ["18", "19"], "a fraction of zeros"),
        (["ab-1", "CD-2"], ["AB-1", "cd-2"], "capital letters"),
        (['"a1"', '"a2"'], ["a1", "a2"], "quotes around the id"),
        (["AB1", "CD2"], ["AB-1", "CD 2"], "signs"),
        (["prod_18", "prod_19"], ["18", "19"], "a text before the number"),
        (["gid://shopify/Product/18"], ["18"], "a path or address"),
    ],
)
def test_the_difference_between_the_ids_is_named(log: list[str], catalogue: list[str], difference: str) -> None:
    """Ids of both sides that belong together are shown side by side."""
    match = match_ids(pl.Series(log), pl.Series(catalogue))
    assert match.num_matching == 0
    assert match.difference is not None
    assert match.difference.startswith(difference)
    assert match.log_examples[0] == log[0]
    assert match.catalogue_examples[0] == catalogue[0]
    assert repr(log[0]) in match.sides()
    assert repr(catalogue[0]) in match.sides()


def test_ids_that_cannot_match_are_shown_all_the_same() -> None:
    """Rows are counted, ids are shown once, and nulls count on neither side."""
    match = match_ids(pl.Series(["a", "a", "b", "x", None]), pl.Series(["x", "y", "x", None]))
    assert (match.num_rows, match.num_matching, match.num_catalogue) == (4, 1, 2)
    assert (match.log_examples, match.catalogue_examples, match.difference) == (("a", "b"), ("x", "y"), None)
    assert match_ids(pl.Series([], dtype=pl.String), pl.Series([], dtype=pl.String)).share == 1.0
