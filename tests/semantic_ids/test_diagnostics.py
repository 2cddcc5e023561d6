"""Diagnostics of semantic IDs, compared with values worked out by hand."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.semantic_ids import code_usage, perplexity, semantic_id_problems
from macrec_pipeline.semantic_ids.diagnostics import gini, row_keys


def test_usage_and_perplexity_by_hand() -> None:
    """Two codes that are used equally have perplexity two; a level with one code has perplexity one."""
    usage = code_usage(np.array([[0, 2], [1, 2], [0, 2], [1, 2]]), codebook_size=3)
    assert usage.tolist() == [[2, 2, 0], [0, 0, 4]]
    assert perplexity(usage).tolist() == pytest.approx([2.0, 1.0])


def test_gini_by_hand() -> None:
    """Equal use gives 0, one of four codes gives 3/4, and counts of 3 and 1 give |3 - 1| / (2 * 4) = 1/4."""
    assert gini(np.array([[2, 2, 2, 2], [8, 0, 0, 0]])).tolist() == pytest.approx([0.0, 0.75])
    assert gini(np.array([[3, 1]])).tolist() == pytest.approx([0.25])


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), min_size=1, max_size=20),
    scale=st.sampled_from([1, 2**22]),
)
def test_row_keys_compare_as_the_rows_do(rows: list[list[int]], scale: int) -> None:
    """Keys are equal and ordered as the rows are, also if the columns together do not fit into one integer."""
    matrix = np.array(rows + rows[:1]) // scale
    keys = row_keys(matrix)
    tuples = [tuple(row) for row in matrix.tolist()]
    for a, first in enumerate(tuples):
        for b, second in enumerate(tuples):
            assert (keys[a] < keys[b], keys[a] == keys[b]) == (first < second, first == second)


def test_a_whole_modality_may_be_missing_but_not_single_ids() -> None:
    """A modality without any ID is one that the catalogue lacks; single missing IDs, or no ID at all, are problems."""

    def problems(text: list[list[int] | None], image: list[list[int] | None]) -> list[str]:
        codes = {"text_codes": text, "image_codes": image}
        return semantic_id_problems(pl.DataFrame(codes, schema=dict.fromkeys(codes, pl.List(pl.Int64))))

    assert problems([[0, 1], [1, 1]], [None, None]) == []
    assert problems([[0, 1], [1, 1]], [None, [0, 0]]) == ["1 of 2 items have no image ID."]
    assert problems([None, None], [None, None]) == ["No item has an ID in any modality."]
    assert problems([[0, 1], [0, 1]], [None, None]) == ["2 of 2 items share their text ID with another item."]
