"""The check of an embedding table: what passes, and the sentence for each problem."""

import numpy as np
import polars as pl
import pytest

from macrec_pipeline import schemas
from macrec_pipeline.embeddings import embedding_problems

ITEM_IDS = ["a", "b", "c"]
GOOD = [[1.0, 2.0], [3.0, 4.0], [2.0, 3.0]]


def table_of(vectors: list[list[float]], imputed: tuple[bool, ...] = (False, False, True)) -> pl.DataFrame:
    table = pl.DataFrame(
        {
            "item_index": range(len(vectors)),
            "item_id": ITEM_IDS[: len(vectors)],
            "embedding": pl.Series(np.array(vectors, np.float32), dtype=pl.Array(pl.Float32, len(vectors[0]))),
            "imputed": list(imputed[: len(vectors)]),
            "content": pl.Series([None] * len(vectors), dtype=pl.String),
            "problem": pl.Series([None] * len(vectors), dtype=pl.String),
        }
    )
    return schemas.EMBEDDINGS.check(table)


@pytest.fixture
def items() -> pl.DataFrame:
    return schemas.ITEMS.check(
        pl.DataFrame(
            {
                "item_index": [0, 1, 2],
                "item_id": ITEM_IDS,
                "title": ["A", "B", None],
                "text": [None, "b", "c"],
                "image_path": ["a.jpg", None, None],
                "categories": None,
                "num_interactions": [5, 6, 7],
            },
            schema=dict(schemas.ITEMS.columns),
        )
    )


def test_good_embeddings_have_no_problems(items: pl.DataFrame) -> None:
    """A table that matches the items, with finite and distinct vectors, passes; so does an empty table."""
    assert embedding_problems(table_of(GOOD), items) == []
    assert embedding_problems(schemas.EMBEDDINGS.empty(), items) == []


@pytest.mark.parametrize(
    ("vectors", "imputed", "problem"),
    [
        (
            [[1.0, 2.0], [np.nan, 1.0], [np.inf, 3.0]],
            (False,) * 3,
            "Values are not finite in 2 of 3 rows, first in row 1 (item_id 'b').",
        ),
        (
            [[1.0, 2.0], [0.5, 0.5], [2.0, 3.0]],
            (False,) * 3,
            "All 2 values are equal in 1 of 3 rows, first in row 1 (item_id 'b').",
        ),
        (
            [[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]],
            (False, False, True),
            "All 2 encoded items have the same embedding.",
        ),
        (GOOD, (True, True, True), "All 3 rows are imputed: no item was encoded."),
        (GOOD[:2], (False, False), "The table has 2 rows for 3 items; expected one row per item."),
    ],
)
def test_each_problem_is_described_with_its_first_row(
    items: pl.DataFrame, vectors: list[list[float]], imputed: tuple[bool, ...], problem: str
) -> None:
    """Only the problem at hand is reported, with the number of rows and the first item."""
    assert embedding_problems(table_of(vectors, imputed), items) == [problem]


def test_rows_that_do_not_match_the_items_are_found(items: pl.DataFrame) -> None:
    """Embeddings under the ID of another item would spoil everything without any error."""
    swapped = items.with_columns(item_id=pl.Series(["a", "c", "b"]))
    assert embedding_problems(table_of(GOOD), swapped) == [
        "2 of 3 rows do not match the items. The first is row 1: found item_index 1, item_id 'b', expected 1, 'c'."
    ]


def test_an_imputed_row_may_be_constant(items: pl.DataFrame) -> None:
    """The mean may happen to be constant, so only encoded rows are checked."""
    assert embedding_problems(table_of([[1.0, 3.0], [3.0, 1.0], [2.0, 2.0]]), items) == []


def test_a_vector_of_width_one_is_not_constant(items: pl.DataFrame) -> None:
    """A single value cannot vary within its row."""
    assert embedding_problems(table_of([[1.0], [2.0], [1.5]]), items) == []
