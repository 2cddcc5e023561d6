"""The reader `tables`: any mapping of CSV, TSV and parquet files gives the same raw tables."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.registry import tables
from macrec_pipeline.data.readers.tables import read_interactions_table, read_items_table, tables_problems
from macrec_pipeline.datasets import InteractionsTable, ItemsTable, TablesSource
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_CSV = InteractionsTable(file="log.csv", user_id="u", item_id="i", timestamp="t", rating="r", timestamp_unit="s")
_ITEMS = ItemsTable(
    file="items.csv",
    item_id="id",
    title="name",
    texts=("about", {"label": "Genres", "flags": ("War", "Drama")}),
    image="posters/{item_id}.jpg",
)


def test_interactions_from_csv_tsv_and_parquet_agree(tmp_path: Path) -> None:
    """The same rows in three formats, with names or positions, are the same table but for file and line."""
    (tmp_path / "log.csv").write_text("r,u,i,t\n4,1,10,1000000000\n,2,B7,1000000001\n")
    (tmp_path / "log.tsv").write_text("1\t10\t1000000000\t4\n2\tB7\t1000000001\t\n")
    pl.DataFrame(
        {"u": [1, 2], "i": ["10", "B7"], "t": [1000000000, 1000000001], "r": [4.0, None], "x": [0, 0]}
    ).write_parquet(tmp_path / "log.parquet")
    tsv = InteractionsTable(file="log.tsv", header=False, user_id=0, item_id=1, timestamp=2, rating=3)
    read = [
        read_interactions_table(mapping, tmp_path)
        for mapping in (_CSV, tsv, _CSV.model_copy(update={"file": "log.parquet"}))
    ]
    assert read[0].rows() == [
        ("1", "10", 4.0, 1_000_000_000_000, "log.csv", 2, None),
        ("2", "B7", None, 1_000_000_001_000, "log.csv", 3, None),
    ]
    for table, file, first in zip(read, ("log.csv", "log.tsv", "log.parquet"), (2, 1, 1), strict=True):
        RAW_INTERACTIONS.check(table)
        assert table.drop("source_file", "source_row").equals(read[0].drop("source_file", "source_row"))
        assert table["source_file"].unique().to_list() == [file]
        assert table["source_row"].to_list() == [first, first + 1]


def test_unreadable_cells_are_null_and_keep_their_line(tmp_path: Path) -> None:
    """Nothing is raised for a bad row: cleaning has to find it, with its line; a cell too many is said."""
    (tmp_path / "log.csv").write_text("u,i,t,r\n1,2,soon,x\n,2,5,1\n1,2\n1,2,3,4,5\n")
    table = read_interactions_table(_CSV, tmp_path)
    assert table.select("user_id", "item_id", "rating", "timestamp", "source_row").rows() == [
        ("1", "2", None, None, 2),
        (None, "2", 1.0, 5000, 3),
        ("1", "2", None, None, 4),
        (None, None, None, None, 5),
    ]
    assert table["problem"].to_list() == [None] * 3 + ["wrong_number_of_cells: more than the 4 columns of the file"]


def test_no_rating_column(tmp_path: Path) -> None:
    """Without a rating column every rating is null."""
    (tmp_path / "log.csv").write_text("u,i,t\n1,2,3\n")
    table = read_interactions_table(_CSV.model_copy(update={"rating": None}), tmp_path)
    assert table["rating"].to_list() == [None]


def test_items_have_text_and_picture(tmp_path: Path) -> None:
    """Title, text columns and flags become the text; the picture is named where it exists."""
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "1.jpg").touch()
    (tmp_path / "items.csv").write_text(
        'id,name,about,War,Drama\n1,Alien,"In space, nobody",0,1\n2,,,0,0\n3,Dune,,1,1\n'
    )
    table = read_items_table(_ITEMS, tmp_path)
    RAW_ITEMS.check(table)
    assert table.rows() == [
        ("1", "Alien", "Alien. In space, nobody. Genres: Drama.", "posters/1.jpg", None, None, "items.csv", 2, None),
        ("2", None, None, None, None, None, "items.csv", 3, None),
        ("3", "Dune", "Dune. Genres: War, Drama.", None, None, None, "items.csv", 4, None),
    ]


def test_missing_files_and_columns_say_what_to_do(tmp_path: Path) -> None:
    """A missing file names MACREC_DATA, a missing column the columns that are there; validation finds all at once."""
    with pytest.raises(MissingFileError, match=r"log\.csv is not there .*MACREC_DATA"):
        read_interactions_table(_CSV, tmp_path)
    source = TablesSource(reader="tables", interactions=_CSV, items=_ITEMS)
    assert [problem.split(" (source")[0] for problem in tables_problems(source, tmp_path)] == [
        f"{tmp_path / 'log.csv'} is not there",
        f"{tmp_path / 'items.csv'} is not there",
        f"There is no folder {tmp_path / 'posters'} for the pictures",
    ]
    (tmp_path / "log.csv").write_text("user,i,time,r\n1,2,3,4\n")
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama\n")
    (tmp_path / "posters").mkdir()
    with pytest.raises(SchemaError, match=r"log\.csv: there is no column 'u'; it has user, i, time, r"):
        read_interactions_table(_CSV, tmp_path)
    problems = tables_problems(source, tmp_path)
    assert len(problems) == 2
    assert "'u'" in problems[0]
    assert "'t'" in problems[1]


def test_ready_tables_have_no_problems(tmp_path: Path) -> None:
    """A source that can be read is reported as ready; a template without {item_id} is not."""
    (tmp_path / "log.csv").write_text("u,i,t,r\n1,2,3,4\n")
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama\n")
    (tmp_path / "posters").mkdir()
    assert tables_problems(TablesSource(reader="tables", interactions=_CSV, items=_ITEMS), tmp_path) == []
    fixed = TablesSource(reader="tables", interactions=_CSV, items=_ITEMS.model_copy(update={"image": "posters/a.jpg"}))
    assert "{item_id}" in tables_problems(fixed, tmp_path)[0]
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama,url\n")
    fetched = _ITEMS.model_copy(update={"image": "not/yet/{item_id}.jpg", "image_url": "url"})
    assert tables_problems(TablesSource(reader="tables", interactions=_CSV, items=fetched), tmp_path) == []


def test_broken_parquet_is_one_clear_error(tmp_path: Path) -> None:
    """A file that only calls itself parquet is named."""
    (tmp_path / "log.parquet").write_text("u,i,t\n")
    mapping = _CSV.model_copy(update={"file": "log.parquet"})
    with pytest.raises(SchemaError, match=r"log\.parquet is not readable as parquet"):
        read_interactions_table(mapping, tmp_path)


def test_parquet_in_parts_is_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file longer than what is read at once has every row, with its number."""
    frame = pl.DataFrame({"u": [f"u{row}" for row in range(25)], "i": "x", "t": range(25), "r": 1.0})
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=7)
    mapping = _CSV.model_copy(update={"file": "log.parquet"})
    whole = read_interactions_table(mapping, tmp_path)
    assert whole["user_id"].to_list() == frame["u"].to_list()
    monkeypatch.setattr(tables, "_PARQUET_ROWS", 10)
    assert read_interactions_table(mapping, tmp_path).equals(whole)
    assert whole["source_row"].to_list() == list(range(1, 26))


