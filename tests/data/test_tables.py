"""Reader `tables`: every mapping of CSV, TSV and parquet files gives the same raw tables."""

from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers import mapped_files
from macrec_pipeline.data.readers.tables import TablesReader
from macrec_pipeline.datasets import InteractionsTable, ItemsTable, TablesSource
from macrec_pipeline.errors import ConfigError, MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_LOG = InteractionsTable(file="log.csv", user_id="u", item_id="i", timestamp="t", rating="r", timestamp_unit="s")
_ITEMS = ItemsTable(
    file="items.csv",
    item_id="id",
    title="name",
    texts=("about", {"label": "Genres", "flags": ("War", "Drama")}),
    image="posters/{item_id}.jpg",
)


def _reader(data_dir: Path, *, interactions: InteractionsTable = _LOG, items: ItemsTable = _ITEMS) -> TablesReader:
    return TablesReader(TablesSource(reader="tables", interactions=interactions, items=items), data_dir)


def _interactions(mapping: InteractionsTable, data_dir: Path) -> pl.DataFrame:
    parts = _reader(data_dir, interactions=mapping).interaction_parts()
    return RAW_INTERACTIONS.check(pl.concat([RAW_INTERACTIONS.empty(), *parts]))


def _items(mapping: ItemsTable, data_dir: Path) -> pl.DataFrame:
    return RAW_ITEMS.check(_reader(data_dir, items=mapping).items())


def test_interactions_from_csv_tsv_and_parquet_agree(tmp_path: Path) -> None:
    """The same rows in three formats, mapped by name or position, differ only in file and line."""
    (tmp_path / "log.csv").write_text("r,u,i,t\n4,1,10,1000000000\n,2,B7,1000000001\n")
    (tmp_path / "log.tsv").write_text("1\t10\t1000000000\t4\n2\tB7\t1000000001\t\n")
    pl.DataFrame(
        {"u": [1, 2], "i": ["10", "B7"], "t": [1000000000, 1000000001], "r": [4.0, None], "x": [0, 0]}
    ).write_parquet(tmp_path / "log.parquet")
    tsv = InteractionsTable(file="log.tsv", header=False, user_id=0, item_id=1, timestamp=2, rating=3)
    mappings = (_LOG, tsv, _LOG.model_copy(update={"file": "log.parquet"}))
    results = [_interactions(mapping, tmp_path) for mapping in mappings]
    assert results[0].rows() == [
        ("1", "10", 4.0, 1_000_000_000_000, "log.csv", 2, None),
        ("2", "B7", None, 1_000_000_001_000, "log.csv", 3, None),
    ]
    for table, file, first_row in zip(results, ("log.csv", "log.tsv", "log.parquet"), (2, 1, 1), strict=True):
        assert table.drop("source_file", "source_row").equals(results[0].drop("source_file", "source_row"))
        assert table["source_file"].unique().to_list() == [file]
        assert table["source_row"].to_list() == [first_row, first_row + 1]


def test_unreadable_cells_are_null_and_keep_their_line(tmp_path: Path) -> None:
    """A bad row raises nothing, because cleaning must report it with its line. An extra cell is a problem."""
    (tmp_path / "log.csv").write_text("u,i,t,r\n1,2,soon,x\n,2,5,1\n1,2\n1,2,3,4,5\n")
    table = _interactions(_LOG, tmp_path)
    assert table.select("user_id", "item_id", "rating", "timestamp", "source_row").rows() == [
        ("1", "2", None, None, 2),
        (None, "2", 1.0, 5000, 3),
        ("1", "2", None, None, 4),
        (None, None, None, None, 5),
    ]
    assert table["problem"].to_list() == [None] * 3 + ["wrong_number_of_cells: more than the 4 columns of the file"]


def test_ratings_are_null_without_a_rating_column(tmp_path: Path) -> None:
    """The rating column is optional."""
    (tmp_path / "log.csv").write_text("u,i,t\n1,2,3\n")
    table = _interactions(_LOG.model_copy(update={"rating": None}), tmp_path)
    assert table["rating"].to_list() == [None]


def test_items_have_a_text_and_an_existing_image(tmp_path: Path) -> None:
    """Title, text columns and flags become the text; the image path is set where the file exists."""
    (tmp_path / "posters").mkdir()
    (tmp_path / "posters" / "1.jpg").touch()
    (tmp_path / "items.csv").write_text(
        'id,name,about,War,Drama\n1,Alien,"In space, nobody",0,1\n2,,,0,0\n3,Dune,,1,1\n'
    )
    assert _items(_ITEMS, tmp_path).rows() == [
        ("1", "Alien", "Alien. In space, nobody. Genres: Drama.", "posters/1.jpg", None, None, "items.csv", 2, None),
        ("2", None, None, None, None, None, "items.csv", 3, None),
        ("3", "Dune", "Dune. Genres: War, Drama.", None, None, None, "items.csv", 4, None),
    ]


def test_missing_files_and_columns_say_what_to_do(tmp_path: Path) -> None:
    """A missing file names MACREC_DATA, a missing column the existing ones; validation reports all problems at once."""
    reader = _reader(tmp_path)
    with pytest.raises(MissingFileError, match=r"log\.csv does not exist .*MACREC_DATA"):
        _interactions(_LOG, tmp_path)
    assert [problem.split(" (source")[0] for problem in reader.problems()] == [
        f"{tmp_path / 'log.csv'} does not exist",
        f"{tmp_path / 'items.csv'} does not exist",
        f"The folder {tmp_path / 'posters'} for the images does not exist",
    ]
    (tmp_path / "log.csv").write_text("user,i,time,r\n1,2,3,4\n")
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama\n")
    (tmp_path / "posters").mkdir()
    with pytest.raises(SchemaError, match=r"log\.csv has no column 'u'. Its columns are: user, i, time, r"):
        _interactions(_LOG, tmp_path)
    problems = reader.problems()
    assert len(problems) == 2
    assert "'u'" in problems[0]
    assert "'t'" in problems[1]


