"""Reader `indexed`, on a small data set in the format of LC-Rec and MQL4GRec."""

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.indexed import IndexedReader
from macrec_pipeline.datasets import IndexedSource
from macrec_pipeline.errors import MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_SOURCE = IndexedSource(reader="indexed", folder="toys", prefix="Toys", text_index="t.json", image_index="i.json")


@pytest.fixture
def toys(tmp_path: Path) -> Path:
    """A data folder with three items and two users; one file is gzipped."""
    folder = tmp_path / "toys"
    folder.mkdir()
    (folder / "Toys.inter.json.gz").write_bytes(gzip.compress(json.dumps({"0": [2, 0, 2], "1": [1]}).encode()))
    (folder / "Toys.item2id").write_text("B7\t0\nA1\t1\nC 3\t2\n")
    (folder / "Toys.user2id").write_text("anna\t0\nbert\t1\n")
    for name in ("t.json", "i.json"):
        (folder / f"Toys.{name}").write_text("{}")
    return tmp_path


def _interactions(data_dir: Path) -> pl.DataFrame:
    (table,) = IndexedReader(_SOURCE, data_dir).interaction_parts()
    return RAW_INTERACTIONS.check(table)


def _items(data_dir: Path) -> pl.DataFrame:
    return RAW_ITEMS.check(IndexedReader(_SOURCE, data_dir).items())


def test_sequences_become_rows_in_their_order(toys: Path) -> None:
    """Indices become ids, times increase with the position, and repeated items stay."""
    table = _interactions(toys)
    assert table.select("user_id", "item_id", "rating", "source_row").rows() == [
        ("anna", "C 3", None, 1),
        ("anna", "B7", None, 2),
        ("anna", "C 3", None, 3),
        ("bert", "A1", None, 4),
    ]
    times = table["timestamp"].to_list()
    assert [time - times[0] for time in times] == [0, 60_000, 120_000, 0]
    assert table["source_file"].unique().to_list() == ["toys/Toys.inter.json.gz"]


def test_the_title_is_the_id_unless_there_are_details(toys: Path) -> None:
    """`X.item.json` is optional; a title from it is part of the text, an id is not."""
    table = _items(toys)
    assert table.select("item_id", "title", "text", "image_path", "source_row").rows() == [
        ("B7", "B7", None, None, 1),
        ("A1", "A1", None, None, 2),
        ("C 3", "C 3", None, None, 3),
    ]
    details = {"0": {"title": "Ball", "description": ["Soft.", "Bounces"]}, "2": {"title": "", "description": "A kite"}}
    (toys / "toys" / "Toys.item.json").write_text(json.dumps(details))
    assert _items(toys).select("title", "text").rows() == [
        ("Ball", "Ball. Soft. Bounces."),
        ("A1", None),
        ("C 3", "A kite."),
    ]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("Toys.inter.json.gz", '{"0": [7]}', "item 7 of user '0' has no id in toys/Toys.item2id"),
        ("Toys.inter.json.gz", '{"5": [1]}', "user '5' has no id in toys/Toys.user2id"),
        ("Toys.inter.json.gz", '{"0": ["1"]}', "expected a list of item indices"),
        ("Toys.inter.json.gz", "[1]", "holds a JSON list, expected an object"),
        ("Toys.inter.json.gz", "{", "cannot be read as JSON"),
        ("Toys.item2id", "A\t0\nB\n", "Toys.item2id, line 2: got 'B'"),
        ("Toys.item2id", "A\t0\nB\t0\n", "line 2: the id 'B' or the index 0 already occurred"),
    ],
)
def test_malformed_files_are_errors(toys: Path, file: str, content: str, message: str) -> None:
    """The message names the file and what is wrong in it."""
    (toys / "toys" / file).write_text(content)
    with pytest.raises(SchemaError, match=message.replace("(", r"\(")):
        _interactions(toys)


def test_validation_lists_everything_that_is_missing(toys: Path) -> None:
    """Validation lists every missing file, including a missing one of the two index files."""
    assert IndexedReader(_SOURCE, toys).problems() == []
    (toys / "toys" / "Toys.user2id").unlink()
    (toys / "toys" / "Toys.t.json").unlink()
    problems = IndexedReader(_SOURCE, toys).problems()
    assert len(problems) == 2
    assert "Toys.user2id" in problems[0]
    assert "Toys.t.json" in problems[1]
    assert all("MACREC_DATA" in problem for problem in problems)
    without_text = _SOURCE.model_copy(update={"text_index": None})
    assert "belong together" in IndexedReader(without_text, toys).problems()[-1]
    with pytest.raises(MissingFileError, match=r"Toys\.user2id"):
        _interactions(toys)
