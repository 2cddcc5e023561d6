"""The stock list and the rules of single users, as files have them."""

import json
import logging
from pathlib import Path

import polars as pl
import pytest

from macrec_pipeline.data.readers.recommendation_files import read_stock, read_user_rules, recommendation_problems
from macrec_pipeline.datasets import RULE_NAMES, RecommendationFiles, RulesTable, StockTable
from macrec_pipeline.errors import SchemaError


def stock(**mapping: object) -> StockTable:
    return StockTable.model_validate({"file": "stock.csv", "item_id": "sku", **mapping})


def rules(**mapping: object) -> RulesTable:
    return RulesTable.model_validate({"file": "rules.csv", "user_id": "user", **mapping})


def test_an_item_is_in_stock_if_one_of_its_rows_has_a_quantity_above_zero(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Without a column of quantities, every item of the file is in stock. Unreadable quantities are counted."""
    rows = ["sku;on hand;place", "a;0,5;x", "b;0;x", "b;3;y", "c;-1;x", "d;;x", "e;many;x", ";7;x"]
    (tmp_path / "stock.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        found = read_stock(stock(separator=";", quantity="on hand", decimal=","), tmp_path)
    assert found == {"a", "b"}
    assert "1 of 6 filled cells cannot be read as a number: 'many' in row 7" in caplog.text
    assert read_stock(stock(separator=";"), tmp_path) == {"a", "b", "c", "d", "e"}


def test_a_column_without_any_readable_quantity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "stock.csv").write_text("sku,on hand\na,yes\nb,no\n", encoding="utf-8")
    with pytest.raises(SchemaError, match="2 of 2 filled cells cannot be read as a number: 'yes' in row 2"):
        read_stock(stock(quantity="on hand"), tmp_path)


def test_the_lists_of_a_user_are_joined(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Lists may be in one cell or in several rows. An empty cell is no rule; a row without a user has no effect."""
    rows = ["user,never,only", "u2,i1|i2,", "u1,,i7 | i8|", "u2,i3,", "u2,i1,", ",i9,"]
    (tmp_path / "rules.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        table = read_user_rules(rules(excluded="never", allowed="only"), tmp_path)
    assert table.columns == ["user_id", *RULE_NAMES]
    assert table.select("user_id", "allowed", "excluded").rows() == [
        ("u1", ["i7", "i8"], None),
        ("u2", None, ["i1", "i2", "i3"]),
    ]
    assert table["allowed_categories"].null_count() == 2
    assert "rules.csv: 1 of 5 rows have no user. Their rules are not applied." in caplog.text


@pytest.mark.parametrize("file", ["rules.parquet", "rules.jsonl"])
def test_lists_of_parquet_and_json_are_lists(tmp_path: Path, file: str) -> None:
    content = {"user": ["u1", "u2"], "groups": [["wine", "beer"], None]}
    if file.endswith(".parquet"):
        pl.DataFrame(content).write_parquet(tmp_path / file)
    else:
        lines = [json.dumps({"user": user, "groups": group}) for user, group in zip(*content.values(), strict=True)]
        (tmp_path / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    table = read_user_rules(rules(file=file, excluded_categories="groups"), tmp_path)
    assert table["excluded_categories"].to_list() == [["beer", "wine"], None]


def test_what_is_missing_is_said_by_validate(tmp_path: Path) -> None:
    (tmp_path / "rules.csv").write_text("user,never\nu1,i1\n", encoding="utf-8")
    files = RecommendationFiles(stock=stock(), rules=rules(excluded="blocked"))
    missing_file, missing_column = recommendation_problems(files, tmp_path)
    assert "stock.csv" in missing_file
    assert "recommendations.stock.file" in missing_file
    assert "rules.csv" in missing_column
    assert "blocked" in missing_column
    assert recommendation_problems(RecommendationFiles(), tmp_path) == []


def test_a_file_of_rules_needs_a_rule() -> None:
    with pytest.raises(ValueError, match="at least one of allowed, excluded, allowed_categories, excluded_categories"):
        rules()
