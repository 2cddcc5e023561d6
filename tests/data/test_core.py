"""The k-core against the definition, and its speed."""

import time

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.data.core import iterate_k_core


def _core(rows: list[tuple[str, str]], k: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Rows that are left, and (user, reason) of those that went."""
    left = pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String}, orient="row")
    gone: list[tuple[str, str]] = []
    for dropped, kept in iterate_k_core(left, k_core=k):
        gone += dropped.select("user_id", "reason").rows()
        left = kept
    return left.rows(), gone


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


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("uvwxy"), st.sampled_from("abcdef")), max_size=40),
    st.integers(1, 4),
)
def test_the_core_is_that_of_the_definition(rows: list[tuple[str, str]], k: int) -> None:
    """Peeling in rounds ends at the same rows as removing them one by one; no row is lost on the way."""
    left, gone = _core(rows, k)
    assert left == _by_definition(rows, k)
    assert len(left) + len(gone) == len(rows)


def test_a_chain_falls_to_the_last_link() -> None:
    """Rounds go on until nothing changes: each user's fall takes the next item away."""
    chain = [(f"u{n}", f"i{n + m}") for n in range(20) for m in range(3)]
    left, gone = _core(chain, 3)
    assert left == []
    assert len(gone) == 60


@pytest.mark.parametrize(("k", "reason"), [(1, "too_short"), (2, "too_short"), (3, "k_core")])
def test_users_need_three_interactions(k: int, reason: str) -> None:
    """Leave-one-out needs three, whatever the k-core; the reason says who asked."""
    solid = [(user, item) for user in ("v", "w", "x") for item in "abc"]
    left, gone = _core([("u", "a"), ("u", "b"), *solid], k)
    assert left == solid
    assert gone == [("u", reason)] * 2


def test_a_hundred_thousand_rows_take_a_moment() -> None:
    """The core of 100,000 rows is well below a second."""
    draw = np.random.default_rng(0)
    users, items = draw.zipf(1.3, 100_000) % 9000, draw.zipf(1.3, 100_000) % 5000
    rows = pl.DataFrame({"user_id": users, "item_id": items}).cast(pl.String)
    begin = time.perf_counter()
    rounds = sum(1 for _ in iterate_k_core(rows, k_core=5))
    assert rounds > 1
    assert time.perf_counter() - begin < 1.0
