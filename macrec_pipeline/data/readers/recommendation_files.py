"""Read the stock list and the rules of single users, which `macrec recommend-all` applies.

The input is the section `recommendations` of a data set's file. The output is the IDs of the items in stock, and one
row per user with lists of items and categories. Both are read at each run, and neither has an influence on training.
"""

import logging
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from macrec_pipeline.data.readers.column_checks import ColumnReader
from macrec_pipeline.data.readers.mapped_files import table_parts, table_problems
from macrec_pipeline.datasets import RULE_NAMES, RecommendationFiles, RulesTable, StockTable

logger = logging.getLogger(__name__)

USER_RULES = {"user_id": pl.String(), **dict.fromkeys(RULE_NAMES, pl.List(pl.String))}
"""The columns of `read_user_rules`."""


def read_stock(mapping: StockTable, data_dir: Path) -> set[str]:
    """Return the IDs of the items in stock: those of the file, with a quantity above 0 if it has quantities.

    An item is in stock if any of its rows says so. A quantity that cannot be read counts as 0, with a warning.

    Raises:
        MissingFileError: the file does not exist.
        SchemaError: a column is missing, no quantity can be read, or the file cannot be split into rows.
    """
    columns, found = ColumnReader(mapping.file, mapping.null_words), set[str]()
    for part in table_parts(mapping, _stock_columns(mapping), data_dir):
        ids = columns.ids(part, mapping.item_id)
        if mapping.quantity is not None:
            quantities = columns.numbers(part, mapping.quantity, decimal=mapping.decimal)
            ids = ids.filter((quantities > 0).fill_null(False))
        found |= set(ids.drop_nulls())
    columns.check()
    return found - {""}


def read_user_rules(mapping: RulesTable, data_dir: Path) -> pl.DataFrame:
    """Return the rules of each user as `USER_RULES`, sorted by user; a list is null where a user has no such rule.

    The lists of several rows of a user are joined. Rows without a user are left out, with a warning.

    Raises:
        MissingFileError: the file does not exist.
        SchemaError: a column is missing, or the file cannot be split into rows.
    """
    columns = ColumnReader(mapping.file, mapping.null_words)
    parts = pl.concat([pl.DataFrame(schema=USER_RULES), *_rule_parts(mapping, data_dir, columns)])
    columns.check()
    has_user = (pl.col("user_id").is_not_null() & (pl.col("user_id") != "")).fill_null(False)
    num_without = parts.select((~has_user).sum()).item()
    if num_without:
        logger.warning(
            "%s: %s of %s rows have no user. Their rules are not applied.",
            mapping.file,
            f"{num_without:,}",
            f"{parts.height:,}",
        )
    joined = (
        parts.lazy()
        .filter(has_user)
        .group_by("user_id")
        .agg(pl.col(name).drop_nulls().explode(empty_as_null=False).unique().sort() for name in RULE_NAMES)
        .with_columns(pl.when(pl.col(name).list.len() > 0).then(pl.col(name)) for name in RULE_NAMES)
    )
    return joined.sort("user_id").collect()


def recommendation_problems(files: RecommendationFiles, data_dir: Path) -> list[str]:
    """Return what is missing of the stock list and the rules: files and columns."""
    problems = []
    if files.stock is not None:
        problems += table_problems(files.stock, _stock_columns(files.stock), data_dir)
    if files.rules is not None:
        problems += table_problems(files.rules, _rules_columns(files.rules), data_dir)
    return problems


def _rule_parts(mapping: RulesTable, data_dir: Path, columns: ColumnReader) -> Iterator[pl.DataFrame]:
    for part in table_parts(mapping, _rules_columns(mapping), data_dir):
        nothing = pl.repeat(None, len(part.line_numbers), dtype=pl.List(pl.String), eager=True)
        lists = {
            name: nothing
            if getattr(mapping, name) is None
            else _list_cells(columns.cells(part, getattr(mapping, name)), separator=mapping.list_separator)
            for name in RULE_NAMES
        }
        yield pl.DataFrame({"user_id": columns.ids(part, mapping.user_id), **lists}, schema=USER_RULES)


def _list_cells(column: pl.Series, *, separator: str) -> pl.Series:
    """Return lists of texts without surrounding spaces and empty texts; null where there are none."""
    if not isinstance(column.dtype, pl.List):
        column = column.cast(pl.String, strict=False).str.split(separator)
    text = pl.element().str.strip_chars()
    lists = column.cast(pl.List(pl.String)).list.agg(text.filter(text != ""))
    return lists.set(lists.list.len() == 0, None)


def _stock_columns(mapping: StockTable) -> list[str | int]:
    return [mapping.item_id, *([] if mapping.quantity is None else [mapping.quantity])]


def _rules_columns(mapping: RulesTable) -> list[str | int]:
    return [mapping.user_id, *mapping.rule_columns.values()]
