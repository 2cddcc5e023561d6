"""Tables as the arrays that the numeric stages work on."""

import numpy as np
import numpy.typing as npt
import polars as pl

from macrec_pipeline.config import ROUTES


def codes_of(table: pl.DataFrame, column: str) -> npt.NDArray[np.int64]:
    """A column of codes of `SEMANTIC_IDS` as a matrix: int64 [N, L]."""
    return np.array(table[column].to_list(), dtype=np.int64)


def codes_by_modality(table: pl.DataFrame) -> dict[str, npt.NDArray[np.int64]]:
    """The codes of `SEMANTIC_IDS`, int64 [N, L] each, of the modalities that the catalogue has."""
    columns = {modality: f"{modality}_codes" for modality in ROUTES}
    return {name: codes_of(table, column) for name, column in columns.items() if not table[column].has_nulls()}


def sequences_of(histories: pl.DataFrame) -> list[npt.NDArray[np.int64]]:
    """One int64 [T] array of item indices a user of `HISTORIES`, oldest first."""
    return [items.to_numpy(writable=True) for items in histories["item_indices"]]


def training_sequences(histories: pl.DataFrame) -> list[npt.NDArray[np.int64]]:
    """What training may see of `HISTORIES`: int64 [T] a user, training part `[:-2]` and validation target `[-2]`.

    Item 0 stands in the place of the test target, whether there is one or not, so that nobody can learn from it.
    """
    rows = zip(sequences_of(histories), histories["tested"], strict=True)
    return [np.append(items[: len(items) - tested], 0) for items, tested in rows]
