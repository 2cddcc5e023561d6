"""`macrec datasets new` writes a first data set file that validates, for common files."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from macrec_pipeline.cli import main
from macrec_pipeline.data.readers.guessing import guess_dataset, sample_table
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import DatasetSpec, load_dataset
from macrec_pipeline.errors import MissingFileError, SchemaError


def _guess(data: Path, *files: str) -> tuple[str, DatasetSpec]:
    text = guess_dataset("shop", [sample_table(Path(file), data) for file in files])
    return text, DatasetSpec.model_validate(yaml.safe_load(text))


def _status(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def test_csv_files_are_told_apart_by_their_columns(tmp_path: Path) -> None:
    """The log has users and times, the catalogue titles; separator, unit, texts and addresses are guessed."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "products.csv").write_text(
        "SKU;Name;Body (HTML);Category;Image URL\n18;Ball: #1;<p>Round</p>;toy;https://x/1.jpg\n"
    )
    (tmp_path / "s" / "orders.tsv").write_text("Customer ID\tsku\tOrdered At\tstars\n7\t18\t2024-01-01 10:00\t4\n")
    text, spec = _guess(tmp_path, "s/products.csv", "s/orders.tsv")
    assert "user_id: Customer ID  # by its name; first values: 7" in text
    assert validate_source(spec, tmp_path) == []
    log = read_raw_interactions(spec, tmp_path)
    assert log.select("user_id", "item_id", "timestamp", "rating").rows() == [("7", "18", 1_704_103_200_000, 4.0)]
    items = read_raw_items(spec, tmp_path)
    assert items.select("item_id", "text", "categories", "image_url").rows() == [
        ("18", "Ball: #1. Round.", ["toy"], "https://x/1.jpg")
    ]


@pytest.mark.parametrize(
    ("time", "unit"), [(1_704_103_200, "s"), (1_704_103_200_000, "ms"), (1_704_103_200_000_000, "us")]
)
def test_json_lines_and_the_unit_of_the_times(tmp_path: Path, time: int, unit: str) -> None:
    """Nested fields are found; kinds of events are listed; without a catalogue, the ids are the titles."""
    event = {"user": {"id": 7}, "item": {"sku": "A"}, "event_name": "view", "event_timestamp": str(time)}
    (tmp_path / "log.jsonl").write_text(json.dumps(event) + "\n")
    text, spec = _guess(tmp_path, "log.jsonl")
    assert f"timestamp_unit: {unit} " in text
    assert "events: [view]" in text
    assert "title: COLUMN" not in text
    assert validate_source(spec, tmp_path) == []
    assert read_raw_interactions(spec, tmp_path).select("user_id", "item_id", "timestamp").rows() == [
        ("7", "A", 1_704_103_200_000)
    ]
    assert read_raw_items(spec, tmp_path)["title"].to_list() == ["A"]


def test_a_column_without_a_guess_is_left_to_the_person(tmp_path: Path) -> None:
    """The comment lists the columns, and validation names the placeholder until it is replaced."""
    (tmp_path / "log.csv").write_text("user,what,time\n1,A,1704103200\n")
    text, spec = _guess(tmp_path, "log.csv")
    assert "item_id: COLUMN  # no guess; the columns are: user, what, time" in text
    assert "no column 'COLUMN'" in validate_source(spec, tmp_path)[0]


def test_parquet_times_need_no_unit(tmp_path: Path) -> None:
    """Their type says what they are."""
    frame = pl.DataFrame({"user": [1], "item": [2], "time": [1_704_103_200_000]})
    frame.with_columns(pl.col("time").cast(pl.Datetime("ms"))).write_parquet(tmp_path / "log.parquet")
    text, spec = _guess(tmp_path, "log.parquet")
    assert "timestamp_unit" not in text
    assert read_raw_interactions(spec, tmp_path)["timestamp"].to_list() == [1_704_103_200_000]


def test_what_cannot_be_guessed_is_said(tmp_path: Path) -> None:
    """A file without users and times, one that is missing, and one outside the data folder."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "y.csv").write_text("user,item,time\n1,2,3\n")
    with pytest.raises(SchemaError, match=r"no log\. Columns: x\.csv: a, b\."):
        _guess(tmp_path / "data", "x.csv")
    with pytest.raises(MissingFileError, match="does not exist"):
        sample_table(Path("nope.csv"), tmp_path / "data")
    with pytest.raises(MissingFileError, match="not below the data folder"):
        sample_table(tmp_path / "y.csv", tmp_path / "data")


def test_the_command_writes_the_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It shows the file and the next step, and never overwrites one."""
    monkeypatch.setenv("MACREC_DATASETS", str(tmp_path / "datasets"))
    (tmp_path / "log.csv").write_text("user,item,time\n1,A,1704103200\n")
    (tmp_path / "items.csv").write_text("item,title\nA,Ball\n")
    command = ["datasets", "new", "shop", "--from", "log.csv", "--from", "items.csv", "--data", str(tmp_path)]
    assert _status(*command) == 0
    assert "macrec datasets validate shop" in capsys.readouterr().out
    assert validate_source(load_dataset("shop"), tmp_path) == []
    assert _status(*command) == 2
    assert "exists already" in capsys.readouterr().err
    assert _status("datasets", "new", "My Shop", "--from", "log.csv", "--data", str(tmp_path)) == 2
