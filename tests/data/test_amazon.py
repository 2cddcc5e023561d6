"""The Amazon files in their published forms, written here with the oddities that they have."""

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.readers.amazon import amazon_problems, read_amazon_interactions, read_amazon_items
from macrec_pipeline.data.readers.registry import (
    json_lines,
    rating_logs,
    read_raw_interactions,
    read_raw_items,
    validate_source,
)
from macrec_pipeline.datasets import Amazon2018Source, Amazon2023Source, DatasetSpec
from macrec_pipeline.errors import DataError, MissingFileError

_OF_2018 = Amazon2018Source(reader="amazon2018", folder="az", prefix="Musical_Instruments")
_OF_2023 = Amazon2023Source(reader="amazon2023", folder="az", prefix="Musical_Instruments")
_CELLS = ["user_id", "item_id", "rating", "timestamp", "source_row", "problem"]

_META_2018: list[Any] = [
    {  # as most are
        "category": ["Musical Instruments", "Guitars &amp; Basses"],
        "tech1": "",
        "description": ["<p>A <b>solid</b> body.</p>", "", "Maple&nbsp;neck"],
        "title": "Fender&reg; Strat",
        "brand": "Fender",
        "asin": "B0002E1G5C",
        "imageURL": ["https://example.com/I/a._US40_.jpg"],
        "imageURLHighRes": ["https://example.com/I/a.jpg", "https://example.com/I/b.jpg"],
    },
    {"asin": "0739079891", "title": "Book of chords", "description": "", "brand": "", "category": [], "imageURL": ""},
    {"asin": "B1", "title": "Strings", "imageURL": ["https://example.com/I/c._US40_.jpg"], "imageURLHighRes": []},
    {"asin": "B2", "title": {"en": "Strings"}, "brand": None},
    {"title": "no asin"},
    {"asin": 123, "title": "an asin that is a number", "description": ["one", None, 2]},
]
_META_2023: list[Any] = [
    {
        "title": "Bass strings",
        "features": ["Nickel", "Long life"],
        "description": ["For four strings."],
        "price": 12.99,
        "images": [
            {"thumb": "t1", "large": "https://example.com/back.jpg", "variant": "PT01", "hi_res": None},
            {"thumb": "t2", "large": "https://example.com/main.jpg", "variant": "MAIN", "hi_res": "https://x/hi.jpg"},
        ],
        "store": "D'Addario",
        "main_category": "Musical Instruments",
        "categories": ["Musical Instruments", "Strings &amp; Picks"],
        "parent_asin": "P1",
    },
    {
        "title": None,
        "main_category": None,
        "categories": [],
        "features": [],
        "description": [],
        "images": [],
        "parent_asin": "P2",
    },
    {"title": "High only", "images": [{"large": None, "hi_res": "https://x/hi.jpg"}], "parent_asin": "P3"},
    {"title": "t", "images": {"large": ["https://x/y.jpg"]}, "parent_asin": "P4"},
]


def _write(path: Path, lines: list[str | bytes], *, packed: bool = True) -> None:
    path.parent.mkdir(exist_ok=True)
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n"
    path.write_bytes(gzip.compress(content) if packed else content)


def _objects(rows: list[Any]) -> list[str | bytes]:
    return [json.dumps(row) for row in rows]


def test_ratings_of_2018(tmp_path: Path) -> None:
    """item,user,rating,timestamp in seconds, without header; each oddity keeps its line."""
    lines: list[str | bytes] = [
        "0739079891,A1,5.0,1393545600",
        "B0002E1G5C,A2,4,1393545601\r",  # a line break of another system
        "user,item,rating,timestamp",  # a header that does not belong here
        "B1,A3,5.0,1393545602,extra",
        "B1,A3,5.0",
        "",
        "B1,,5.0,1393545602",
        "B1,A3,nan,1393545602",
        b"B1,caf\xe9,1.0,1393545602.0",  # no UTF-8
        'B1,"A3",1.0,soon',  # quotes are characters here
    ]
    _write(tmp_path / "az" / "Musical_Instruments.csv.gz", lines)
    table = read_amazon_interactions(_OF_2018, tmp_path)
    assert table["source_file"].unique().to_list() == ["az/Musical_Instruments.csv.gz"]
    rows = table.with_columns(pl.col("rating").fill_nan(-1)).select(_CELLS).rows()
    assert rows == [
        ("A1", "0739079891", 5.0, 1_393_545_600_000, 1, None),
        ("A2", "B0002E1G5C", 4.0, 1_393_545_601_000, 2, None),
        ("item", "user", None, None, 3, "wrong_type: rating is 'rating', expected a number"),
        (None, None, None, None, 4, "wrong_number_of_cells: more than 4, separated by ','"),
        ("A3", "B1", 5.0, None, 5, None),
        (None, None, None, None, 6, None),
        (None, "B1", 5.0, 1_393_545_602_000, 7, None),
        ("A3", "B1", -1.0, 1_393_545_602_000, 8, None),
        ("caf\ufffd", "B1", 1.0, 1_393_545_602_000, 9, None),
        ('"A3"', "B1", 1.0, None, 10, "wrong_type: timestamp is 'soon', expected a number"),
    ]


