"""The k-core against the definition."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.cleaning.clean import k_core
from macrec_pipeline.data.cleaning.k_core import iterate_k_core


def _core(rows: list[tuple[str, str]], k: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Rows that are left, and the users of those that went."""
    users, items = (_codes([row[place] for row in rows]) for place in (0, 1))
    alive = np.ones(len(rows), dtype=bool)
    gone: list[str] = []
    for number, peeled in enumerate(iterate_k_core(users, items, alive, k_core=k), start=1):
        assert peeled.number == number
        gone += [rows[row][0] for row in peeled.rows]
    return [row for row, stays in zip(rows, alive, strict=True) if stays], gone


def _codes(ids: list[str]) -> np.ndarray:
    names = sorted(set(ids))
    return np.array([names.index(name) for name in ids], dtype=np.uint32)


def _by_definition(rows: list[tuple[str, str]], k: int) -> list[tuple[str, str]]:
    """Remove one offending row at a time until there is none."""
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
def test_the_core_is_that_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, rows: list[tuple[str, str]], k: int, rows_at_once: int
) -> None:
    """Peeling in rounds ends at the same rows as removing them one by one; no row is lost on the way."""
    monkeypatch.setattr(k_core, "_ROWS_AT_ONCE", rows_at_once)
    left, gone = _core(rows, k)
    assert left == _by_definition(rows, k)
    assert len(left) + len(gone) == len(rows)


def test_a_chain_falls_to_the_last_link() -> None:
    """Rounds go on until nothing changes: each user's fall takes the next item away."""
    chain = [(f"u{n}", f"i{n + m}") for n in range(20) for m in range(3)]
    left, gone = _core(chain, 3)
    assert left == []
    assert len(gone) == 60


@pytest.mark.parametrize("k", [1, 2, 3])
def test_users_need_three_interactions(k: int) -> None:
    """Leave-one-out needs three, whatever the k-core."""
    solid = [(user, item) for user in ("v", "w", "x") for item in "abc"]
    left, gone = _core([("u", "a"), ("u", "b"), *solid], k)
    assert left == solid
    assert gone == ["u", "u"]


def test_a_round_tells_what_its_rows_still_had() -> None:
    """In the second round user v has lost item b, which only u and v had."""
    rows = [("u", "a"), ("u", "b"), ("v", "a"), ("v", "c"), ("v", "b"), ("w", "a"), ("w", "c"), ("w", "d"), ("x", "d")]
    users, items = _codes([user for user, _ in rows]), _codes([item for _, item in rows])
    rounds = list(iterate_k_core(users, items, np.ones(len(rows), dtype=bool), k_core=2))
    assert rounds[0].rows.tolist() == [0, 1, 8]
    assert rounds[0].of_user.tolist() == [2, 2, 1]
    assert rounds[0].of_item.tolist() == [3, 2, 2]
    assert rounds[1].rows.tolist() == [4, 7], "b and d are left with one interaction each"
    assert rounds[1].of_item.tolist() == [1, 1]
    assert [rows[row] for row in rounds[2].rows] == [("v", "a"), ("v", "c"), ("w", "a"), ("w", "c")]


def test_rows_that_take_no_part_count_for_nothing() -> None:
    """A row that is out already neither holds its user nor falls again."""
    users, items = np.zeros(3, dtype=np.uint32), np.arange(3, dtype=np.uint32)
    alive = np.array([True, True, False])
    (only,) = iterate_k_core(users, items, alive, k_core=1)
    assert only.rows.tolist() == [0, 1]
