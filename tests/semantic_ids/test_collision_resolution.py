"""Collision resolution: cases worked out by hand, comparison with a plain loop, and the error when there is no room."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.semantic_ids.collision_resolution import resolve_collisions
from macrec_pipeline.semantic_ids.residual_quantizer import nearest_codes, squared_distances


def test_the_nearest_item_keeps_the_id_and_the_others_get_the_next_free_code() -> None:
    """Three items share (0, 1): the nearest keeps it, and the others get the next-nearest codes that are free."""
    codebooks = torch.tensor([[[0.0], [100.0]], [[0.0], [10.0]]])
    codebooks = torch.cat([codebooks, torch.tensor([[[200.0], [300.0]], [[20.0], [30.0]]])], dim=1)
    codes = np.array([[0, 1], [0, 1], [0, 1], [0, 2]])
    last = torch.tensor([[14.0], [10.5], [9.0], [20.0]])  # distances to code 1: 4, 0.5, 1
    residuals = torch.stack([last, last], dim=1)
    resolved = resolve_collisions(codes, residuals, codebooks, modality="text")
    # Item 1 keeps (0, 1). Item 0 proposes 2, which item 3 has, and then 0, which item 2 got in an earlier round.
    assert resolved.tolist() == [[0, 3], [0, 1], [0, 0], [0, 2]]


def test_an_item_under_a_full_prefix_moves_at_the_second_last_level() -> None:
    """Three items share a prefix that has room for two: one of them moves to the nearest other prefix."""
    codebooks = torch.tensor([[[0.0], [5.0], [50.0]][:2], [[0.0], [1.0]]])
    codes = np.array([[0, 0], [0, 0], [0, 1]])
    first = torch.tensor([[0.1], [0.2], [1.0]])
    residuals = torch.stack([first, first], dim=1)
    resolved = resolve_collisions(codes, residuals, codebooks, modality="text")
    assert resolved[0].tolist() == [0, 0]
    assert resolved[2].tolist() == [0, 1]
    assert resolved[1].tolist() == [1, 0], "0.2 - 5 is nearest to code 0 of the last level"


def test_occupied_ids_are_given_to_no_item() -> None:
    """(0, 1) and (0, 2) are occupied: the nearer of two items gets the nearest free code, the other one the rest."""
    codebooks = torch.tensor([[[0.0], [100.0], [200.0], [300.0]], [[0.0], [10.0], [20.0], [30.0]]])
    last = torch.tensor([[14.0], [11.0]])
    occupied = np.array([[0, 1], [0, 2], [3, 3]])
    nearest = np.array([[0, 1], [0, 1]])
    residuals = torch.stack([last, last], dim=1)
    resolved = resolve_collisions(nearest, residuals, codebooks, modality="text", occupied=occupied)
    # Both propose 2 after 1, which is occupied too, and then 0, at distances 14 and 11: item 1 is nearer.
    assert resolved.tolist() == [[0, 3], [0, 0]]


def test_a_prefix_full_of_occupied_ids_is_left_for_the_next_one() -> None:
    """If both codes under prefix 0 and one under prefix 1 are occupied, the item gets the only ID that is free."""
    codebooks = torch.tensor([[[0.0], [5.0]], [[0.0], [1.0]]])
    residuals = torch.tensor([[[0.2], [0.2]]])
    occupied = np.array([[0, 0], [0, 1], [1, 0]])
    resolved = resolve_collisions(np.array([[0, 0]]), residuals, codebooks, modality="text", occupied=occupied)
    assert resolved.tolist() == [[1, 1]]


def test_the_error_without_a_free_id_says_what_to_do() -> None:
    """Every ID is occupied."""
    codebooks = torch.tensor([[[0.0], [5.0]], [[0.0], [1.0]]])
    occupied = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    with pytest.raises(
        SemanticIdError, match=r"1 of 1 items.*4 IDs belong to other items or are retired.*identity\.mode=new"
    ):
        resolve_collisions(np.array([[0, 0]]), torch.zeros(1, 2, 1), codebooks, modality="text", occupied=occupied)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), independent=st.booleans(), tied=st.booleans())
def test_array_rounds_give_the_ids_of_a_plain_loop(seed: int, independent: bool, tied: bool) -> None:
    """Rounds of array operations and a loop over items agree, also with equal codes, equal items and full prefixes."""
    draw = torch.Generator().manual_seed(seed)
    num_levels, size, count = 3, 4, 40
    codebooks = torch.randn(num_levels, size, 2, generator=draw)
    if tied:
        codebooks[:, 2:] = 0  # dead codes
    latents = torch.randn(10, 2, generator=draw)[torch.randint(10, (count,), generator=draw)]
    codes, level_inputs = [], [latents]
    for codebook in codebooks:
        codes.append(nearest_codes(level_inputs[-1], codebook))
        level_inputs.append(level_inputs[-1] - codebook[codes[-1]])
    second_last, last = level_inputs[1], level_inputs[2]
    matrix, residuals = torch.stack(codes, dim=1).numpy(), torch.stack([second_last, last], dim=1)
    try:
        resolved = resolve_collisions(matrix, residuals, codebooks, modality="text", independent_levels=independent)
    except SemanticIdError:
        resolved = None
    expected = _resolve_one_by_one(matrix, second_last, last, codebooks, independent=independent)
    assert (None if resolved is None else resolved.tolist()) == expected


def _resolve_one_by_one(
    codes: np.ndarray, second_last: torch.Tensor, last: torch.Tensor, codebooks: torch.Tensor, *, independent: bool
) -> list[list[int]] | None:
    """Resolve collisions by a loop over items; return None if an item finds no ID."""
    ids, taken, size = codes.tolist(), set(), codebooks.shape[1]
    waiting = list(range(len(ids)))
    alternatives = squared_distances(second_last, codebooks[-2])
    for move in range(size):
        level_input = {item: last[item] for item in waiting}
        if move:
            for item in waiting:
                ids[item][-2] = int(alternatives[item].argsort(stable=True)[move])
                if not independent:
                    level_input[item] = second_last[item] - codebooks[-2][ids[item][-2]]
        if not waiting:
            return ids
        stacked = torch.stack(list(level_input.values()))
        distances = dict(zip(waiting, squared_distances(stacked, codebooks[-1]), strict=True))
        for rank in range(size):
            proposals: dict[tuple[int, ...], list[int]] = {}
            for item in waiting:
                key = (*ids[item][:-1], int(distances[item].argsort(stable=True)[rank]))
                proposals.setdefault(key, []).append(item)
            for key, rivals in proposals.items():
                if key not in taken:
                    winner = min(rivals, key=lambda item: (float(distances[item][key[-1]]), item))
                    ids[winner][-1] = key[-1]
                    taken.add(key)
                    waiting.remove(winner)
    return None if waiting else ids