def test_metadata_of_2018(tmp_path: Path) -> None:
    """Entities and tags go, empty lists may be empty texts, the large picture is preferred, what is wrong is said."""
    _write(tmp_path / "az" / "meta_Musical_Instruments.json.gz", _objects(_META_2018))
    (tmp_path / "az" / "images").mkdir()
    (tmp_path / "az" / "images" / "B1.jpg").touch()
    table = read_amazon_items(_OF_2018, tmp_path)
    assert table.select("item_id", "title", "text", "image_path", "image_url", "source_row", "problem").rows() == [
        (
            "B0002E1G5C",
            "Fender® Strat",
            "Fender® Strat. A solid body. Maple neck. Brand: Fender. "
            "Categories: Musical Instruments, Guitars & Basses.",
            None,
            "https://example.com/I/a.jpg",
            1,
            None,
        ),
        ("0739079891", "Book of chords", "Book of chords.", None, None, 2, None),
        ("B1", "Strings", "Strings.", "az/images/B1.jpg", "https://example.com/I/c._US40_.jpg", 3, None),
        ("B2", None, None, None, None, 4, 'wrong_type: title is {"en": "Strings"}, expected a text or a list of texts'),
        (None, "no asin", "no asin.", None, None, 5, None),
        ("123", "an asin that is a number", "an asin that is a number. one 2.", None, None, 6, None),
    ]
    assert table["categories"].to_list() == [["Musical Instruments", "Guitars & Basses"], *[None] * 5]


def test_reviews_of_2023(tmp_path: Path) -> None:
    """Times in ms, the item is parent_asin; every way of being no review has its reason and line."""
    good = {"user_id": "U1", "parent_asin": "P1", "asin": "B9", "rating": 5.0, "timestamp": 1588687728923}
    lines: list[str | bytes] = [
        json.dumps(good),
        '{"user_id": "U1", "parent_asin": "P1", "rating": 5.0, "timest',  # cut off
        "",
        "[1, 2]",
        "null",
        json.dumps({**good, "rating": "five"}),
        json.dumps({**good, "timestamp": True}),
        json.dumps({**good, "timestamp": 10**30, "rating": 10**400}),
        json.dumps({**good, "user_id": ["U1"], "rating": None}),
        json.dumps({"rating": 1, "timestamp": 1588687728923.0}),
        json.dumps({**good, "user_id": "\ud800"}),  # half a surrogate pair
        b'{"user_id": "caf\xe9"}',
        "[" * 100_000,
        '{"user_id": ' + "9" * 5000 + "}",
        json.dumps({**good, "user_id": " a/b\u2028\U0001f3b8'\" "}),
    ]
    _write(tmp_path / "az" / "Musical_Instruments.jsonl.gz", lines)
    table = read_amazon_interactions(_OF_2023, tmp_path).select(_CELLS)
    assert [row[:4] for row in table.rows()] == [
        ("U1", "P1", 5.0, 1588687728923),
        (None, None, None, None),
        (None, None, None, None),
        (None, None, None, None),
        ("U1", "P1", None, 1588687728923),
        ("U1", "P1", 5.0, None),
        ("U1", "P1", float("inf"), 2**53),
        (None, "P1", None, 1588687728923),
        (None, None, 1.0, 1588687728923),
        (None, "P1", 5.0, 1588687728923),
        (None, None, None, None),
        (None, None, None, None),
        (None, None, None, None),
        ("a/b \U0001f3b8'\"", "P1", 5.0, 1588687728923),
    ]
    assert table["source_row"].to_list() == [1, 2, *range(4, 16)]
    assert [problem and problem[:37] for problem in table["problem"]] == [
        None,
        "invalid_json: Unterminated string sta",
        "invalid_json: a list, expected an obj",
        "invalid_json: null, expected an objec",
        'wrong_type: rating is "five", expecte',
        "wrong_type: timestamp is true, expect",
        None,
        'wrong_type: user_id is ["U1"], expect',
        None,
        'wrong_type: user_id is "\\ud800", expe',
        "invalid_json: 'utf-8' codec can't dec",
        "invalid_json: maximum recursion depth",
        "invalid_json: Exceeds the limit (4300",
        None,
    ]


