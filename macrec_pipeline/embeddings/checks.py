"""Checks an embedding table before anything is trained on it.

Bad vectors do not cause an error later on; they produce semantic IDs that mean nothing. The check therefore describes
every such problem as a sentence. Shapes (docs/notation.md): N items, D embedding width.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray


def embedding_problems(table: pl.DataFrame, items: pl.DataFrame) -> list[str]:
    """Return a sentence for each problem that would spoil the semantic IDs; an empty list if there is none.

    The problems are: rows that do not match the catalogue, values that are not finite, constant vectors, a table in
    which all vectors are equal, and a table in which every vector is imputed.

    Args:
        table: an embedding table (`schemas.EMBEDDINGS`). An empty one passes: the run does not use this modality.
        items: the catalogue (`schemas.ITEMS`).
    """
    if table.height == 0:
        return []
    problems = _alignment_problems(table, items)
    vectors = _vectors(table)  # [N, D]
    item_ids = table["item_id"]
    finite = np.asarray(np.isfinite(vectors).all(axis=1))  # [N]
    if not finite.all():
        problems.append(f"Values are not finite in {_describe_rows(~finite, item_ids)}.")
    imputed = table["imputed"].to_numpy()
    if imputed.all():
        problems.append(f"All {table.height} rows are imputed: no item was encoded.")
    return problems + _variation_problems(vectors, encoded=finite & ~imputed, item_ids=item_ids)


def _alignment_problems(table: pl.DataFrame, items: pl.DataFrame) -> list[str]:
    if table.height != items.height:
        return [f"The table has {table.height} rows for {items.height} items; expected one row per item."]
    differs = ((table["item_index"] != items["item_index"]) | (table["item_id"] != items["item_id"])).to_numpy()  # [N]
    if not differs.any():
        return []
    row = int(np.flatnonzero(differs)[0])
    found, expected = table.row(row, named=True), items.row(row, named=True)
    return [
        f"{int(differs.sum())} of {table.height} rows do not match the items. The first is row {row}: "
        f"found item_index {found['item_index']}, item_id {found['item_id']!r}, "
        f"expected {expected['item_index']}, {expected['item_id']!r}."
    ]


def _variation_problems(vectors: NDArray[np.float32], *, encoded: NDArray[np.bool_], item_ids: pl.Series) -> list[str]:
    """Find constant vectors and a table of equal vectors. Vectors of width 1, or a single vector, cannot vary."""
    problems = []
    if vectors.shape[1] > 1:
        constant = encoded & (vectors == vectors[:, :1]).all(axis=1)
        if constant.any():
            problems.append(f"All {vectors.shape[1]} values are equal in {_describe_rows(constant, item_ids)}.")
    encoded_vectors = vectors[encoded]
    if len(encoded_vectors) > 1 and (encoded_vectors == encoded_vectors[0]).all():
        problems.append(f"All {len(encoded_vectors)} encoded items have the same embedding.")
    return problems


def _vectors(table: pl.DataFrame) -> NDArray[np.float32]:
    """Return the embedding column as float32 [N, D]; nulls, which the schema forbids, become NaN."""
    width = table["embedding"].dtype.shape[0]  # type: ignore[attr-defined]  # an array column, by the schema
    values = table["embedding"].explode().to_numpy() if width else np.empty(0, np.float32)
    return values.astype(np.float32, copy=False).reshape(table.height, width)


def _describe_rows(mask: NDArray[np.bool_], item_ids: pl.Series) -> str:
    row = int(np.flatnonzero(mask)[0])
    return f"{int(mask.sum())} of {len(mask)} rows, first in row {row} (item_id {item_ids[row]!r})"
