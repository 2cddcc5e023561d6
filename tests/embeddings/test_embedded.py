import numpy as np
import pytest

from macrec_pipeline.embeddings.embedded import build_embedded
from macrec_pipeline.errors import EncoderError


def test_values_that_are_not_finite_are_refused_with_the_item() -> None:
    """An encoder that overflows stops here; the message names the item's row, not the encoder's slot."""
    encoded = np.array([[1.0], [np.inf]], dtype=np.float32)
    with pytest.raises(EncoderError, match="not finite for 1 of 2 inputs, first for item row 2"):
        build_embedded(encoded, slots=np.array([0, 0, 1]), encoder={"name": "x"}, failures=(), seconds=1.0)


def test_failures_are_sorted_and_the_width_is_described() -> None:
    """The result is the same in whatever order failures were met, and carries its dim and rate."""
    result = build_embedded(
        np.ones((2, 5), np.float32),
        slots=np.array([0, 1, -1, -1]),
        encoder={"name": "x"},
        failures=[(3, "b"), (2, "a")],
        seconds=4.0,
    )
    assert result.failures == ((2, "a"), (3, "b"))
    assert result.encoder == {"name": "x", "dim": 5}
    assert result.items_per_second == 0.5
