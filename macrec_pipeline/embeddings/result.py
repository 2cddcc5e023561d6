"""What `embed_texts` and `embed_images` return: one vector per item, imputed where an item has no text or image.

Shapes (docs/notation.md): N items, D embedding width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.embeddings.cache import VectorCache
from macrec_pipeline.errors import EncoderError


@dataclass(frozen=True)
class EmbeddingResult:
    """The embeddings of one modality.

    Attributes:
        vectors: float32 [N, D], finite, as the encoder returns them: they are not normalized unless it does so itself.
        imputed: bool [N], True where the item has no usable text or image and its vector is the mean of the others.
        failures: (row, reason) of each image that could not be read, ordered by row.
        encoder: describes the encoder: `name`, `dim`, `digest` (SHA-256 of the weights, hexadecimal), `digest_of`
            ("files" or "state") and `preprocessing`. The same description and input give the same vectors.
        encoder_fingerprint: SHA-256, in hexadecimal, of everything that determines a vector except its text or image.
        contents: N SHA-256 digests, in hexadecimal, of the texts or image files; None for an imputed row. Rows of the
            same content and fingerprint have the same vector.
        num_encoded: distinct texts or images that this run encoded, because no earlier vector could be reused.
        items_per_second: `num_encoded` per second, without the time to load the encoder; 0 if nothing was encoded.
        batch_size: inputs per batch at the end of the run.
    """

    vectors: NDArray[np.float32]
    imputed: NDArray[np.bool_]
    failures: tuple[tuple[int, str], ...]
    encoder: dict[str, Any]
    encoder_fingerprint: str
    contents: tuple[str | None, ...]
    num_encoded: int
    items_per_second: float
    batch_size: int


def build_embedding_result(
    contents: Sequence[str | None],
    vectors: VectorCache,
    *,
    encoder: dict[str, Any],
    num_encoded: int,
    seconds: float,
    batch_size: int,
) -> EmbeddingResult:
    """Give each item the vector of its content, or the mean vector if it has none.

    Args:
        contents: the content of each of the N items, or None. At least one of them has a vector.
        vectors: holds a vector or a failure for each content.
        encoder: the encoder's description, to which `dim` is added.
        num_encoded: see `EmbeddingResult`.
        seconds: wall-clock time spent on encoding.
        batch_size: see `EmbeddingResult`.

    Raises:
        EncoderError: the encoder returned a value that is not finite.
    """
    failures = [(row, vectors.failures[content]) for row, content in enumerate(contents) if content in vectors.failures]
    usable = tuple(None if content in vectors.failures else content for content in contents)
    distinct = {content: row for row, content in enumerate(dict.fromkeys(filter(None, usable)))}
    encoded = vectors.vectors_of(list(distinct))  # [distinct contents, D]
    source_rows = np.array([-1 if content is None else distinct[content] for content in usable], dtype=np.int64)
    _check_finite(encoded, source_rows, encoder_name=encoder["name"])
    item_vectors, imputed = impute_missing(encoded, source_rows=source_rows)
    return EmbeddingResult(
        vectors=item_vectors,
        imputed=imputed,
        failures=tuple(failures),
        encoder={**encoder, "dim": int(item_vectors.shape[1])},
        encoder_fingerprint=vectors.fingerprint,
        contents=usable,
        num_encoded=num_encoded,
        items_per_second=num_encoded / max(seconds, 1e-9),
        batch_size=batch_size,
    )


def impute_missing(
    encoded: NDArray[np.float32], *, source_rows: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Copy encoded vectors to the items that they belong to, and give every other item the mean over those items.

    The mean is the guess with the smallest squared error, and it keeps the item in the catalogue. It is summed in
    float64, so that its precision does not depend on the number of items.

    Args:
        encoded: float32 [distinct contents, D].
        source_rows: int64 [N], the row of `encoded` for each item, or -1 if the item has none.

    Returns:
        The vectors, float32 [N, D], and which of them are imputed, bool [N].

    Raises:
        EncoderError: no item has a vector, so there is nothing to take the mean of.
    """
    imputed = source_rows < 0
    if imputed.all():
        raise EncoderError(
            f"None of the {len(source_rows)} items has a text or image that can be encoded, so there is nothing to "
            "impute from. Check the column mapping and the files of the data set."
        )
    vectors = encoded[source_rows]  # [N, D]; -1 selects the last row, which the next line overwrites
    vectors[imputed] = vectors[~imputed].mean(axis=0, dtype=np.float64).astype(np.float32)
    return vectors, imputed


def _check_finite(encoded: NDArray[np.float32], source_rows: NDArray[np.int64], *, encoder_name: str) -> None:
    finite = np.isfinite(encoded).all(axis=1)
    if finite.all():
        return
    first_bad = int(np.flatnonzero(~finite)[0])
    item_row = int(np.flatnonzero(source_rows == first_bad)[0])
    raise EncoderError(
        f"The encoder {encoder_name!r} returned values that are not finite for {int((~finite).sum())} of "
        f"{len(encoded)} inputs; the first belongs to item row {item_row}. Expected finite float32 values. Use another "
        "encoder, or check that its weights are not damaged."
    )
