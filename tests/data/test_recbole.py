"""Reader `recbole`, on small atomic files."""

import gzip
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.data.readers.registry import (
    raw_interaction_parts,
    read_raw_interactions,
    read_raw_items,
    source_files,
    validate_source,
)
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import SchemaError


def _spec(**source: Any) -> DatasetSpec:
    return DatasetSpec.model_validate(
        {"name": "s", "title": "S", "source": {"reader": "recbole", "folder": "d", "prefix": "d", **source}}
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with two atomic files, one gzipped; a title begins with a quote that never closes."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "d.inter").write_text(
        "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        "7\tA\t3.5\t881250949.0\n7\t18\t\t881250950\n8\tA\tx\tnever\n8\tA\t1\t2\t3\n"
    )
    items = (
        "item_id:token\ttitle:token_seq\tgenre:token_seq\tprice:float\n"
        'A\t"Babe &amp; co\tDrama War Drama\t1.5\n18\tToy\t\t\n'
    )
    (folder / "d.item.gz").write_bytes(gzip.compress(items.encode()))
    return tmp_path


def test_atomic_files_become_the_raw_tables(data: Path) -> None:
    """Quotes are ordinary text, sequences are categories, and a bad line keeps its number."""
    spec = _spec(texts=["genre"], categories="genre")
    assert validate_source(spec, data) == []
    assert source_files(spec, data) == [data / "d" / "d.inter", data / "d" / "d.item.gz"]
    columns = ("user_id", "item_id", "rating", "timestamp", "source_row", "problem")
    assert read_raw_interactions(spec, data).select(columns).rows() == [
        ("7", "A", 3.5, 881_250_949_000, 2, None),
        ("7", "18", None, 881_250_950_000, 3, None),
        ("8", "A", None, None, 4, None),
        (None, None, None, None, 5, "wrong_number_of_cells: more than the 4 fields of the header"),
    ]
    assert read_raw_items(spec, data).select("item_id", "title", "text", "categories", "source_row").rows() == [
        ("A", '"Babe & co', '"Babe & co. Drama War Drama.', ["Drama", "War"], 2),
        ("18", "Toy", "Toy.", None, 3),
    ]


def test_without_items_the_ids_are_the_titles(data: Path) -> None:
    """`X.item` is optional; ratings too."""
    (data / "d" / "d.item.gz").unlink()
    (data / "d" / "d.inter").write_text("user:token\titem_id:token\ttimestamp:float\n1\tB\t5\n1\tA\t6\n2\tB\t7\n")
    spec = _spec(user_id="user")
    assert validate_source(spec, data) == []
    assert read_raw_interactions(spec, data)["rating"].null_count() == 3
    assert read_raw_items(spec, data).select("item_id", "title", "text", "source_row").rows() == [
        ("B", "B", None, 2),
        ("A", "A", None, 3),
    ]


def test_missing_fields_and_other_files_are_named(data: Path) -> None:
    """Each message has the file, what it holds, and what was expected."""
    assert validate_source(_spec(title="name", timestamp="time"), data) == [
        "d/d.inter has no field 'time'. Its fields are: user_id, item_id, rating, timestamp. Set the name under "
        "`source` in the data set's YAML file.",
        "d/d.item.gz has no field 'name'. Its fields are: item_id, title, genre, price. Set the name under `source` in "
        "the data set's YAML file.",
    ]
    for header in ("user_id\titem_id\n", "user_id:token\titem_id:int\n", ""):
        (data / "d" / "d.inter").write_text(header)
        with pytest.raises(SchemaError, match="expected the header of an atomic file of RecBole"):
            read_raw_interactions(_spec(), data)
    (data / "d" / "d.inter").unlink()
    assert "d.inter does not exist" in validate_source(_spec(), data)[0]


def test_fields_that_cannot_be_read_are_counted_or_stop_the_run(data: Path) -> None:
    """A rating that is a word was null in silence, and so were all of them if their sign was a comma."""
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    (data / "d" / "d.inter").write_text(header + "7\tA\tgood\t5\n7\tB\t4.0\tsoon\n7\tC\t\t5\n")
    lost: list[dict[str, Any]] = []
    table = pl.concat(raw_interaction_parts(_spec(), data, lost=lost))
    assert table["rating"].to_list() == [None, 4.0, None]
    assert [(each["column"], each["num_cells"], each["num_filled"]) for each in lost] == [
        ("timestamp", 1, 3),
        ("rating", 1, 2),
    ]
    (data / "d" / "d.inter").write_text(header + "7\tA\t4,5\t5\n7\tB\t3,0\t6\n")
    with pytest.raises(SchemaError, match="column 'rating': 2 of 2 filled cells cannot be read as a number: '4,5'"):
        list(raw_interaction_parts(_spec(), data))


def test_bytes_that_are_not_text_are_no_ids(data: Path) -> None:
    """The ids `B\u00e9` and `B\u00e8` of a latin-1 file became one id with a replacement character."""
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    lines = header + "B\u00e9\tA\t1700000000\nB\u00e8\tA\t1700000000\nc\tA\t1700000000\n"
    (data / "d" / "d.inter").write_bytes(lines.encode("latin-1"))
    rows = read_raw_interactions(_spec(), data)
    assert rows["user_id"].to_list() == [None, None, "c"]
    assert rows["problem"].to_list() == ["invalid_text: bytes that are not UTF-8"] * 2 + [None]


def test_ids_that_pandas_wrote_as_floats_match(data: Path) -> None:
    """Both files are read alike."""
    (data / "d" / "d.inter").write_text("user_id:token\titem_id:token\ttimestamp:float\n7.0\t18.0\t1700000000.0\n")
    assert read_raw_interactions(_spec(), data).select("user_id", "item_id").rows() == [("7", "18")]


@pytest.mark.parametrize("suffix", ["inter", "item"])
def test_utf_16_is_named(data: Path, suffix: str) -> None:
    """The message says what the file is, and shows no null bytes."""
    (data / "d" / "d.item.gz").unlink()
    (data / "d" / "d.item").write_text("item_id:token\ttitle:token_seq\n")
    (data / "d" / f"d.{suffix}").write_bytes("user_id:token\titem_id:token\n".encode("utf-16"))
    (problem,) = validate_source(_spec(), data)
    assert problem.startswith(f"d/d.{suffix} is UTF-16 text, expected UTF-8.")