def test_addresses_of_pictures_are_a_column(tmp_path: Path) -> None:
    """`image_url` names the column that `macrec fetch images` reads; blanks are no addresses."""
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama,url\n1,A,,0,0, https://x/1.jpg \n2,B,,0,0,\n")
    mapping = _ITEMS.model_copy(update={"image_url": "url"})
    assert read_items_table(mapping, tmp_path)["image_url"].to_list() == ["https://x/1.jpg", None]


def test_categories_are_a_column_or_flags(tmp_path: Path) -> None:
    """A text that holds several, a parquet list and 0/1 columns; blanks are none, and a missing column is found."""
    (tmp_path / "items.csv").write_text(
        "id,name,about,War,Drama,shelf\n1,A,,1,1, Toys > Games | Toys|| Toys \n2,B,,0,0, |\n"
    )
    lists = pl.DataFrame({"id": ["1", "2"], "name": ["A", "B"], "shelf": [["Toys > Games", None, "Toys", " Toys"], []]})
    lists.write_parquet(tmp_path / "items.parquet")
    bare = _ITEMS.model_copy(update={"texts": (), "categories": "shelf"})
    for mapping in (bare, bare.model_copy(update={"file": "items.parquet"})):
        assert read_items_table(mapping, tmp_path)["categories"].to_list() == [["Toys > Games", "Toys"], None]
    other = bare.model_copy(update={"categories_separator": " > "})
    assert read_items_table(other, tmp_path)["categories"].to_list() == [["Toys", "Games | Toys|| Toys"], ["|"]]
    flags = _ITEMS.model_copy(update={"categories": _ITEMS.texts[1]})
    assert read_items_table(flags, tmp_path)["categories"].to_list() == [["War", "Drama"], None]
    source = TablesSource(reader="tables", interactions=_CSV, items=bare.model_copy(update={"categories": "aisle"}))
    assert any("there is no column 'aisle'" in problem for problem in tables_problems(source, tmp_path))
