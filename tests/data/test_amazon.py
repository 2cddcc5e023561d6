"""Readers `amazon2018` and `amazon2023`, on small files with the irregularities of the published ones."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.readers import json_lines, rating_logs
from macrec_pipeline.data.readers.amazon import AmazonReader, plain_text
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import Amazon2018Source, Amazon2023Source, DatasetSpec
from macrec_pipeline.errors import DataError, MissingFileError
from macrec_pipeline.schemas import RAW_INTERACTIONS

_SOURCE_2018 = Amazon2018Source(reader="amazon2018", folder="az", prefix="Musical_Instruments")
_SOURCE_2023 = Amazon2023Source(reader="amazon2023", folder="az", prefix="Musical_Instruments")
_CELLS = ["user_id", "item_id", "rating", "timestamp", "source_row", "problem"]

_META_2018: list[Any] = [
    {  # a typical item
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


def _interactions(source: Amazon2018Source | Amazon2023Source, data_dir: Path) -> pl.DataFrame:
    parts = AmazonReader(source, data_dir).interaction_parts()
    return RAW_INTERACTIONS.check(pl.concat([RAW_INTERACTIONS.empty(), *parts]))


def _write(path: Path, lines: list[str | bytes], *, packed: bool = True) -> None:
    path.parent.mkdir(exist_ok=True)
    content = b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n"
    path.write_bytes(gzip.compress(content) if packed else content)


def _json_lines(rows: list[Any]) -> list[str | bytes]:
    return [json.dumps(row) for row in rows]


def test_ratings_of_2018(tmp_path: Path) -> None:
    """The columns are item, user, rating and time in seconds, without header; irregular lines keep their number."""
    lines: list[str | bytes] = [
        "0739079891,A1,5.0,1393545600",
        "B0002E1G5C,A2,4,1393545601\r",  # a Windows line break
        "user,item,rating,timestamp",  # a header in the middle of the file
        "B1,A3,5.0,1393545602,extra",
        "B1,A3,5.0",
        "",
        "B1,,5.0,1393545602",
        "B1,A3,nan,1393545602",
        b"B1,caf\xe9,1.0,1393545602.0",  # not UTF-8
        'B1,"A3",1.0,soon',  # quotes are ordinary characters
    ]
    _write(tmp_path / "az" / "Musical_Instruments.csv.gz", lines)
    table = _interactions(_SOURCE_2018, tmp_path)
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
        (None, None, None, None, 9, "invalid_text: bytes that are not UTF-8"),
        ('"A3"', "B1", 1.0, None, 10, "wrong_type: timestamp is 'soon', expected a number"),
    ]


def test_metadata_of_2018(tmp_path: Path) -> None:
    """HTML is removed, empty lists may be empty texts, large images are preferred, and wrong types are reported."""
    _write(tmp_path / "az" / "meta_Musical_Instruments.json.gz", _json_lines(_META_2018))
    (tmp_path / "az" / "images").mkdir()
    (tmp_path / "az" / "images" / "B1.jpg").touch()
    table = AmazonReader(_SOURCE_2018, tmp_path).items()
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
    """Times are milliseconds and the item is parent_asin; every malformed review keeps its line and has a reason."""
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
        json.dumps({**good, "user_id": "\ud800"}),  # a lone surrogate
        b'{"user_id": "caf\xe9"}',
        "[" * 100_000,
        '{"user_id": ' + "9" * 5000 + "}",
        json.dumps({**good, "user_id": " a/b\u2028\U0001f3b8'\" "}),
    ]
    _write(tmp_path / "az" / "Musical_Instruments.jsonl.gz", lines)
    table = _interactions(_SOURCE_2023, tmp_path).select(_CELLS)
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
    """The main image is preferred, texts keep the configured order, and unexpected types are reported."""
    _write(tmp_path / "az" / "meta_Musical_Instruments.jsonl", _json_lines(_META_2023), packed=False)
    table = AmazonReader(_SOURCE_2023, tmp_path).items()
    assert table["source_file"][0] == "az/meta_Musical_Instruments.jsonl"
    assert table.select("item_id", "title", "text", "image_url").rows() == [
        ("P1", "Bass strings", "Bass strings. Nickel Long life. For four strings.", "https://example.com/main.jpg"),
        ("P2", None, None, None),
        ("P3", "High only", "High only.", "https://x/hi.jpg"),
        ("P4", "t", "t.", None),
    ]
    assert table["problem"][3] == 'wrong_type: images is {"large": ["https://x/y.jpg"]}, expected a list of objects'
    assert table["categories"].to_list() == [["Musical Instruments", "Strings & Picks"], None, None, None]
    labelled = _SOURCE_2023.model_copy(update={"texts": ("store", "categories")})
    assert AmazonReader(labelled, tmp_path).items()["text"][0] == (
        "Bass strings. Store: D'Addario. Categories: Musical Instruments, Strings & Picks."
    )


def test_bad_rows_reach_quarantine_with_file_and_line(tmp_path: Path) -> None:
    """Quarantine has the reason, the source file, the line and the ids that could be read."""
    ratings = [f"B{item},A{user},5.0,{1393545600 + item}" for user in range(5) for item in range(5)]
    _write(tmp_path / "az" / "Musical_Instruments.csv", [*ratings, "B1,A1,bad,1393545600"], packed=False)
    items = [json.dumps({"asin": f"B{item}", "title": f"Item {item}"}) for item in range(5)]
    _write(tmp_path / "az" / "meta_Musical_Instruments.json.gz", ["{'asin': 'B9'}", *items])
    spec = DatasetSpec(name="az", title="t", source=_SOURCE_2018)
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


@pytest.mark.parametrize("source", [_SOURCE_2018, _SOURCE_2023])
def test_a_truncated_download_is_one_clear_error(tmp_path: Path, source: Amazon2018Source | Amazon2023Source) -> None:
    """A partial log is never used; the error names the file and says what to do."""
    name = "Musical_Instruments.csv.gz" if source is _SOURCE_2018 else "Musical_Instruments.jsonl.gz"
    _write(tmp_path / "az" / name, [f"{row},{row * 7919 % 1009}" for row in range(5000)])
    path = tmp_path / "az" / name
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(DataError, match=rf"{name} cannot be read: .*Copy it again"):
        _interactions(source, tmp_path)


def test_missing_files_are_named_with_both_endings(tmp_path: Path) -> None:
    """Validation lists both files. A missing image folder is not a problem, because images can be fetched."""
    problems = AmazonReader(_SOURCE_2023, tmp_path).problems()
    assert [problem.split(" does not exist")[0] for problem in problems] == [
        str(tmp_path / "az" / "Musical_Instruments.jsonl"),
        str(tmp_path / "az" / "meta_Musical_Instruments.jsonl"),
    ]
    with pytest.raises(MissingFileError, match=r"Musical_Instruments\.csv\.gz is also accepted"):
        _interactions(_SOURCE_2018, tmp_path)


def test_the_block_size_does_not_change_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small blocks give the same rows and line numbers as one block; an empty file has no rows."""
    reviews = [
        {"user_id": f"U{row}", "parent_asin": "P", "rating": 1, "timestamp": 1588687728923 + row} for row in range(99)
    ]
    _write(tmp_path / "az" / "Musical_Instruments.jsonl.gz", _json_lines(reviews))
    _write(tmp_path / "az" / "Musical_Instruments.csv", [f"B,U{row},5,1393545600" for row in range(99)], packed=False)
    whole = [_interactions(source, tmp_path) for source in (_SOURCE_2018, _SOURCE_2023)]
    for module in (rating_logs, json_lines):
        original = module.line_blocks
        monkeypatch.setattr(
            module, "line_blocks", lambda path, file, read=original, **_: read(path, file, block_bytes=100)
        )
    for source, table in zip((_SOURCE_2018, _SOURCE_2023), whole, strict=True):
        assert table["source_row"].to_list() == list(range(1, 100))
        assert _interactions(source, tmp_path).equals(table)
    (tmp_path / "az" / "Musical_Instruments.csv").write_bytes(b"")
    assert _interactions(_SOURCE_2018, tmp_path).is_empty()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("<p>one</p><br/>two<BR>three", "one two three"),
        ("Fender &amp; Sons &quot;12&#34; &#x2019;", 'Fender & Sons "12" \u2019'),
        ("twice &amp;amp; escaped &amp;lt;b&amp;gt;bold", "twice & escaped bold"),
        ('<a href="x>y">link</a>', 'y">link'),  # a bracket inside an attribute ends the tag
        ("3 < 4 and 5 > 2, <3, a <- b", "3 < 4 and 5 > 2, <3, a <- b"),
        ("<script>if (a < b) { x('<p>') }</script>seen<style>p {}</style >", "seen"),
        ("before<!-- not <b>seen</b> -->after -->", "before after -->"),
        ("<script>never closed", ""),
        ("an unclosed <b tag", "an unclosed <b tag"),
        ("<scripted>not a script", "not a script"),
    ],
)
def test_plain_text(text: str, expected: str) -> None:
    """Tags, comments, scripts and styles go; words, comparisons and entities stay readable."""
    assert " ".join(plain_text(text).split()) == expected


@pytest.mark.parametrize("piece", ["<!--", "<script>", "<", "<a", "&amp;", "--><b>"])
def test_plain_text_takes_linear_time(piece: str) -> None:
    """A million characters of unclosed tags, comments or entities finish quickly."""
    start = time.perf_counter()
    plain_text(piece * (1_000_000 // len(piece)))
    assert time.perf_counter() - start < 10
