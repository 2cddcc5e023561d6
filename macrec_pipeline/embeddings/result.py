"""What the encoders return: the vectors of what could be encoded go in, one row an item leaves.

Symbols: N items, M distinct texts or pictures, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.embeddings.cache import VectorsByContent
from macrec_pipeline.embeddings.imputation import impute_missing
from macrec_pipeline.errors import EncoderError


@dataclass(frozen=True)
class EmbeddingResult:
    """The embeddings of one modality.

    Attributes:
        vectors: float32 [N, D], finite, as the encoder gives them: not normalised beyond what it does itself.
        imputed: bool [N], true where the item has no such modality and the row is the mean of the others.
        failures: (row, reason) of each picture that was named but could not be used, in the order of the rows.
        encoder: what made the vectors: `name`, `dim`, `digest` (SHA-256 of the weights, hexadecimal), `digest_of`
            ("files" or "state") and `preprocessing`. The same entries and the same input give the same vectors.
        made_by: SHA-256, in hexadecimal, of all that decides a vector but its text or picture.
        contents: N times the SHA-256 of the text or of the picture's file, in hexadecimal; None for an imputed row.
            Rows of the same content and the same `made_by` have the same vector.
        num_encoded: distinct texts or pictures that had no vector from before.
        items_per_second: of those, loading the encoder not counted; 0 if there were none.
        batch_size: inputs that passed the encoder at once, in the end.
    """

    vectors: NDArray[np.float32]
    imputed: NDArray[np.bool_]
    failures: tuple[tuple[int, str], ...]
    encoder: dict[str, Any]
    made_by: str
    contents: tuple[str | None, ...]
    num_encoded: int
    items_per_second: float
    batch_size: int


def build_embedding_result(
    contents: Sequence[str | None],
    vectors_by_content: VectorsByContent,
    *,
    encoder: dict[str, Any],
    made_by: str,
    failures: Sequence[tuple[int, str]],
    num_encoded: int,
    seconds: float,
    batch_size: int,
) -> EmbeddingResult:
    """Give every item the vector of its content, or the mean of those that have one.

    Args:
        contents: N of them, at least one not None.
        vectors_by_content: holds each that is not None.
        encoder: the encoder's description; `dim` is added here.
        made_by: see `EmbeddingResult`.
        failures: (row, reason) pairs in any order.
        num_encoded: see `EmbeddingResult`.
        seconds: wall-clock time that the encoding took.
        batch_size: see `EmbeddingResult`.

    Raises:
        EncoderError: the encoder gave a value that is not finite.
    """
    distinct = {content: place for place, content in enumerate(dict.fromkeys(c for c in contents if c is not None))}
    encoded = vectors_by_content.rows(list(distinct))  # [M, D]
    slots = np.array([-1 if content is None else distinct[content] for content in contents], dtype=np.int64)
    finite = np.isfinite(encoded).all(axis=1)
    if not finite.all():
        slot = int(np.flatnonzero(~finite)[0])
        row = int(np.flatnonzero(slots == slot)[0])
        raise EncoderError(
            f"The encoder {encoder['name']!r} gave values that are not finite for {int((~finite).sum())} of "
            f"{len(encoded)} inputs, first for item row {row}. Expected finite float32. Use another encoder, or "
            "weights that are not damaged."
        )
    vectors, imputed = impute_missing(encoded, slots=slots)
    return EmbeddingResult(
        vectors=vectors,
        imputed=imputed,
        failures=tuple(sorted(failures)),
        encoder={**encoder, "dim": int(vectors.shape[1])},
        made_by=made_by,
        contents=tuple(contents),
        num_encoded=num_encoded,
        items_per_second=num_encoded / max(seconds, 1e-9),
        batch_size=batch_size,
    )
