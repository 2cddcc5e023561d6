import numpy as np
import pytest

from macrec_pipeline.embeddings.cache import Encoded, VectorsByContent
from macrec_pipeline.embeddings.result import EmbeddingResult, build_embedding_result
from macrec_pipeline.errors import EncoderError


def build(contents: list[str | None], vectors: list[list[float]], failures: list[tuple[int, str]]) -> EmbeddingResult:
    by_content = VectorsByContent("made by", before=None, shards=None)
    distinct = list(dict.fromkeys(filter(None, contents)))
    by_content.add(Encoded(distinct, np.array(vectors, dtype=np.float32), {}))
    return build_embedding_result(
        contents,
        by_content,
        encoder={"name": "x"},
        made_by="made by",
        failures=failures,
        num_encoded=len(vectors),
        seconds=4.0,
        batch_size=2,
    )


def test_values_that_are_not_finite_are_refused_with_the_item() -> None:
    """An encoder that overflows stops here; the message names the item's row, not the encoder's slot."""
    with pytest.raises(EncoderError, match="not finite for 1 of 2 inputs, first for item row 2"):
        build(["a", "a", "b"], [[1.0], [np.inf]], [])


def test_failures_are_sorted_and_the_width_is_described() -> None:
    """The result is the same in whatever order failures were met, and carries its dim and rate."""
    result = build(["a", "b", None, None], [[1.0] * 5, [1.0] * 5], [(3, "b"), (2, "a")])
    assert result.failures == ((2, "a"), (3, "b"))
    assert result.encoder == {"name": "x", "dim": 5}
    assert result.items_per_second == 0.5
