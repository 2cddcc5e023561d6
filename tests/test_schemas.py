"""The table schemas: every column is described, and a table that breaks its schema is rejected with a reason."""

import polars as pl
import pytest

from macrec_pipeline import schemas
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import Column, TableSchema, table_schema

ALL_SCHEMAS = [value for value in vars(schemas).values() if isinstance(value, TableSchema)]
PRICES = table_schema(
    "prices",
    {
        "item_id": Column(pl.String(), "the item"),
        "price": Column(pl.Float64(), "its price", nullable=True),
        "day": Column(pl.Int64(), "the day of the price"),
    },
    description="One row per item.",
    unique=(("item_id",),),
    sorted_by=("day", "item_id"),
    forbidden={"negative price": pl.col("price") < 0},
)


def prices(*rows: tuple[str | None, float | None, int | None]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=PRICES.columns, orient="row")


@pytest.mark.parametrize("schema", ALL_SCHEMAS, ids=lambda schema: schema.name)
def test_every_table_and_column_has_a_description(schema: TableSchema) -> None:
    """A reader of Dagster's catalogue sees what each column holds."""
    assert schema.description
    assert list(schema.column_descriptions) == list(schema.columns)
    assert all(schema.column_descriptions.values())
    assert schema.nullable <= schema.columns.keys()


def test_a_table_that_keeps_its_schema_is_returned_unchanged() -> None:
    """Only columns declared as nullable may hold nulls."""
    table = prices(("b", None, 1), ("a", 2.0, 2))
    assert PRICES.check(table) is table
    assert PRICES.check(PRICES.empty()).is_empty()


def test_an_optional_column_may_be_missing() -> None:
    """If it is there, it is the last one, and it has its type."""
    columns = {"a": Column(pl.Int64(), "a"), "b": Column(pl.Int64(), "b")}
    schema = table_schema("t", columns, description="A row.", optional={"c": Column(pl.String(), "c", nullable=True)})
    full = pl.DataFrame({"a": [1], "b": [2], "c": [None]}, schema_overrides={"c": pl.String})
    assert schema.check(full).equals(full)
    assert schema.check(full.drop("c")).columns == ["a", "b"]
    for table in (full.select("c", "a", "b"), full.drop("b"), full.cast({"c": pl.Int64}), full.rename({"c": "d"})):
        with pytest.raises(SchemaError):
            schema.check(table)


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (prices(("a", 1.0, 1)).drop("price"), r"columns are \['item_id', 'day'\], expected"),
        (prices(("a", 1.0, 1)).cast({"day": pl.Int32}), "column 'day' is Int32, expected Int64"),
        (
            prices(("a", 1.0, 1), ("b", 1.0, None)),
            "column 'day' must not be null, but it is in 1 rows; the first is row 1",
        ),
        (prices(("a", 1.0, 1), ("a", 1.0, 2)), "item_id must be unique, but row 0 repeats"),
        (prices(("b", 1.0, 1), ("a", 1.0, 1)), "rows must be sorted by day, item_id"),
        (prices(("a", 1.0, 1), ("b", -1.0, 1)), "1 x negative price; the first: {'row': 1"),
    ],
)
def test_a_broken_rule_is_named(table: pl.DataFrame, problem: str) -> None:
    """The error names the table, the place, and the column or rule, with the first row that breaks it."""
    with pytest.raises(SchemaError, match=rf"^prices \(here\): .*{problem}"):
        PRICES.check(table, where="here")
