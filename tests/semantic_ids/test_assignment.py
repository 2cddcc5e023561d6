"""Collision resolution: by hand, by property, and the error when there is no room."""

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids import (
    code_usage,
    collision_rate,
    perplexity,
    resolve_given_ids,
    semantic_id_problems,
)
from macrec_pipeline.semantic_ids.assignment import resolve
from macrec_pipeline.semantic_ids.diagnostics import row_keys
from macrec_pipeline.semantic_ids.residual_quantizer import nearest_codes, squared_distances


def test_the_nearest_keeps_the_id_and_the_others_take_the_next_free_code() -> None:
    """Three items share (0, 1): the nearest stays, the others get the next-nearest codes that are free."""
    codebooks = torch.tensor([[[0.0], [100.0]], [[0.0], [10.0]]])
    codebooks = torch.cat([codebooks, torch.tensor([[[200.0], [300.0]], [[20.0], [30.0]]])], dim=1)
    codes = np.array([[0, 1], [0, 1], [0, 1], [0, 2]])
    last = torch.tensor([[14.0], [10.5], [9.0], [20.0]])  # distances to code 1: 4, 0.5, 1
    residuals = torch.stack([last, last], dim=1)
    resolved = resolve(codes, residuals, codebooks, modality="text")
    # item 1 keeps (0, 1); item 0 asks 2 (taken by item 3), then 0, but item 2 asks 0 first, in an earlier round
    assert resolved.tolist() == [[0, 3], [0, 1], [0, 0], [0, 2]]


def test_a_full_prefix_moves_to_the_next_nearest_code_of_the_level_before() -> None:
    """Three items under a prefix with two codes: the odd one goes to the nearest other prefix."""
    codebooks = torch.tensor([[[0.0], [5.0], [50.0]][:2], [[0.0], [1.0]]])
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    first = torch.tensor([[0.1], [0.2], [1.0]])
    residuals = torch.stack([first, first], dim=1)
    resolved = resolve(codes, residuals, codebooks, modality="text")
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


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, 2**40), min_size=3, max_size=3), min_size=1, max_size=20),
    scale=st.sampled_from([1, 2**22]),
)
def test_row_keys_are_equal_and_in_order_where_rows_are(rows: list[list[int]], scale: int) -> None:
    """Also where the columns together are too wide for one integer."""
    matrix = np.array(rows + rows[:1]) // scale
    keys = row_keys(matrix)
    tuples = [tuple(row) for row in matrix.tolist()]
    for a, first in enumerate(tuples):
        for b, second in enumerate(tuples):
            assert (keys[a] < keys[b], keys[a] == keys[b]) == (first < second, first == second)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), independent=st.booleans(), tied=st.booleans())
def test_rounds_are_those_of_asking_one_by_one(seed: int, independent: bool, tied: bool) -> None:
    """Array by array or item by item, with equal codes, equal items and full prefixes: the same IDs."""
    draw = torch.Generator().manual_seed(seed)
    num_levels, size, count = 3, 4, 40
    books = torch.randn(num_levels, size, 2, generator=draw)
    if tied:
        books[:, 2:] = 0  # dead codes
    latents = torch.randn(10, 2, generator=draw)[torch.randint(10, (count,), generator=draw)]
    codes, entering = [], [latents]
    for book in books:
        codes.append(nearest_codes(entering[-1], book))
        entering.append(entering[-1] - book[codes[-1]])
    before, last = entering[1], entering[2]
    matrix, residuals = torch.stack(codes, dim=1).numpy(), torch.stack([before, last], dim=1)
    try:
        found = resolve(matrix, residuals, books, modality="text", independent=independent)
    except SemanticIdError:
        found = None
    expected = _one_by_one(matrix, before, last, books, independent=independent)
    assert (None if found is None else found.tolist()) == expected


def _one_by_one(
    codes: np.ndarray, before: torch.Tensor, last: torch.Tensor, books: torch.Tensor, *, independent: bool
) -> list[list[int]] | None:
    ids, taken, size = codes.tolist(), set(), books.shape[1]
    waiting = list(range(len(ids)))
    alternatives = squared_distances(before, books[-2])
    for move in range(size):
        entering = {item: last[item] for item in waiting}
        if move:
            for item in waiting:
                ids[item][-2] = int(alternatives[item].argsort(stable=True)[move])
                if not independent:
                    entering[item] = before[item] - books[-2][ids[item][-2]]
        if not waiting:
            return ids
        distances = dict(zip(waiting, squared_distances(torch.stack(list(entering.values())), books[-1]), strict=True))
        for rank in range(size):
            asking: dict[tuple[int, ...], list[int]] = {}
            for item in waiting:
                key = (*ids[item][:-1], int(distances[item].argsort(stable=True)[rank]))
                asking.setdefault(key, []).append(item)
            for key, rivals in asking.items():
                if key not in taken:
                    winner = min(rivals, key=lambda item: (float(distances[item][key[-1]]), item))
                    ids[winner][-1] = key[-1]
                    taken.add(key)
                    waiting.remove(winner)
    return None if waiting else ids


def test_ids_may_lack_a_modality_but_not_some_items_of_one() -> None:
    """A modality that nothing has is none of the catalogue's; one that some lack, or no modality at all, is a fault."""

    def problems(text: list[list[int] | None], image: list[list[int] | None]) -> list[str]:
        codes = {"text_codes": text, "image_codes": image}
        return semantic_id_problems(pl.DataFrame(codes, schema=dict.fromkeys(codes, pl.List(pl.Int64))))

    assert problems([[0, 1], [1, 1]], [None, None]) == []
    assert problems([[0, 1], [1, 1]], [None, [0, 0]]) == ["1 of 2 items have no image ID."]
    assert problems([None, None], [None, None]) == ["No item has an ID in any modality."]
    assert problems([[0, 1], [0, 1]], [None, None]) == ["2 of 2 items share their text ID with another item."]
