"""Collision resolution: by hand, by property, and the error when there is no room."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids import code_usage, collision_rate, perplexity, resolve_given_ids
from macrec_pipeline.semantic_ids.assignment import _resolve


def test_the_nearest_keeps_the_id_and_the_others_take_the_next_free_code() -> None:
    """Three items share (0, 1): the nearest stays, the others get the next-nearest codes that are free."""
    codebooks = torch.tensor([[[0.0], [100.0]], [[0.0], [10.0]]])
    codebooks = torch.cat([codebooks, torch.tensor([[[200.0], [300.0]], [[20.0], [30.0]]])], dim=1)
    codes = np.array([[0, 1], [0, 1], [0, 1], [0, 2]])
    last = torch.tensor([[14.0], [10.5], [9.0], [20.0]])  # distances to code 1: 4, 0.5, 1
    residuals = torch.stack([last, last], dim=1)
    resolved = _resolve(codes, residuals, codebooks, modality="text")
    # item 1 keeps (0, 1); item 0 asks 2 (taken by item 3), then 0, but item 2 asks 0 first, in an earlier round
    assert resolved.tolist() == [[0, 3], [0, 1], [0, 0], [0, 2]]


def test_a_full_prefix_moves_to_the_next_nearest_code_of_the_level_before() -> None:
    """Three items under a prefix with two codes: the odd one goes to the nearest other prefix."""
    codebooks = torch.tensor([[[0.0], [5.0], [50.0]][:2], [[0.0], [1.0]]])
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    first = torch.tensor([[0.1], [0.2], [1.0]])
    residuals = torch.stack([first, first], dim=1)
    resolved = _resolve(codes, residuals, codebooks, modality="text")
    assert resolved[0].tolist() == [0, 0]
    assert resolved[2].tolist() == [0, 1]
    assert resolved[1].tolist() == [1, 0], "0.2 - 5 is nearest to code 0 of the last level"


def test_no_room_is_an_error_that_says_what_to_raise() -> None:
    """Five items cannot have IDs of two codes with two values each."""
    codes = np.zeros((5, 2), dtype=np.int64)
    with pytest.raises(SemanticIdError, match=r"1 of 5 items have no free text ID.*codebook_size"):
        resolve_given_ids(codes, codes, codebook_size=2)


@settings(max_examples=60, deadline=None)
@given(
    codes=st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=30).map(np.array),
)
def test_given_ids_become_unique_and_move_as_little_as_needed(codes: np.ndarray) -> None:
    """Every ID ends distinct and in range; the first owner of each ID keeps it; the first level never moves."""
    ids = resolve_given_ids(codes, codes[:, ::-1].copy(), codebook_size=4)
    for before, after, moved in (
        (codes, ids.text_codes, ids.text_moved),
        (codes[:, ::-1], ids.image_codes, ids.image_moved),
    ):
        assert collision_rate(after) == 0
        assert after.min() >= 0
        assert after.max() < 4
        _, owners = np.unique(before, axis=0, return_index=True)
        assert not moved[owners].any()
        np.testing.assert_array_equal(after[:, 0], before[:, 0])
        np.testing.assert_array_equal(moved, (before != after).any(axis=1))
    assert ids.collision_rate["text"]["after"] == 0
    assert ids.collision_rate["text"]["before"] == pytest.approx(1 - len(np.unique(codes, axis=0)) / len(codes))


def test_usage_and_perplexity_by_hand() -> None:
    """Even use of two codes has perplexity two, a collapsed level one."""
    usage = code_usage(np.array([[0, 2], [1, 2], [0, 2], [1, 2]]), codebook_size=3)
    assert usage.tolist() == [[2, 2, 0], [0, 0, 4]]
    assert perplexity(usage).tolist() == pytest.approx([2.0, 1.0])
