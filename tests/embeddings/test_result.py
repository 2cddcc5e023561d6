"""Building the result of an embedding run: imputed items, failures by row, and vectors that are not finite."""

import numpy as np
import pytest

from macrec_pipeline.embeddings.cache import EncodedShard, VectorCache
from macrec_pipeline.embeddings.result import EmbeddingResult, build_embedding_result, impute_missing
from macrec_pipeline.errors import EncoderError


def build(
    contents: list[str | None], vectors: dict[str, list[float]], failures: dict[str, str] | None = None
) -> EmbeddingResult:
    cache = VectorCache("fingerprint", cached=None, shard_folder=None)
    cache.add(EncodedShard(list(vectors), np.array(list(vectors.values()), dtype=np.float32), failures or {}))
    return build_embedding_result(
        contents, cache, encoder={"name": "x"}, num_encoded=len(vectors), seconds=4.0, batch_size=2
    )


def test_a_vector_that_is_not_finite_is_an_error_that_names_the_item() -> None:
    """The message counts distinct inputs and names the first row of the catalogue that has such a vector."""
    with pytest.raises(EncoderError, match="not finite for 1 of 2 inputs; the first belongs to item row 2"):
        build(["a", "a", "b"], {"a": [1.0], "b": [np.inf]})


def test_failures_are_ordered_by_row_and_the_width_is_described() -> None:
    """A failed input has a reason in each of its rows, and its items are imputed; the result has width and rate."""
    failures = {"d": "empty", "c": "damaged"}
    result = build(["a", "b", "c", "d", None, "c"], {"a": [1.0] * 5, "b": [1.0] * 5}, failures)
    assert result.failures == ((2, "damaged"), (3, "empty"), (5, "damaged"))
    assert result.contents == ("a", "b", None, None, None, None)
    assert result.imputed.tolist() == [False, False, True, True, True, True]
    assert result.encoder == {"name": "x", "dim": 5}
    assert result.encoder_fingerprint == "fingerprint"
    assert result.items_per_second == 0.5


def test_missing_items_get_the_mean_over_the_other_items() -> None:
    """By hand: items A, A and B and one without a vector have the mean (A + A + B) / 3, which counts items."""
    encoded = np.array([[3.0, 0.0], [0.0, 6.0]], dtype=np.float32)
    vectors, imputed = impute_missing(encoded, source_rows=np.array([0, -1, 0, 1]))
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[3, 0], [2, 2], [3, 0], [0, 6]]
    assert imputed.tolist() == [False, True, False, False]


def test_the_mean_does_not_lose_small_values_among_many_large_ones() -> None:
    """The mean of 100,000 alternating values of 16777216 and 1 needs float64; a float32 sum would be wrong."""
    encoded = np.array([[2.0**24], [1.0]], dtype=np.float32)
    source_rows = np.append(np.tile([0, 1], 50_000), -1)
    vectors, _ = impute_missing(encoded, source_rows=source_rows)
    assert vectors[-1, 0] == np.float32((2.0**24 + 1) / 2)


def test_nothing_to_impute_from_is_an_error() -> None:
    """Without any vector there is no mean, and the error counts the items."""
    with pytest.raises(EncoderError, match="None of the 3 items"):
        impute_missing(np.empty((0, 4), np.float32), source_rows=np.array([-1, -1, -1]))
