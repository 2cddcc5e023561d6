"""Items without a text or a picture: the vectors of those that have one go in, a vector for every item leaves.

Symbols: N items, M distinct encoded inputs, D embedding.
"""

import numpy as np
from numpy.typing import NDArray

from macrec_pipeline.errors import EncoderError


def impute_missing(
    encoded: NDArray[np.float32], *, slots: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Spread encoded rows over the items and fill the others with the mean over the items that have one.

    The mean is the guess with the least squared error, and it keeps an item in the catalogue instead of dropping it;
    it is summed in float64 so that it does not depend on the number of items.

    Args:
        encoded: float32 [M, D].
        slots: int64 [N], each a row of `encoded` or -1 where the item has none.

    Returns:
        vectors float32 [N, D] and imputed bool [N].

    Raises:
        EncoderError: no item has a row, so there is nothing to take the mean of.
    """
    imputed = slots < 0
    if imputed.all():
        raise EncoderError(
            f"None of the {len(slots)} items has a text or picture that can be encoded, so there is nothing to impute "
            "from. Check the column mapping and the files of the data set."
        )
    vectors = encoded[slots]  # [N, D]; slot -1 takes the last row, overwritten below
    vectors[imputed] = vectors[~imputed].mean(axis=0, dtype=np.float64).astype(np.float32)
    return vectors, imputed
