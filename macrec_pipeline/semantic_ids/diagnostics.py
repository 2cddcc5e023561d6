"""Diagnostics of semantic IDs: collisions, how evenly the codes are used, and errors in an ID table.

Shapes (docs/notation.md): K codes per level, L levels, N items.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl


def collision_rate(codes: np.ndarray) -> float:
    """Return 1 - distinct IDs / items for codes int64 [N, L]; 0 if every ID is unique."""
    return 1.0 - len(np.unique(row_keys(codes))) / len(codes)


def row_keys(rows: np.ndarray) -> np.ndarray:
    """Map each row to one integer, so that integers compare as the rows do; sorting integers is many times faster.

    Args:
        rows: int64 [N, L], not negative.

    Returns:
        int64 [N]. Two keys are equal where the rows are, and the order of the keys is that of the rows.
    """
    keys, largest = np.zeros(len(rows), dtype=np.int64), 0
    for column in rows.T:
        size = int(column.max(initial=0)) + 1
        if (largest + 1) * size > np.iinfo(np.int64).max:
            _, keys = np.unique(keys, return_inverse=True)
            largest = len(rows)
        keys = keys * size + column
        largest = (largest + 1) * size - 1
    return keys


def code_usage(codes: np.ndarray, *, codebook_size: int) -> np.ndarray:
    """Count the items per code: int64 [N, L] -> int64 [L, K]."""
    num_levels = codes.shape[1]
    flat = codes + np.arange(num_levels) * codebook_size
    return np.bincount(flat.ravel(), minlength=num_levels * codebook_size).reshape(num_levels, codebook_size)


def perplexity(usage: np.ndarray) -> np.ndarray:
    """Return exp(entropy) of the codes of each level: int64 [L, K] -> float64 [L], from 1 (collapsed) to K (even)."""
    share = usage / usage.sum(axis=1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.exp(-(share * logs).sum(axis=1)))


def gini(usage: np.ndarray) -> np.ndarray:
    """Return the Gini coefficient of each level's codes: int64 [L, K] -> float64 [L], from 0 (even) to 1 - 1/K."""
    ordered = np.sort(usage, axis=1)
    size = usage.shape[1]
    weights = 2 * np.arange(1, size + 1) - size - 1
    return np.asarray((ordered * weights).sum(axis=1) / (size * ordered.sum(axis=1)))


def semantic_id_problems(table: pl.DataFrame) -> list[str]:
    """Return a sentence for each problem that would make the recommender fail: missing, shared or uneven IDs.

    A modality in which no item has an ID is one that the catalogue lacks, and not a problem.

    Args:
        table: an ID table (`schemas.SEMANTIC_IDS`).
    """
    problems = []
    columns = {modality: table[f"{modality}_codes"] for modality in ("text", "image")}
    if all(column.null_count() == len(column) for column in columns.values()):
        return ["No item has an ID in any modality."]
    for modality, column in columns.items():
        if column.null_count() == len(column):
            continue
        if column.null_count():
            problems.append(f"{column.null_count()} of {len(column)} items have no {modality} ID.")
            column = column.drop_nulls()
        lengths = column.list.len().unique().to_list()
        if len(lengths) != 1:
            problems.append(f"The {modality} IDs have {sorted(lengths)} codes; all must have the same number of codes.")
        num_shared = int(column.is_duplicated().sum())
        if num_shared:
            problems.append(f"{num_shared} of {len(column)} items share their {modality} ID with another item.")
    return problems
