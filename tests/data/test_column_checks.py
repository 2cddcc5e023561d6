"""Columns of a data set: no cell is replaced in silence, and a column that cannot be read stops the run."""

import logging
from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.column_parsing import id_cells, number_cells, time_cells
from macrec_pipeline.data.readers.tables import TablesReader
from macrec_pipeline.datasets import InteractionsTable, ItemsTable, TablesSource
from macrec_pipeline.errors import SchemaError

_ITEMS = ItemsTable(file="items.csv", item_id="id", title="name", texts=("about",))


def _log(path: Path, content: str, **mapping: object) -> pl.DataFrame:
    (path / "log.csv").write_text(content)
    columns = {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t", "rating": "r", **mapping}
    table = InteractionsTable.model_validate(columns)
    reader = TablesReader(TablesSource(reader="tables", interactions=table, items=_ITEMS), path)
    return pl.concat(reader.interaction_parts())


def test_a_column_that_is_unreadable_everywhere_stops_the_run(tmp_path: Path) -> None:
    """Ratings with a decimal comma are not null: the error shows cells and the setting, and with it they are read."""
    content = "u;i;t;r\nx;y;1;4,5\nx;z;2;3,5\n"
    with pytest.raises(SchemaError, match=r"log.csv, column 'r': 2 of 2 filled .*'4,5' in row 2.*`decimal: \",\"`"):
        _log(tmp_path, content, separator=";")
    assert _log(tmp_path, content, separator=";", decimal=",")["rating"].to_list() == [4.5, 3.5]


def test_partly_unreadable_columns_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The run goes on, and the log says how many cells of which column were lost, with examples."""
    with caplog.at_level(logging.WARNING):
        table = _log(tmp_path, "u,i,t,r\nx,y,1,4\nx,z,2,good\nx,w,3,\n")
    assert table["rating"].to_list() == [4.0, None, None]
    assert "column 'r': 1 of 2 filled cells cannot be read as a number: 'good' in row 3" in caplog.text


def test_decimal_commas_accept_thousands_and_nothing_else() -> None:
    """A dot is a separator of thousands only where it stands between groups of three digits."""
    cells = pl.Series(["4,5", "1.234,5", "7", "4.5", "1,2,3", "-0,5", None])
    assert number_cells(cells, decimal=",").to_list() == [4.5, 1234.5, 7.0, None, None, -0.5, None]


@pytest.mark.parametrize(
    "text",
    [
        "2019-10-01 00:00:00 UTC",
        "2019-10-01 00:00:00+00",
        "2019-10-01 02:00:00+02",
        "2019-10-01T00:00:00Z",
        "2019-10-01",
        "20191001",
        "20191001T000000Z",
        "2019-09-30 20:00:00.000-0400",
    ],
)
def test_common_timestamps_are_iso(text: str) -> None:
    """BigQuery, PostgreSQL and others write the same moment in different ways."""
    assert time_cells(pl.Series([text]), "iso").to_list() == [1_569_888_000_000]


@pytest.mark.parametrize(
    ("text", "time_format"),
    [
        ("2019 October 1", "%Y %B %d"),
        ("01.10.2019 00:00", "%d.%m.%Y %H:%M"),
        ("2019/10/01 02:00 +0200", "%Y/%m/%d %H:%M %z"),
    ],
)
def test_other_timestamps_have_a_format(tmp_path: Path, text: str, time_format: str) -> None:
    """`timestamp_format` reads texts; without it the error shows the cells and what is accepted."""
    content = f"u,i,t,r\nx,y,{text},1\n"
    assert _log(tmp_path, content, timestamp_format=time_format)["timestamp"].to_list() == [1_569_888_000_000]
    with pytest.raises(
        SchemaError, match=r"cannot be read as a time: '.*2019.*' in row 2. Accepted .*timestamp_format"
    ):
        _log(tmp_path, content, timestamp_unit="iso")


def test_numbers_in_a_parquet_column_can_be_dates() -> None:
    """A format applies to whole numbers too."""
    assert time_cells(pl.Series([20191001]), "s", time_format="%Y%m%d").to_list() == [1_569_888_000_000]


def test_ids_that_pandas_wrote_as_floats_match(tmp_path: Path) -> None:
    """If all ids of a column end in `.0`, they are whole numbers; an id such as `12.0` beside `12.1` stays."""
    table = _log(tmp_path, "u,i,t,r\n1.0,12.0,1,1\n2.0,12.1,2,1\n")
    assert table["user_id"].to_list() == ["1", "2"]
    assert table["item_id"].to_list() == ["12.0", "12.1"]


def test_ids_of_every_number_type_are_whole_numbers() -> None:
    """Decimals lose a fraction of zeros, and ids beyond int64 do not vanish."""
    decimals = pl.Series(["7.00", "8.50"]).cast(pl.Decimal(10, 2))
    assert id_cells(decimals).to_list() == ["7", "8.50"]
    assert id_cells(pl.Series([2.0**64, 18.0, None, float("nan")])).to_list() == [
        "18446744073709551616",
        "18",
        None,
        None,
    ]
    assert id_cells(pl.Series([2**64 - 1], dtype=pl.UInt64)).to_list() == ["18446744073709551615"]


def test_words_for_a_missing_value_are_missing_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Otherwise all anonymous clicks are one user. The list is a setting."""
    content = "u,i,t,r\nNULL,y,1,nan\n\\N,z,2,4\nNone,w,3,5\nann,w,3,5\n"
    with caplog.at_level(logging.WARNING):
        table = _log(tmp_path, content)
    assert table["user_id"].to_list() == [None, None, None, "ann"]
    assert table["rating"].to_list() == [None, 4.0, 5.0, 5.0]
    assert "column 'u': 3 cells are `null_words`: missing." in caplog.text
    assert _log(tmp_path, content, null_words=["NULL"])["user_id"].to_list() == [None, "\\N", "None", "ann"]
