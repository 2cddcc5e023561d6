"""The items that are most similar to one item: by quantized latent, by embedding, or by the prefix of semantic IDs.

Two items are compared per modality, and the similarities of the modalities are averaged. Everything comes from a
bundle: the semantic IDs, for latents the codebooks of its quantizer, and for embeddings those that it may contain,
with one byte per number.

Shapes (docs/notation.md): D width of an embedding, H latent width, K codes per level, L levels, N items.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from safetensors import SafetensorError, safe_open

from macrec_pipeline.errors import StorageError, did_you_mean

Method = Literal["latent", "embedding", "prefix"]
METHODS: tuple[Method, ...] = get_args(Method)
# Rows that are compared at once, which bounds the memory of embeddings as floats.
_ROWS_AT_ONCE = 4_096
_CODEBOOKS = "quantizer.codebooks"
# Comparing an id with a million others takes seconds, so only its neighbours in alphabetical order are compared.
_COMPARED_NEIGHBOURS = 2_000


def prefix_similarities(codes: np.ndarray, item: int) -> np.ndarray:
    """Return which share of the L codes each ID has in common with an item's before they first differ.

    Args:
        codes: int64 [N, L].
        item: index of the item.

    Returns:
        float64 [N], in [0, 1]; 1 for the item itself.
    """
    shares: np.ndarray = np.cumprod(codes == codes[item], axis=1).mean(axis=1)
    return shares


def cosine_similarities(vectors: np.ndarray, item: int) -> np.ndarray:
    """Return the cosine between each vector and that of an item.

    Args:
        vectors: float or int8 [N, H]. A vector of zeros has similarity 0 to every item.
        item: index of the item.

    Returns:
        float64 [N], in [-1, 1] up to rounding.
    """
    wanted = _unit_rows(vectors[item : item + 1])[0]
    starts = range(0, len(vectors), _ROWS_AT_ONCE)
    # einsum, because a matrix product of finite rows with few numbers has been seen to warn of invalid values
    products = [np.einsum("nh,h->n", _unit_rows(vectors[start : start + _ROWS_AT_ONCE]), wanted) for start in starts]
    similarities: np.ndarray = np.concatenate(products).astype(np.float64)
    return similarities


def compressed_embeddings(embeddings: np.ndarray) -> np.ndarray:
    """Store the direction of each embedding with one byte per number: float [N, D] -> int8 [N, D].

    The largest number of a row becomes 127 in size, so the cosine of two rows changes by less than 0.01.
    """
    largest = np.maximum(np.abs(embeddings).max(axis=1, keepdims=True), np.finfo(np.float32).tiny)
    compressed: np.ndarray = np.rint(embeddings / largest * 127).astype(np.int8)
    return compressed


def quantized_latents(codes: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Rebuild quantized latents, the sum of one codebook entry per level: int64 [N, L], float [L, K, H] -> [N, H]."""
    latents: np.ndarray = np.sum([codebook[codes[:, level]] for level, codebook in enumerate(codebooks)], axis=0)
    return latents


def read_codebooks(quantizer_folder: Path, modality: str, *, num_levels: int, codebook_size: int) -> np.ndarray:
    """Read the codebooks of one modality from the quantizer of a bundle.

    Returns:
        float32 [L, K, H].

    Raises:
        StorageError: the file cannot be read, or its codebooks are not those of the bundle's semantic IDs.
    """
    path = quantizer_folder / f"{modality}.safetensors"
    try:
        with safe_open(path, framework="numpy") as file:
            codebooks: np.ndarray = file.get_tensor(_CODEBOOKS)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"The codebooks in {path} cannot be read: {error}. Materialize `recommender` again, or use method prefix."
        ) from error
    if codebooks.ndim != 3 or codebooks.shape[:2] != (num_levels, codebook_size):
        raise StorageError(
            f"The codebooks in {path} have the shape {list(codebooks.shape)}, but the semantic IDs have {num_levels} "
            f"levels of {codebook_size} codes. Materialize `recommender` again, or use method prefix."
        )
    return codebooks


def most_similar(
    similarities: Sequence[np.ndarray], item: int, *, k: int, eligible: np.ndarray, popularity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Select the k most similar items.

    Args:
        similarities: float64 [N] per modality; their mean counts.
        item: index of the item, which is never selected.
        k: number of items; fewer come back if fewer are eligible.
        eligible: bool [N], the items that may be selected.
        popularity: [N], decides between equally similar items; after it, the item index decides.

    Returns:
        Item indices, int64 [at most k], most similar first, and their similarities, float64 of the same length.
    """
    mean = np.mean(similarities, axis=0)
    candidates = np.flatnonzero(eligible)
    candidates = candidates[candidates != item]
    best = candidates[np.lexsort((candidates, -popularity[candidates], -mean[candidates]))][:k]
    return best, mean[best]


def similar_ids(item_id: str, item_ids: Sequence[str]) -> str:
    """Return the end of an error message that suggests ids in place of an unknown one; "" if none is similar."""
    candidates: Sequence[str] = item_ids
    if len(item_ids) > _COMPARED_NEIGHBOURS:
        ordered = sorted(item_ids)
        place = bisect.bisect_left(ordered, item_id)
        candidates = ordered[max(0, place - _COMPARED_NEIGHBOURS // 2) : place + _COMPARED_NEIGHBOURS // 2]
    return did_you_mean(item_id, candidates)


def _unit_rows(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = rows / np.where(norms > 0, norms, 1)
    return scaled


def unsupported_message(method: str, supported: Sequence[str]) -> str:
    """Return why a bundle does not offer a method, and what to do."""
    needs = {
        "latent": "a quantizer, which it lacks because its data set brings the semantic IDs or an older version of the "
        "package wrote it",
        "embedding": "the embeddings of its items. Set `decoding.store_embeddings` to true and train a new version",
    }
    return f"Method {method} needs a bundle with {needs[method]}. This version supports {' and '.join(supported)}."
