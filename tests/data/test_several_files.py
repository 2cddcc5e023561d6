"""Reader `tables` on several files: a pattern, a folder, hive partitions, and names that look like patterns."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, source_files, validate_source
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import MissingFileError, SchemaError

_LOG = {"user_id": "u", "item_id": "i", "timestamp": "t"}


def _spec(**interactions: Any) -> DatasetSpec:
    source = {
        "reader": "tables",
        "interactions": _LOG | interactions,
        "items": {"file": "items.csv", "item_id": "id", "title": "name"},
    }
    return DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})


def _rows(data: Path, **interactions: Any) -> list[tuple[Any, ...]]:
    spec = _spec(**interactions)
    assert validate_source(spec, data) == []
    return read_raw_interactions(spec, data).select("user_id", "timestamp", "source_file", "source_row").rows()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a catalogue and a folder with one CSV file per day, written in another order."""
    (tmp_path / "items.csv").write_text("id,name\nA,Ball\n")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "2024-01-02.csv").write_text("u,i,t\nu3,A,30\n")
    (tmp_path / "log" / "2024-01-01.csv").write_text("t,i,u\n10,A,u1\n20,A,u2\n")
    return tmp_path


_DAYS = [
    ("u1", 10_000, "log/2024-01-01.csv", 2),
    ("u2", 20_000, "log/2024-01-01.csv", 3),
    ("u3", 30_000, "log/2024-01-02.csv", 2),
]


@pytest.mark.parametrize("file", ["log", "log/*.csv", "log/2024-*", "**/2024-01-*.csv"])
def test_files_are_read_in_the_order_of_their_names(data: Path, file: str) -> None:
    """Each row keeps its file and line, and each file has its own order of columns."""
    assert _rows(data, file=file) == _DAYS
    names = [path.name for path in source_files(_spec(file=file), data)]
    assert names == ["2024-01-01.csv", "2024-01-02.csv", "items.csv"]


def test_a_name_with_brackets_is_a_name(data: Path) -> None:
    """Neither `orders1.csv` nor `orders1.parquet` is read in place of a file that is named."""
    for name in ("orders[1]", "orders?", "orders1"):
        (data / f"{name}.csv").write_text(f'u,i,t\n"{name}",A,10\n')
        pl.DataFrame({"u": [name], "i": ["A"], "t": [10]}).write_parquet(data / f"{name}.parquet")
    for ending, row in (("parquet", 1),):
        for name in ("orders[1]", "orders?"):
            assert _rows(data, file=f"{name}.{ending}") == [(name, 10_000, f"{name}.{ending}", row)]
    (data / "orders[1].csv").unlink()
    (problem,) = validate_source(_spec(file="orders[1].csv"), data)
    assert "orders[1].csv does not exist" in problem
    assert _rows(data, file="orders[*.parquet") == [("orders[1]", 10_000, "orders[1].parquet", 1)]


def test_hive_partitions_are_columns(data: Path) -> None:
    """The folder `dt=2024-01-01` is the time of its rows; a column of the file itself takes precedence."""
    for day, user in (("2024-01-02", "u2"), ("2024-01-01", "u1")):
        folder = data / "events" / f"dt={day}" / "shop=a%20b"
        folder.mkdir(parents=True)
        pl.DataFrame({"u": [user], "i": ["A"], "shop": ["own"]}).write_parquet(folder / "part-0.parquet")
        (folder / "_SUCCESS").write_text("")
        (folder / ".part-0.parquet.crc").write_bytes(b"\0")
    first = "events/dt=2024-01-01/shop=a%20b/part-0.parquet"
    rows = _rows(data, file="events", timestamp="dt", timestamp_unit="iso")
    assert rows[0] == ("u1", 1_704_067_200_000, first, 1)
    assert [row[0] for row in rows] == ["u1", "u2"]
    assert _rows(data, file="events", user_id="shop", timestamp="dt", timestamp_unit="iso")[0][0] == "own"


def test_a_folder_of_several_formats_needs_the_format(data: Path) -> None:
    """Nothing is left out in silence: the message names the formats that were found."""
    pl.DataFrame({"u": ["u9"], "i": ["A"], "t": [90]}).write_parquet(data / "log" / "x.parquet")
    (problem,) = validate_source(_spec(file="log"), data)
    assert "holds files of several formats: csv, parquet" in problem
    assert [row[0] for row in _rows(data, file="log", format="parquet")] == ["u9"]
    assert _rows(data, file="log", format="csv") == _DAYS
    with pytest.raises(SchemaError, match="several formats"):
        read_raw_interactions(_spec(file="log"), data)


def test_missing_files_and_columns_are_named(data: Path) -> None:
    """A pattern without files, an empty folder, and the one file that lacks a column."""
    with pytest.raises(MissingFileError, match=r"No file in .* matches 'log/\*\.tsv' \(source\.interactions\.file\)"):
        read_raw_interactions(_spec(file="log/*.tsv"), data)
    (data / "empty").mkdir()
    (problem,) = validate_source(_spec(file="empty"), data)
    assert "holds no CSV, TSV, parquet or JSON lines file" in problem
    (data / "log" / "2024-01-03.csv").write_text("user,i,t\nu4,A,40\n")
    (problem,) = validate_source(_spec(file="log"), data)
    assert problem == "log/2024-01-03.csv has no column 'u'. Its columns are: user, i, t."


def test_a_catalogue_may_have_several_files(data: Path) -> None:
    """Items are read from all files of a pattern."""
    (data / "items2.csv").write_text("id,name\nB,Kite\n")
    spec = _spec(file="log")
    items = spec.source.items.model_copy(update={"file": "items*.csv"})  # type: ignore[union-attr]
    both = spec.model_copy(update={"source": spec.source.model_copy(update={"items": items})})
    assert read_raw_items(both, data).select("item_id", "source_file").rows() == [
        ("A", "items.csv"),
        ("B", "items2.csv"),
    ]
