"""Reader `sequences`, on small files and on the published log of Amazon Beauty."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers import sequences
from macrec_pipeline.data.readers.registry import (
    open_reader,
    read_raw_interactions,
    read_raw_items,
    source_files,
    validate_source,
)
from macrec_pipeline.data.readers.text_files import line_blocks
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import SchemaError


def _spec(**source: Any) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {"name": "s", "title": "S", "source": {"reader": "sequences", "file": "s/log.txt", **source}}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder s of the data folder."""
    (tmp_path / "s").mkdir()
    return tmp_path / "s"


def test_each_item_of_a_line_is_an_interaction(folder: Path) -> None:
    """Times grow with the position, whatever blanks separate the cells; ids are kept as they are written."""
    (folder / "log.txt").write_bytes(b"u1 A 02  A\r\n\nu2\tB\n")
    table = read_raw_interactions(_spec(), folder.parent)
    assert table.select("user_id", "item_id", "source_file", "source_row", "problem").rows() == [
        ("u1", "A", "s/log.txt", 1, None),
        ("u1", "02", "s/log.txt", 2, None),
        ("u1", "A", "s/log.txt", 3, None),
        ("u2", "B", "s/log.txt", 4, None),
    ]
    times = table["timestamp"].to_list()
    assert [time - times[0] for time in times] == [0, 60_000, 120_000, 0]
    assert read_raw_items(_spec(), folder.parent).select("item_id", "title", "text", "source_row").rows() == [
        ("A", "A", None, 1),
        ("02", "02", None, 2),
        ("B", "B", None, 4),
    ]


def test_the_lines_of_a_user_continue_the_sequence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line per interaction gives the same log as one line per user, also if each line is a block of its own."""
    (folder / "log.txt").write_text("1 5 6 7\n2 6 5\n")
    at_once = read_raw_interactions(_spec(), folder.parent)
    (folder / "log.txt").write_text("1 5\n1 6\n1 7\n2 6\n2 5\n")
    assert read_raw_interactions(_spec(), folder.parent).equals(at_once)
    monkeypatch.setattr(sequences, "line_blocks", lambda path, file: line_blocks(path, file, block_bytes=1))
    assert read_raw_interactions(_spec(), folder.parent).equals(at_once)


def test_a_line_without_items_is_a_row_with_a_problem(folder: Path) -> None:
    """Nothing vanishes: the user without an item goes to quarantine, and the detail names the line."""
    (folder / "log.txt").write_text("1 5\n\n7\n2 5\n")
    problems = read_raw_interactions(_spec(), folder.parent).filter(pl.col("problem").is_not_null())
    assert problems.select("user_id", "item_id", "problem").rows() == [
        ("7", None, "wrong_number_of_cells: line 3 has a user, but no item")
    ]


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    """A file without sequences, and one that is not text, are named with what was expected."""
    (folder / "log.txt").write_text("user,item\n1,5\n")
    (problem,) = validate_source(_spec(), folder.parent)
    assert "s/log.txt: no line has a user and an item" in problem
    (folder / "log.txt").write_bytes(b"1 5\n2 \xff\n")
    with pytest.raises(SchemaError, match=r"s/log\.txt, line 2: the byte 0xff is not UTF-8"):
        read_raw_interactions(_spec(), folder.parent)
    (folder / "log.txt").unlink()
    (problem,) = validate_source(_spec(), folder.parent)
    assert "log.txt does not exist" in problem


def test_a_catalogue_gives_titles_and_texts(folder: Path) -> None:
    """`items` has the columns of the reader `tables`; its files and columns are validated too."""
    (folder / "log.txt.gz").write_bytes(gzip.compress(b"1 5 6\n"))
    (folder / "items.csv").write_text("id,name,about\n5,Ball,Round\n6,Kite,Flies\n")
    items = {"file": "s/items.csv", "item_id": "id", "title": "name", "texts": ["about"]}
    spec = _spec(items=items)
    assert validate_source(spec, folder.parent) == []
    assert source_files(spec, folder.parent) == [folder / "log.txt.gz", folder / "items.csv"]
    assert read_raw_items(spec, folder.parent)["text"].to_list() == ["Ball. Round.", "Kite. Flies."]
    (problem,) = validate_source(_spec(items=items | {"texts": ["abut"]}), folder.parent)
    assert "no column 'abut'" in problem
    fetched = _spec(items=items | {"image_url": "about", "image": "s/{item_id}.jpg"})
    assert open_reader(fetched, folder.parent).image_template() == "s/{item_id}.jpg"


def test_beauty_has_its_published_counts(shared_data: Path) -> None:
    """The log has 22,363 users, 12,101 items and 198,502 interactions, all of which the 5-core keeps, in order."""
    spec = DatasetSpec.model_validate(
        {
            "name": "beauty",
            "title": "Amazon Beauty",
            "k_core": 5,
            "source": {"reader": "sequences", "file": "amazon-beauty/Beauty.txt"},
        }
    )
    if validate_source(spec, shared_data):
        pytest.skip("the real data is missing: amazon-beauty/Beauty.txt.gz")
    log = read_raw_interactions(spec, shared_data)
    tables = clean(log, read_raw_items(spec, shared_data), spec.config().cleaning)
    assert (log["user_id"].n_unique(), tables.items.height, tables.interactions.height) == (22_363, 12_101, 198_502)
    assert tables.quarantine.is_empty()
    histories = build_histories(tables.interactions, tables.items)
    item_ids = tables.items["item_id"].to_list()
    lines = gzip.decompress((shared_data / "amazon-beauty" / "Beauty.txt.gz").read_bytes()).decode().splitlines()
    published = {line.split()[0]: line.split()[1:] for line in lines}
    assert {
        user: [item_ids[index] for index in items]
        for user, items in zip(histories["user_id"], histories["item_indices"].to_list(), strict=True)
    } == published
