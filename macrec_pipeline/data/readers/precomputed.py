"""Read the published semantic IDs and embeddings of an indexed data set, in the order of the catalogue.

They replace the stages that would have computed them.

Shapes (docs/notation.md): D width of an embedding, K codes per level, L levels, N items.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from macrec_pipeline.config import Route
from macrec_pipeline.data.readers.indexed import find_indexed_file, item_ids_of_indices, read_json_object
from macrec_pipeline.data.readers.text_files import open_unpacked
from macrec_pipeline.datasets import DatasetSpec, IndexedSource
from macrec_pipeline.errors import SchemaError

_TOKEN = re.compile(r"<([a-z])_(\d{1,6})>", re.IGNORECASE)


@dataclass(frozen=True)
class PrecomputedIds:
    """Semantic IDs as published, before collision resolution: several items may share one.

    Attributes:
        text_codes: int64 [N, L], each in [0, K); row i is the item with item_index i. None if the data set has no
            semantic IDs of texts.
        image_codes: int64 [N, L], as text_codes.
        codebook_size: K, the smallest power of two (at least 2) that is greater than every code of the files.
    """

    text_codes: NDArray[np.int64] | None
    image_codes: NDArray[np.int64] | None
    codebook_size: int


def precomputed_semantic_ids(spec: DatasetSpec, data_dir: Path, items: pl.DataFrame) -> PrecomputedIds | None:
    """Return the semantic IDs that come with the data set, or None if there are none.

    Args:
        spec: the data set.
        data_dir: the data folder.
        items: the catalogue (`ITEMS`); the result has its rows.

    Raises:
        MissingFileError: a file does not exist.
        SchemaError: an item has no ID, or one with another number of levels; names the file and the item.
    """
    source = spec.source
    if not isinstance(source, IndexedSource) or not source.given_modalities:
        return None
    indices = _indices_of(items, source, data_dir)
    codes: dict[Route, NDArray[np.int64]] = {}
    largest = 1
    for modality, suffix in source.given_modalities.items():
        codes[modality], largest_of_file = _read_codes(source, suffix, data_dir, indices)
        largest = max(largest, largest_of_file)
    text_codes, image_codes = codes.get("text"), codes.get("image")
    if text_codes is not None and image_codes is not None and text_codes.shape != image_codes.shape:
        raise SchemaError(
            f"{spec.name}: text IDs have {text_codes.shape[1]} levels ({source.text_index}) but image IDs "
            f"{image_codes.shape[1]} ({source.image_index}). Both modalities need the same number of levels."
        )
    return PrecomputedIds(text_codes, image_codes, 1 << largest.bit_length())


def precomputed_embeddings(
    spec: DatasetSpec, data_dir: Path, items: pl.DataFrame, modality: Route
) -> NDArray[np.float32] | None:
    """Return the embeddings of one modality that come with the data set, or None if there are none.

    Returns:
        float32 [N, D]; row i is the item with item_index i in `items`.

    Raises:
        MissingFileError: the file does not exist.
        SchemaError: the file is not a matrix of numbers with one row per item index.
    """
    source = spec.source
    if not isinstance(source, IndexedSource):
        return None
    suffix = source.text_embeddings if modality == "text" else source.image_embeddings
    if suffix is None:
        return None
    path, file = find_indexed_file(source, suffix, data_dir)
    try:
        with open_unpacked(path) as stream:
            matrix = np.load(stream, allow_pickle=False)
    except ValueError as error:
        raise SchemaError(f"{file} cannot be read as a .npy matrix: {error}") from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or not np.issubdtype(matrix.dtype, np.number):
        got = f"{matrix.dtype} {list(matrix.shape)}" if isinstance(matrix, np.ndarray) else type(matrix).__name__
        raise SchemaError(f"{file} holds {got}, expected numbers [items, dimensions].")
    indices = _indices_of(items, source, data_dir)
    if indices.size and indices.max() >= len(matrix):
        raise SchemaError(
            f"{file} has {len(matrix)} rows, but {item_ids_of_indices(source, data_dir)[0]} has the index "
            f"{indices.max()}. Both files must be of one edition."
        )
    return np.ascontiguousarray(matrix[indices], dtype=np.float32)


def _indices_of(items: pl.DataFrame, source: IndexedSource, data_dir: Path) -> NDArray[np.int64]:
    """Return the index that the files use for each item of the catalogue: int64 [N]."""
    file, ids_by_index = item_ids_of_indices(source, data_dir)
    index_of = {item_id: index for index, item_id in ids_by_index.items()}
    indices = []
    for item_id in items["item_id"]:
        if item_id not in index_of:
            raise SchemaError(
                f"items: {item_id!r} is not in {file}. The catalogue was probably made from other files: materialize "
                "it again."
            )
        indices.append(index_of[item_id])
    return np.array(indices, dtype=np.int64)


def _read_codes(
    source: IndexedSource, suffix: str, data_dir: Path, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], int]:
    """Return the codes of the catalogue's items, int64 [N, L], and the largest code of the whole file."""
    path, file = find_indexed_file(source, suffix, data_dir)
    tokens = read_json_object(path, file)
    if not tokens:
        raise SchemaError(f"{file} is an empty object, expected the semantic ID of each item.")
    first = next(iter(tokens.values()))
    num_levels = len(first) if isinstance(first, list) and first else 1
    codes = {index: _parse_codes(value, num_levels, file, index) for index, value in tokens.items()}
    missing = next((index for index in indices.tolist() if str(index) not in codes), None)
    if missing is not None:
        raise SchemaError(f"{file}: item {missing} has no semantic ID.")
    rows = np.array([codes[str(index)] for index in indices.tolist()], dtype=np.int64).reshape(-1, num_levels)
    return rows, max(max(row) for row in codes.values())


def _parse_codes(value: Any, num_levels: int, file: str, item: str) -> list[int]:
    """Parse `["<a_170>", "<b_224>"]` as `[170, 224]`; the letter must be that of the level."""
    tokens = value if isinstance(value, list) else []
    matches = [_TOKEN.fullmatch(token) if isinstance(token, str) else None for token in tokens]
    letters = [match.group(1).lower() if match else None for match in matches]
    if letters != [chr(ord("a") + level) for level in range(num_levels)]:
        example = ", ".join(f"<{chr(ord('a') + level)}_CODE>" for level in range(num_levels))
        raise SchemaError(f"{file}: item {item} has {str(value)[:80]}, expected {num_levels} tokens: {example}.")
    return [int(match.group(2)) for match in matches if match]
