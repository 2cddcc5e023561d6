"""The gate behind the encoders: an embedding table and the items go in, problems that a person can read leave.

Bad vectors do not fail later, they make semantic IDs that mean nothing; so these are checked before anything is
fitted on them. Symbols: N items, D embedding.
"""

import numpy as np
import polars as pl
from numpy.typing import NDArray


def embedding_problems(table: pl.DataFrame, items: pl.DataFrame) -> list[str]:
    """Say what would poison the stages that follow.

    Args:
        table: an embedding table (`schemas.EMBEDDINGS`). One without rows is fine: nobody needs it.
        items: the catalogue (`schemas.ITEMS`).

    Returns:
        One sentence a problem: item ids out of line with the catalogue, values that are not finite, rows or the whole
        table without variation, every row imputed. Empty: fine.
    """
    if table.height == 0:
        return []
    problems = _alignment_problems(table, items)
    vectors = _matrix(table)  # [N, D]
    item_ids = table["item_id"]
    finite = np.asarray(np.isfinite(vectors).all(axis=1))  # [N]
    if not finite.all():
        problems.append(f"Values that are not finite in {_rows(~finite, item_ids)}.")
    imputed = table["imputed"].to_numpy()
    if imputed.all():
        problems.append(f"All {table.height} rows are imputed: no item was encoded.")
    return problems + _variation_problems(vectors, measured=finite & ~imputed, item_ids=item_ids)


def _alignment_problems(table: pl.DataFrame, items: pl.DataFrame) -> list[str]:
    if table.height != items.height:
        return [f"{table.height} rows for {items.height} items: every item needs one embedding."]
    differs = ((table["item_index"] != items["item_index"]) | (table["item_id"] != items["item_id"])).to_numpy()  # [N]
    if not differs.any():
        return []
    row = int(np.flatnonzero(differs)[0])
    got, expected = table.row(row, named=True), items.row(row, named=True)
    return [
        f"{int(differs.sum())} of {table.height} rows are out of line with the items, first row {row}: "
        f"got item_index {got['item_index']}, item_id {got['item_id']!r}, "
        f"expected {expected['item_index']}, {expected['item_id']!r}."
    ]


def _variation_problems(vectors: NDArray[np.float32], *, measured: NDArray[np.bool_], item_ids: pl.Series) -> list[str]:
    """Constant rows, and a table in which all rows are the same. A single value or a single row cannot vary."""
    problems = []
    if vectors.shape[1] > 1:
        constant = measured & (vectors == vectors[:, :1]).all(axis=1)
        if constant.any():
            problems.append(f"All {vectors.shape[1]} values are the same in {_rows(constant, item_ids)}.")
    rows = vectors[measured]
    if len(rows) > 1 and (rows == rows[0]).all():
        problems.append(f"All {len(rows)} encoded items have the identical embedding.")
    return problems


def _matrix(table: pl.DataFrame) -> NDArray[np.float32]:
    """The embedding column as float32 [N, D]; nulls, which the schema forbids, become NaN."""
    width = table["embedding"].dtype.shape[0]  # type: ignore[attr-defined]  # the schema says array
    values = table["embedding"].explode().to_numpy() if width else np.empty(0, np.float32)
    return values.astype(np.float32, copy=False).reshape(table.height, width)


def _rows(mask: NDArray[np.bool_], item_ids: pl.Series) -> str:
    row = int(np.flatnonzero(mask)[0])
    return f"{int(mask.sum())} of {len(mask)} rows, first row {row} (item_id {item_ids[row]!r})"
