"""What the encoders return: the vectors of what could be encoded go in, one row an item leaves.

Symbols: N items, M distinct texts or pictures that were encoded, D embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.embeddings.imputation import impute_missing
from macrec_pipeline.errors import EncoderError


@dataclass(frozen=True)
class Embedded:
    """The embeddings of one modality.

    Attributes:
        vectors: float32 [N, D], finite, as the encoder gives them: not normalised beyond what it does itself.
        imputed: bool [N], true where the item has no such modality and the row is the mean of the others.
        failures: (row, reason) of each picture that was named but could not be used, in the order of the rows.
        encoder: what made the vectors: `name`, `dim`, `digest` (SHA-256 of the weights, hexadecimal), `digest_of`
            ("files" or "state") and `preprocessing`. The same entries and the same input give the same vectors.
        items_per_second: distinct texts or pictures encoded a second, loading the encoder not counted.
    """

    vectors: NDArray[np.float32]
    imputed: NDArray[np.bool_]
    failures: tuple[tuple[int, str], ...]
    encoder: dict[str, Any]
    items_per_second: float


def build_embedded(
    encoded: NDArray[np.float32],
    *,
    slots: NDArray[np.int64],
    encoder: dict[str, Any],
    failures: Sequence[tuple[int, str]],
    seconds: float,
) -> Embedded:
    """Give every item its row of `encoded`, or the mean of those that have one.

    Args:
        encoded: float32 [M, D].
        slots: int64 [N], the row of `encoded` that an item takes, or -1 for none.
        encoder: the encoder's description; `dim` is added here.
        failures: (row, reason) pairs in any order.
        seconds: wall-clock time that the encoding took.

    Raises:
        EncoderError: the encoder gave a value that is not finite, or no item has a row.
    """
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
    return Embedded(
        vectors=vectors,
        imputed=imputed,
        failures=tuple(sorted(failures)),
        encoder={**encoder, "dim": int(vectors.shape[1])},
        items_per_second=len(encoded) / max(seconds, 1e-9),
    )
