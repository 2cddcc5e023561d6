"""Parquet columns: every type that can be what the data set says is read, and the others are named before a run."""

import datetime as dt
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from macrec_pipeline.data.readers.tables import TablesReader
from macrec_pipeline.datasets import InteractionsTable, ItemsTable, TablesSource
from macrec_pipeline.errors import SchemaError


def _reader(folder: Path, columns: dict[str, pa.Array], *, file: str = "log.parquet", **refs: str) -> TablesReader:
    pq.write_table(pa.table(columns), folder / file)
    (folder / "items.csv").write_text("id,name\n1,One\n")
    log = InteractionsTable.model_validate(
        {"file": file, "user_id": "u", "item_id": "i", "timestamp": "t", "timestamp_unit": "s", **refs}
    )
    items = ItemsTable(file="items.csv", item_id="id", title="name")
    return TablesReader(TablesSource(reader="tables", interactions=log, items=items), folder)


_TIMES = pa.array([1_600_000_000, 1_600_000_001])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array(["a", "b"]).dictionary_encode(), ["a", "b"]),
        (pa.array(["a", "b"], pa.large_string()), ["a", "b"]),
        (pa.array([b"a", b"b"]), ["a", "b"]),
        (pa.array([7, 8], pa.uint64()), ["7", "8"]),
        (pa.array([7.0, None]), ["7", None]),
        (pa.array(["7.00", "8.00"]).cast(pa.decimal128(10, 2)), ["7", "8"]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_ids_of_every_plain_type_are_texts(tmp_path: Path, ids: pa.Array, expected: list[str | None]) -> None:
    """Dictionaries, bytes, decimals and floats are ids; `validate` finds no problem."""
    reader = _reader(tmp_path, {"u": ids, "i": pa.array(["1", "1"]), "t": _TIMES})
    assert reader.problems() == []
    assert pl.concat(reader.interaction_parts())["user_id"].to_list() == expected


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (pa.array([["a"], ["b"]]), "List.*, which cannot be an ID. Write one row per entry"),
        (pa.array([["a"], ["b"]], pa.list_(pa.string(), 1)), "Array.*, which cannot be an ID"),
        (pa.array([{"id": "a"}, {"id": "b"}]), r"cannot be an ID. Name one of its fields \(id\) by a dotted path"),
        (pa.array([True, False]), "Boolean, which cannot be an ID"),
    ],
)
def test_types_that_cannot_be_ids_are_named_before_a_run(tmp_path: Path, ids: pa.Array, message: str) -> None:
    """`validate` and the run give the same sentence, never a traceback."""
    reader = _reader(tmp_path, {"u": ids, "i": pa.array(["1", "1"]), "t": _TIMES})
    (problem,) = reader.problems()
    assert problem.startswith("log.parquet, column 'u': its type is ")
    with pytest.raises(SchemaError, match=message):
        list(reader.interaction_parts())


def test_fields_of_structs_have_dotted_paths(tmp_path: Path) -> None:
    """Exports of event logs nest the user and the item."""
    events = pa.array([{"user": {"id": "a"}, "at": dt.datetime(2020, 1, 1)}, {"user": None, "at": None}])
    reader = _reader(
        tmp_path, {"event": events, "i": pa.array(["1", "1"])}, user_id="event.user.id", timestamp="event.at"
    )
    assert reader.problems() == []
    table = pl.concat(reader.interaction_parts())
    assert table["user_id"].to_list() == ["a", None]
    assert table["timestamp"].to_list() == [1_577_836_800_000, None]


def test_a_file_name_is_never_a_pattern(tmp_path: Path) -> None:
    """`orders[1].parquet` is that file, also when `orders1.parquet` lies beside it."""
    other = {"u": pa.array(["wrong"]), "i": pa.array(["1"]), "t": pa.array([1])}
    pq.write_table(pa.table(other), tmp_path / "orders1.parquet")
    columns = {"u": pa.array(["right"]), "i": pa.array(["1"]), "t": pa.array([1_600_000_000])}
    reader = _reader(tmp_path, columns, file="orders[1].parquet")
    assert reader.problems() == []
    assert pl.concat(reader.interaction_parts())["user_id"].to_list() == ["right"]


def test_texts_and_categories_may_be_lists_of_any_kind(tmp_path: Path) -> None:
    """Lists and fixed-size lists of texts are texts and categories."""
    tags = pa.array([["x", "y"]], pa.list_(pa.string(), 2))
    reader = _reader(tmp_path, {"u": pa.array(["a"]), "i": pa.array(["1"]), "t": pa.array([1])})
    pq.write_table(pa.table({"id": ["1"], "name": ["One"], "tags": tags}), tmp_path / "items.parquet")
    items = ItemsTable(file="items.parquet", item_id="id", title="name", texts=("tags",), categories="tags")
    source = reader.source.model_copy(update={"items": items})
    table = TablesReader(source, tmp_path).items()
    assert table["text"].to_list() == ["One. x, y."]
    assert table["categories"].to_list() == [["x", "y"]]