def test_metadata_of_2023(tmp_path: Path) -> None:
    """The main picture's `large`, else whatever there is; features before the description; other forms are said."""
    _write(tmp_path / "az" / "meta_Musical_Instruments.jsonl", _objects(_META_2023), packed=False)
    table = read_amazon_items(_OF_2023, tmp_path)
    assert table["source_file"][0] == "az/meta_Musical_Instruments.jsonl"
    assert table.select("item_id", "title", "text", "image_url").rows() == [
        ("P1", "Bass strings", "Bass strings. Nickel Long life. For four strings.", "https://example.com/main.jpg"),
        ("P2", None, None, None),
        ("P3", "High only", "High only.", "https://x/hi.jpg"),
        ("P4", "t", "t.", None),
    ]
    assert table["problem"][3] == 'wrong_type: images is {"large": ["https://x/y.jpg"]}, expected a list of objects'
    assert table["categories"].to_list() == [["Musical Instruments", "Strings & Picks"], None, None, None]
    named = _OF_2023.model_copy(update={"texts": ("store", "categories")})
    assert read_amazon_items(named, tmp_path)["text"][0] == (
        "Bass strings. Store: D'Addario. Categories: Musical Instruments, Strings & Picks."
    )


def test_bad_rows_reach_quarantine_with_file_and_line(tmp_path: Path) -> None:
    """From the files to the quarantine: reason, source file, line and what is known of the row."""
    log = [f"B{item},A{user},5.0,{1393545600 + item}" for user in range(5) for item in range(5)]
    _write(tmp_path / "az" / "Musical_Instruments.csv", [*log, "B1,A1,bad,1393545600"], packed=False)
    meta = [json.dumps({"asin": f"B{item}", "title": f"Item {item}"}) for item in range(5)]
    _write(tmp_path / "az" / "meta_Musical_Instruments.json.gz", ["{'asin': 'B9'}", *meta])
    spec = DatasetSpec(name="az", title="t", source=_OF_2018)
    assert validate_source(spec, tmp_path) == []
    config = spec.config({"cleaning": {"max_quarantined_share": 0.2}}).cleaning
    tables = clean(read_raw_interactions(spec, tmp_path), read_raw_items(spec, tmp_path), config)
    assert tables.interactions.height == 25
    assert tables.quarantine.select("source_file", "source_row", "item_id", "reason", "detail").rows() == [
        ("az/Musical_Instruments.csv", 26, "B1", "wrong_type", "rating is 'bad', expected a number"),
        (
            "az/meta_Musical_Instruments.json.gz",
            1,
            None,
            "invalid_json",
            "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        ),
    ]


@pytest.mark.parametrize("source", [_OF_2018, _OF_2023])
def test_a_truncated_download_is_one_error(tmp_path: Path, source: Amazon2018Source | Amazon2023Source) -> None:
    """Half a log is not used in silence: the error names the file and what to do."""
    name = "Musical_Instruments.csv.gz" if source is _OF_2018 else "Musical_Instruments.jsonl.gz"
    _write(tmp_path / "az" / name, [f"{row},{row * 7919 % 1009}" for row in range(5000)])
    path = tmp_path / "az" / name
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=rf"{name} cannot be read: .*Copy it again"):
        read_amazon_interactions(source, tmp_path)


def test_missing_files_are_named_with_both_endings(tmp_path: Path) -> None:
    """Validation lists both files; the pictures' folder may be missing, for pictures are fetched."""
    problems = amazon_problems(_OF_2023, tmp_path)
    assert [problem.split(" is not there")[0] for problem in problems] == [
        str(tmp_path / "az" / "Musical_Instruments.jsonl"),
        str(tmp_path / "az" / "meta_Musical_Instruments.jsonl"),
    ]
    with pytest.raises(MissingFileError, match=r"Musical_Instruments\.csv\.gz would do as well"):
        read_amazon_interactions(_OF_2018, tmp_path)


def test_blocks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file read in many small blocks is the same table, lines and all; an empty one has no rows."""
    reviews = [
        {"user_id": f"U{row}", "parent_asin": "P", "rating": 1, "timestamp": 1588687728923 + row} for row in range(99)
    ]
    _write(tmp_path / "az" / "Musical_Instruments.jsonl.gz", _objects(reviews))
    _write(tmp_path / "az" / "Musical_Instruments.csv", [f"B,U{row},5,1393545600" for row in range(99)], packed=False)
    whole = [read_amazon_interactions(source, tmp_path) for source in (_OF_2018, _OF_2023)]
    for module in (rating_logs, json_lines):
        original = module.line_blocks
        monkeypatch.setattr(
            module, "line_blocks", lambda path, file, *, block_bytes, read=original: read(path, file, block_bytes=100)
        )
    for source, table in zip((_OF_2018, _OF_2023), whole, strict=True):
        assert table["source_row"].to_list() == list(range(1, 100))
        assert read_amazon_interactions(source, tmp_path).equals(table)
    (tmp_path / "az" / "Musical_Instruments.csv").write_bytes(b"")
    assert read_amazon_interactions(_OF_2018, tmp_path).is_empty()
