import numpy as np
import pytest

from macrec_pipeline.embeddings.imputation import impute_missing
from macrec_pipeline.errors import EncoderError


def test_missing_rows_take_the_mean_over_the_items_present() -> None:
    """Worked by hand: items A, A, B and one without give the mean (A + A + B) / 3, items counted and not inputs."""
    encoded = np.array([[3.0, 0.0], [0.0, 6.0]], dtype=np.float32)
    vectors, imputed = impute_missing(encoded, slots=np.array([0, -1, 0, 1]))
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[3, 0], [2, 2], [3, 0], [0, 6]]
    assert imputed.tolist() == [False, True, False, False]


def test_the_mean_does_not_lose_small_values_among_many_large_ones() -> None:
    """100,000 rows of 16777216 + 1 alternating average to what float64 says, which float32 sums miss."""
    encoded = np.array([[2.0**24], [1.0]], dtype=np.float32)
    slots = np.append(np.tile([0, 1], 50_000), -1)
    vectors, _ = impute_missing(encoded, slots=slots)
    assert vectors[-1, 0] == np.float32((2.0**24 + 1) / 2)


def test_nothing_to_impute_from_is_an_error() -> None:
    """No item present leaves no mean, and the error counts the items."""
    with pytest.raises(EncoderError, match="None of the 3 items"):
        impute_missing(np.empty((0, 4), np.float32), slots=np.array([-1, -1, -1]))
