"""The k-core agrees with its definition."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.cleaning import k_core
from macrec_pipeline.data.cleaning.k_core import iterate_k_core


def _core(rows: list[tuple[str, str]], k: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the rows of the k-core and the users of the removed rows."""
    users, items = (_numbers([row[column] for row in rows]) for column in (0, 1))
    active = np.ones(len(rows), dtype=bool)
    removed: list[str] = []
    for number, k_core_round in enumerate(iterate_k_core(users, items, active, k_core=k), start=1):
        assert k_core_round.number == number
        removed += [rows[row][0] for row in k_core_round.rows]
    return [row for row, is_active in zip(rows, active, strict=True) if is_active], removed


def _numbers(ids: list[str]) -> np.ndarray:
    names = sorted(set(ids))
    return np.array([names.index(name) for name in ids], dtype=np.uint32)


def _by_definition(rows: list[tuple[str, str]], k: int) -> list[tuple[str, str]]:
    """Remove one row with a weak user or item at a time until there is none."""
    rows = list(rows)
    while True:
        users = [user for user, _ in rows]
        items = [item for _, item in rows]
        bad = [row for row in rows if users.count(row[0]) < max(k, 3) or items.count(row[1]) < k]
        if not bad:
            return rows
        rows.remove(bad[0])


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdef")), max_size=40),
    st.integers(1, 4),
    st.integers(1, 50),
)
def test_the_core_agrees_with_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], k: int, chunk_rows: int
) -> None:
    """Removing rows in rounds leaves the same rows as removing them one by one, and accounts for every row."""
    monkeypatch.setattr(k_core, "_CHUNK_ROWS", chunk_rows)
    kept, removed = _core(rows, k)
    assert kept == _by_definition(rows, k)
    assert len(kept) + len(removed) == len(rows)


def test_rounds_continue_until_nothing_changes() -> None:
    """In a chain of users, each removed user makes the next item too rare, until all rows are gone."""
    chain = [(f"u{n}", f"i{n + m}") for n in range(20) for m in range(3)]
    kept, removed = _core(chain, 3)
    assert kept == []
    assert len(removed) == 60


@pytest.mark.parametrize("k", [1, 2, 3])
def test_users_need_three_interactions(k: int) -> None:
    """Leave-one-out needs three, however small k is."""
    core = [(user, item) for user in ("v", "w", "x") for item in "abc"]
    kept, removed = _core([("u", "a"), ("u", "b"), *core], k)
    assert kept == core
    assert removed == ["u", "u"]


def test_a_round_records_the_counts_at_its_start() -> None:
    """In the second round, item b has one interaction left, because u's was removed in the first."""
    rows = [("u", "a"), ("u", "b"), ("v", "a"), ("v", "c"), ("v", "b"), ("w", "a"), ("w", "c"), ("w", "d"), ("x", "d")]
    users, items = _numbers([user for user, _ in rows]), _numbers([item for _, item in rows])
    rounds = list(iterate_k_core(users, items, np.ones(len(rows), dtype=bool), k_core=2))
    assert rounds[0].rows.tolist() == [0, 1, 8]
    assert rounds[0].user_counts.tolist() == [2, 2, 1]
    assert rounds[0].item_counts.tolist() == [3, 2, 2]
    assert rounds[1].rows.tolist() == [4, 7], "b and d are left with one interaction each"
    assert rounds[1].item_counts.tolist() == [1, 1]
    assert [rows[row] for row in rounds[2].rows] == [("v", "a"), ("v", "c"), ("w", "a"), ("w", "c")]


def test_inactive_rows_are_ignored() -> None:
    """A row that was dropped earlier neither counts for its user nor is removed again."""
    users, items = np.zeros(3, dtype=np.uint32), np.arange(3, dtype=np.uint32)
    active = np.array([True, True, False])
    (only_round,) = iterate_k_core(users, items, active, k_core=1)
    assert only_round.rows.tolist() == [0, 1]
