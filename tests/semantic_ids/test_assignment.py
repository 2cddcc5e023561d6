"""Making IDs unique that the data set brings along."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids import collision_rate, resolve_given_ids


def test_the_error_without_room_says_which_setting_to_raise() -> None:
    """Five items cannot have distinct IDs of two levels with two codes each."""
    codes = np.zeros((5, 2), dtype=np.int64)
    with pytest.raises(SemanticIdError, match=r"1 of 5 items find no free text ID.*codebook_size"):
        resolve_given_ids(codes, codes, codebook_size=2)


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30).map(np.array),
)
def test_given_ids_become_unique_and_only_duplicates_move(codes: np.ndarray) -> None:
    """IDs end up distinct and in range, the first item with an ID keeps it, and the first level never changes."""
    ids = resolve_given_ids(codes, codes[:, ::-1].copy(), codebook_size=4)
    for before, after, moved in (
        (codes, ids.text_codes, ids.text_moved),
        (codes[:, ::-1], ids.image_codes, ids.image_moved),
    ):
        assert collision_rate(after) == 0
        assert after.min() >= 0
        assert after.max() < 4
        _, first_rows = np.unique(before, axis=0, return_index=True)
        assert not moved[first_rows].any()
        np.testing.assert_array_equal(after[:, 0], before[:, 0])
        np.testing.assert_array_equal(moved, (before != after).any(axis=1))
    assert ids.collision_rate["text"]["after"] == 0
    assert ids.collision_rate["text"]["before"] == pytest.approx(1 - len(np.unique(codes, axis=0)) / len(codes))
