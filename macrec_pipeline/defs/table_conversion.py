"""Converts stored tables to the arrays that the numeric stages work on.

Shapes (docs/notation.md): N items, L levels, T items of a history.
"""

import numpy as np
import numpy.typing as npt
import polars as pl

from macrec_pipeline.config import ROUTES


def codes_matrix(table: pl.DataFrame, column: str) -> npt.NDArray[np.int64]:
    """Convert a column of codes to a matrix, int64 [N, L]."""
    return np.array(table[column].to_list(), dtype=np.int64)


def codes_by_modality(table: pl.DataFrame) -> dict[str, npt.NDArray[np.int64]]:
    """Return the codes in `SEMANTIC_IDS`, int64 [N, L] for each modality that the catalogue has."""
    columns = {modality: f"{modality}_codes" for modality in ROUTES}
    return {name: codes_matrix(table, column) for name, column in columns.items() if not table[column].has_nulls()}


def item_sequences(histories: pl.DataFrame) -> list[npt.NDArray[np.int64]]:
    """Return the item indices of each user in `HISTORIES`, int64 [T], oldest first."""
    return [items.to_numpy(writable=True) for items in histories["item_indices"]]


def training_sequences(histories: pl.DataFrame) -> list[npt.NDArray[np.int64]]:
    """Return the sequences of `HISTORIES` without test targets, int64 [T] per user.

    In each sequence `[:-2]` is the training part, `[-2]` the validation target, and `[-1]` always item 0. That
    placeholder stands where a test target would be, whether the user has one or not, so no model can learn from it.
    """
    rows = zip(item_sequences(histories), histories["tested"], strict=True)
    return [np.append(items[: len(items) - tested], 0) for items, tested in rows]