def test_a_readable_source_has_no_problems(tmp_path: Path) -> None:
    """An image template without {item_id} is a problem; a missing image folder is none if images can be fetched."""
    (tmp_path / "log.csv").write_text("u,i,t,r\n1,2,3,4\n")
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama\n")
    (tmp_path / "posters").mkdir()
    assert _reader(tmp_path).problems() == []
    same_for_all = _ITEMS.model_copy(update={"image": "posters/a.jpg"})
    assert "{item_id}" in _reader(tmp_path, items=same_for_all).problems()[0]
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama,url\n")
    fetched = _ITEMS.model_copy(update={"image": "not/yet/{item_id}.jpg", "image_url": "url"})
    assert _reader(tmp_path, items=fetched).problems() == []


def test_a_file_that_is_not_parquet_is_one_clear_error(tmp_path: Path) -> None:
    """The message names the file."""
    (tmp_path / "log.parquet").write_text("u,i,t\n")
    with pytest.raises(SchemaError, match=r"log\.parquet cannot be read as parquet"):
        _interactions(_LOG.model_copy(update={"file": "log.parquet"}), tmp_path)


def test_a_parquet_file_read_in_parts_has_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading several parts gives the same table as reading one, with the same row numbers."""
    frame = pl.DataFrame({"u": [f"u{row}" for row in range(25)], "i": "x", "t": range(25), "r": 1.0})
    frame.write_parquet(tmp_path / "log.parquet", row_group_size=7)
    mapping = _LOG.model_copy(update={"file": "log.parquet"})
    whole = _interactions(mapping, tmp_path)
    assert whole["user_id"].to_list() == frame["u"].to_list()
    monkeypatch.setattr(mapped_files, "_PARQUET_ROWS", 10)
    assert [part.height for part in _reader(tmp_path, interactions=mapping).interaction_parts()] == [10, 10, 5]
    assert _interactions(mapping, tmp_path).equals(whole)
    assert whole["source_row"].to_list() == list(range(1, 26))


def test_image_addresses_are_a_column(tmp_path: Path) -> None:
    """`image_url` names the column; blank cells are no addresses. `image` says where fetched images belong."""
    (tmp_path / "items.csv").write_text("id,name,about,War,Drama,url\n1,A,,0,0, https://x/1.jpg \n2,B,,0,0,\n")
    mapping = _ITEMS.model_copy(update={"image_url": "url"})
    assert _items(mapping, tmp_path)["image_url"].to_list() == ["https://x/1.jpg", None]
    assert _reader(tmp_path, items=mapping).image_template() == "posters/{item_id}.jpg"
    assert _reader(tmp_path).image_template() is None
    with pytest.raises(ConfigError, match=r"image_url names the column 'url' .* there is no source\.items\.image"):
        _reader(tmp_path, items=mapping.model_copy(update={"image": None})).image_template()


def test_categories_are_a_column_or_flags(tmp_path: Path) -> None:
    """Categories come from a text with several of them, a parquet list or 0/1 columns; blank ones are left out."""
    (tmp_path / "items.csv").write_text(
        "id,name,about,War,Drama,shelf\n1,A,,1,1, Toys > Games | Toys|| Toys \n2,B,,0,0, |\n"
    )
    lists = pl.DataFrame({"id": ["1", "2"], "name": ["A", "B"], "shelf": [["Toys > Games", None, "Toys", " Toys"], []]})
    lists.write_parquet(tmp_path / "items.parquet")
    by_column = _ITEMS.model_copy(update={"texts": (), "categories": "shelf"})
    for mapping in (by_column, by_column.model_copy(update={"file": "items.parquet"})):
        assert _items(mapping, tmp_path)["categories"].to_list() == [["Toys > Games", "Toys"], None]
    other_separator = by_column.model_copy(update={"categories_separator": " > "})
    assert _items(other_separator, tmp_path)["categories"].to_list() == [["Toys", "Games | Toys|| Toys"], ["|"]]
    by_flags = _ITEMS.model_copy(update={"categories": _ITEMS.texts[1]})
    assert _items(by_flags, tmp_path)["categories"].to_list() == [["War", "Drama"], None]
    missing = _reader(tmp_path, items=by_column.model_copy(update={"categories": "aisle"}))
    assert any("has no column 'aisle'" in problem for problem in missing.problems())


def test_html_becomes_plain_text(tmp_path: Path) -> None:
    """Titles, texts and categories lose tags and entities; comparisons and ampersands that are text stay."""
    rows = {
        "id": ["1", "2", "3"],
        "name": ["Salt &amp; Pepper", "R&B <3", None],
        "about": ["<p>Two <b>mills</b></p><script>x()</script>", "3 < 4 & so on", "<br/>"],
        "tags": [["<i>Kitchen</i>", "Salt &amp; Co"], [], None],
    }
    pl.DataFrame(rows).write_parquet(tmp_path / "items.parquet")
    mapping = ItemsTable(file="items.parquet", item_id="id", title="name", texts=("about", "tags"), categories="tags")
    assert _items(mapping, tmp_path).select("title", "text", "categories").rows() == [
        ("Salt & Pepper", "Salt & Pepper. Two mills. Kitchen, Salt & Co.", ["Kitchen", "Salt & Co"]),
        ("R&B <3", "R&B <3. 3 < 4 & so on.", None),
        (None, None, None),
    ]
