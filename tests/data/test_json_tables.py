"""Reader `tables` on JSON lines with nested fields."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import DatasetSpec

_LOG = {"file": "log.jsonl", "user_id": "user.id", "item_id": "items.0.sku", "timestamp": "at"}
_ITEMS = {
    "file": "items.ndjson.gz",
    "item_id": "sku",
    "title": "name",
    "texts": ["about", "tags"],
    "categories": "tags",
    "image_url": "photos",
}


def _spec(interactions: dict[str, Any] | None = None, items: dict[str, Any] | None = None) -> DatasetSpec:
    source = {"reader": "tables", "interactions": _LOG | (interactions or {}), "items": _ITEMS | (items or {})}
    return DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})


def _lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a log and a catalogue as JSON lines."""
    clicks = [{"user": {"id": 7}, "items": [{"sku": "A"}, {"sku": "B"}], "at": 10}, {"user": {"id": "x"}, "at": 20}]
    (tmp_path / "log.jsonl").write_text(_lines(*clicks))
    items = [
        {"sku": "A", "name": "Ball", "about": "Round", "tags": ["toy", "ball"], "photos": ["http://x/a.jpg"]},
        {"sku": 18.0, "name": "Kite", "about": ["Flies", "high"], "tags": "toy|air", "photos": None},
    ]
    (tmp_path / "items.ndjson.gz").write_bytes(gzip.compress(_lines(*items).encode()))
    return tmp_path


def test_nested_fields_are_columns(data: Path) -> None:
    """Paths reach into objects and lists; a missing field is empty, and the rows keep their lines."""
    assert validate_source(_spec(), data) == []
    log = read_raw_interactions(_spec(), data)
    assert log.select("user_id", "item_id", "timestamp", "source_row", "problem").rows() == [
        ("7", "A", 10_000, 1, None),
        ("x", None, 20_000, 2, None),
    ]
    items = read_raw_items(_spec(), data)
    assert items.select("item_id", "text", "categories", "image_url").rows() == [
        ("A", "Ball. Round. toy, ball.", ["toy", "ball"], "http://x/a.jpg"),
        ("18", "Kite. Flies, high. toy, air.", ["toy", "air"], None),
    ]


def test_unusable_lines_are_rows_with_a_problem(data: Path) -> None:
    """No line vanishes: broken JSON, another type and a list in place of an id have a reason and their line."""
    (data / "log.jsonl").write_text('{"user": {"id": [1]}, "at": 1}\n{"user"\n[1]\n\n{"user": {"id": 2}, "at": true}\n')
    log = read_raw_interactions(_spec(), data)
    problems = [(row, str(problem).partition(":")[0]) for row, problem in log.select("source_row", "problem").rows()]
    assert problems == [(1, "wrong_type"), (2, "invalid_json"), (3, "invalid_json"), (5, "None")]
    assert "user.id is [1], expected a single value" in log["problem"][0]
    assert log["timestamp"].to_list() == [1_000, None, None, None]


def test_a_field_with_dots_in_its_name_wins(data: Path) -> None:
    """Some exports flatten their records, and then the path is the name of a field."""
    (data / "log.jsonl").write_text(_lines({"user.id": "flat", "user": {"id": "deep"}, "items": [], "at": 1}))
    assert read_raw_interactions(_spec(), data)["user_id"].to_list() == ["flat"]


def test_validation_names_missing_fields(data: Path) -> None:
    """The message lists the fields that exist, nested ones with dots."""
    (problem,) = validate_source(_spec({"user_id": "user.name"}), data)
    assert "has the field 'user.name'. The fields are: user.id, items, at." in problem
    (problem,) = validate_source(_spec({"user_id": 0}), data)
    assert "column 0 is given by position, but JSON lines have no positions" in problem
    (data / "log.jsonl").write_text("u,i,t\n")
    (problem,) = validate_source(_spec(), data)
    assert "holds a JSON object" in problem


def test_ids_that_are_not_unicode_stay_apart(data: Path) -> None:
    """Half of a character is replaced in a title, but two different ids never become one."""
    halves = [{"user": {"id": half}, "items": [{"sku": "A"}], "at": 10} for half in ("\ud800", "\ud801")]
    (data / "log.jsonl").write_text(_lines(*halves))
    log = read_raw_interactions(_spec(), data)
    assert log["user_id"].to_list() == [None, None]
    assert log["problem"].to_list() == [
        f'wrong_type: user.id is "\\u{code}", expected valid Unicode' for code in ("d800", "d801")
    ]
    (data / "items.ndjson.gz").write_bytes(gzip.compress(_lines({"sku": "A", "name": "Ball \ud83d"}).encode()))
    assert read_raw_items(_spec(), data).select("title", "problem").rows() == [("Ball ?", None)]
