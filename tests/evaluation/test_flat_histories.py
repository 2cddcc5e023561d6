"""Flat histories and padded lists, compared with plain Python lists."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macrec_pipeline.errors import DataError
from macrec_pipeline.evaluation.flat_histories import flat_histories, padded_lists

ITEM_LISTS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=7), min_size=1, max_size=6)


def _table(items: list[list[int]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"user_index": range(len(items)), "item_indices": items},
        schema={"user_index": pl.Int64, "item_indices": pl.List(pl.Int64)},
    )


@given(items=ITEM_LISTS, dropped=st.integers(1, 3), recent=st.integers(1, 5))
def test_flat_histories_slice_like_lists(items: list[list[int]], dropped: int, recent: int) -> None:
    """Targets, `[:-n]` and the most recent inputs agree with plain lists, for histories of any length."""
    flat = flat_histories(_table(items), num_items=10)
    assert flat.targets.tolist() == [row[-1] for row in items]
    users, left = flat.without_last(dropped)
    expected = [(user, item) for user, row in enumerate(items) for item in row[:-dropped]]
    assert list(zip(users.tolist(), left.tolist(), strict=True)) == expected
    newest = [(row[:-1][::-1][:recent] + [-1] * recent)[:recent] for row in items]
    assert flat.most_recent_inputs(recent).tolist() == newest


@pytest.mark.parametrize(
    ("items", "message"),
    [([], "has no users"), ([[1], []], "user_index 1 has no items"), ([[1, 10]], "item index 10")],
)
def test_unusable_histories_are_rejected(items: list[list[int]], message: str) -> None:
    """No users, an empty history and an item outside the catalogue each raise an error that names the problem."""
    with pytest.raises(DataError, match=message):
        flat_histories(_table(items), num_items=10)


def test_lists_are_padded_to_the_longest() -> None:
    """Shorter and empty lists are filled with -1."""
    column = pl.Series("item_indices", [[3, 1], [], [2]], dtype=pl.List(pl.Int64))
    assert padded_lists(column, where="here", num_items=5).tolist() == [[3, 1], [-1, -1], [2, -1]]


@pytest.mark.parametrize(
    ("items", "message"),
    [([[1, 2, 1]], "twice"), ([[1, -1]], "item index -1"), ([[1, None]], "1 item indices are null")],
)
def test_invalid_lists_are_rejected(items: list[list[int | None]], message: str) -> None:
    """An item that is repeated, outside the catalogue or null raises an error that names the list."""
    with pytest.raises(DataError, match=f"here.*{message}"):
        padded_lists(pl.Series("item_indices", items, dtype=pl.List(pl.Int64)), where="here", num_items=5)


@given(tested=ITEM_LISTS, others=ITEM_LISTS)
def test_untested_users_are_part_of_the_training_data(tested: list[list[int]], others: list[list[int]]) -> None:
    """The training part is `[:-2]` of test users and `[:-1]` of untested users, who keep separate user numbers."""
    flat = flat_histories(_table(tested), num_items=10, untested=_table(others))
    users, items = flat.training_part()
    parts = [row[:-2] for row in tested] + [row[:-1] for row in others]
    expected = [(user, item) for user, part in enumerate(parts) for item in part]
    assert list(zip(users.tolist(), items.tolist(), strict=True)) == expected
    assert flat.num_users == len(tested)
    assert flat_histories(_table(tested), num_items=10, untested=_table([])).untested is None
