"""What a person wants to know of a semantic ID table: collisions and how evenly the codes are used.

Shapes: N items, L levels, K codes a level.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import polars as pl


def collision_rate(codes: np.ndarray) -> float:
    """1 - distinct IDs / items, for codes int64 [N, L]; 0 when every item has an ID of its own."""
    return 1.0 - len(np.unique(row_keys(codes))) / len(codes)


def row_keys(rows: np.ndarray) -> np.ndarray:
    """One integer a row, equal and in order where rows are: non-negative int64 [N, C] -> int64 [N].

    Sorting integers is many times faster than sorting rows.
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
    """How many items have each code: int64 [N, L] -> int64 [L, K]."""
    num_levels = codes.shape[1]
    flat = codes + np.arange(num_levels) * codebook_size
    return np.bincount(flat.ravel(), minlength=num_levels * codebook_size).reshape(num_levels, codebook_size)


def perplexity(usage: np.ndarray) -> np.ndarray:
    """exp(entropy) of the codes of each level: int64 [L, K] -> float64 [L], from 1 (collapsed) to K (even)."""
    share = usage / usage.sum(axis=1, keepdims=True)
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    return np.asarray(np.exp(-(share * logs).sum(axis=1)))


def gini(usage: np.ndarray) -> np.ndarray:
    """The Gini coefficient of the codes of each level: int64 [L, K] -> float64 [L], from 0 (even) to 1 - 1/K."""
    ordered = np.sort(usage, axis=1)
    size = usage.shape[1]
    weights = 2 * np.arange(1, size + 1) - size - 1
    return np.asarray((ordered * weights).sum(axis=1) / (size * ordered.sum(axis=1)))


def semantic_id_problems(table: pl.DataFrame) -> list[str]:
    """What would poison the recommender: IDs that are missing, not unique or not of one length, for each modality.

    A modality without any ID is one that the catalogue lacks.
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
            problems.append(f"{modality} IDs have {sorted(lengths)} codes; all must have the same number.")
        shared = int(column.is_duplicated().sum())
        if shared:
            problems.append(f"{shared} of {len(column)} items share their {modality} ID with another item.")
    return problems
