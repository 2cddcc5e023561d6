"""Convert a matrix of embeddings to the `EMBEDDINGS` table and back.

Shapes (docs/notation.md): N items, D width of an embedding.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import EMBEDDINGS


def embedding_table(
    items: pl.DataFrame,
    *,
    vectors: npt.NDArray[np.float32],
    imputed: npt.NDArray[Any],
    contents: Sequence[str | None] | None = None,
    problems: Mapping[int, str] | None = None,
) -> pl.DataFrame:
    """Combine a matrix of embeddings with the items that they belong to.

    Args:
        items: the `items` table, N rows.
        vectors: float32 [N, D], one row per item in the order of `items`.
        imputed: bool [N], true where the item lacks the modality.
        contents: N digests of what was encoded; None where it is not known.
        problems: row -> why the item's text or image could not be encoded.

    Returns:
        A table of the schema `EMBEDDINGS`.

    Raises:
        SchemaError: a shape or dtype is wrong.
    """
    if vectors.ndim != 2 or vectors.dtype != np.float32 or vectors.shape[1] == 0:
        raise SchemaError(f"embeddings must be float32 [N, D], but they are {vectors.dtype} {list(vectors.shape)}.")
    if imputed.dtype != np.bool_ or imputed.ndim != 1:
        raise SchemaError(f"imputed must be bool [N], but it is {imputed.dtype} {list(imputed.shape)}.")
    if not items.height == len(vectors) == len(imputed):
        raise SchemaError(
            f"There must be one embedding and one flag per item, but there are {items.height} items, {len(vectors)} "
            f"embeddings and {len(imputed)} flags."
        )
    matrix = np.ascontiguousarray(vectors)
    table = items.select("item_index", "item_id").with_columns(
        pl.Series("embedding", matrix, dtype=pl.Array(pl.Float32, matrix.shape[1])),
        pl.Series("imputed", imputed, dtype=pl.Boolean),
        pl.Series("content", contents or [None] * items.height, dtype=pl.String),
        pl.Series("problem", [(problems or {}).get(row) for row in range(items.height)], dtype=pl.String),
    )
    return EMBEDDINGS.check(table)


def vectors_of(table: pl.DataFrame) -> npt.NDArray[np.float32]:
    """Return the embeddings of a table as a matrix.

    Args:
        table: rows of the schema `EMBEDDINGS`.

    Returns:
        float32 [N, D]. The matrix is read-only if it shares the table's memory, so copy it before you change it.
    """
    column = table["embedding"]
    assert isinstance(column.dtype, pl.Array), "a table of the schema EMBEDDINGS has fixed-width vectors"
    return column.to_numpy().reshape(table.height, column.dtype.shape[0])
