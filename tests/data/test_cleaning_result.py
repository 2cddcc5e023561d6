"""The log as numbers: in batches and slices of any size, from a table or a scan, the same tables come out."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean, duplicates, encoded_log, k_core, user_slices
from macrec_pipeline.data.cleaning.user_slices import order_of
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.schemas import INTERACTIONS, RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000
_DAY = 86_400_000


def _raw(rows: int, *, files_in_order: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log with every reason in it, few users and items, many equal times."""
    draw = np.random.default_rng(rows)

    def some(values: np.ndarray) -> list[object]:
        return [
            None if missing else value for value, missing in zip(values.tolist(), draw.random(rows) < 0.03, strict=True)
        ]

    files = draw.integers(0, 2, rows)
    log = {
        "user_id": some(np.array([f"u{user}" if user else "" for user in draw.integers(0, 15, rows)])),
        "item_id": some(np.array([f"i{item}" for item in draw.integers(0, 12, rows)])),
        "rating": some(draw.choice([1.0, 2.0, 5.0, math.nan], rows)),
        "timestamp": some(_NOW + _DAY * draw.integers(-6, 1, rows)),
        "source_file": [f"log-{file}.csv" for file in (np.sort(files) if files_in_order else files)],
        "source_row": range(rows),
        "problem": [
            None if row % 29 else f"wrong_type: row {row}" if row % 2 else "invalid_json" for row in range(rows)
        ],
    }
    ids = [f"i{item}" for item in range(10)]
    items = dict.fromkeys(RAW_ITEMS.columns) | {"item_id": ids, "title": ids, "source_file": "items.csv"}
    raw_items = pl.DataFrame(items | {"source_row": range(10)}, schema=RAW_ITEMS.columns)
    return pl.DataFrame(log, schema=RAW_INTERACTIONS.columns), raw_items


@pytest.mark.parametrize("files_in_order", [True, False])
@pytest.mark.parametrize("policy", ["first", "last", "keep"])
@pytest.mark.parametrize("ties", ["item_id", "position"])
@pytest.mark.parametrize("gap", [None, 2 * _DAY / 60_000])
@pytest.mark.parametrize("at_once", [1, 7, 64])
def test_the_size_of_the_parts_changes_nothing(
    at_once: int, gap: float | None, ties: str, policy: str, files_in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that split users and repeated rows give what one batch gives, whether read from a table or a scan."""
    raw, items = _raw(300, files_in_order=files_in_order)
    config = CleaningConfig(
        k_core=3, max_quarantined_share=1, min_rating=2.0, duplicates=policy, ties=ties, session_gap_minutes=gap
    )
    whole = clean(raw, items, config, latest=_NOW)
    histories = build_histories(whole.interactions, whole.items)
    for module, name in (
        (encoded_log, "_BATCH"),
        (user_slices, "_ROWS_A_SLICE"),
        (k_core, "_ROWS_AT_ONCE"),
        (duplicates, "_ROWS_AT_ONCE"),
    ):
        monkeypatch.setattr(module, name, at_once)
    for source in (raw, raw.lazy()):
        parts = clean(source, items, config, latest=_NOW)
        assert parts.interactions.equals(whole.interactions)
        assert parts.items.equals(whole.items)
        assert parts.quarantine.equals(whole.quarantine)
    assert build_histories(whole.interactions.lazy(), whole.items).equals(histories)
    assert INTERACTIONS.check(whole.interactions).height > 20
    assert whole.quarantine["reason"].n_unique() > 8


@pytest.mark.parametrize("gap", [None, 2 * _DAY / 60_000])
@pytest.mark.parametrize("policy", ["first", "last", "keep"])
def test_lines_in_order_and_shuffled_keep_their_positions(policy: str, gap: float | None) -> None:
    """With ties by position a row's file and line count, not where the raw table happens to have it."""
    raw, items = _raw(300, files_in_order=True)
    config = CleaningConfig(
        k_core=3, max_quarantined_share=1, duplicates=policy, ties="position", session_gap_minutes=gap
    )
    in_order, shuffled = (
        clean(log, items, config, latest=_NOW) for log in (raw, raw.sample(fraction=1.0, shuffle=True, seed=3))
    )
    assert in_order.interactions.equals(shuffled.interactions)
    assert in_order.quarantine.equals(shuffled.quarantine)


def test_the_facts_are_those_of_the_tables() -> None:
    """What the log says of itself is what counting its tables says."""
    raw, items = _raw(300, files_in_order=True)
    from macrec_pipeline.data.cleaning.clean import clean_log as decide

    log = decide(
        raw.lazy(),
        items,
        CleaningConfig(k_core=3, max_quarantined_share=1, session_gap_minutes=2 * _DAY / 60_000),
        latest=_NOW,
    )
    table, dropped = pl.concat(log.interactions()), pl.concat(log.quarantine())
    assert log.num_kept == table.height
    assert log.interactions_of_user().tolist() == table.group_by("user_id").len().sort("user_id")["len"].to_list()
    assert log.period() == (table["timestamp"].min(), table["timestamp"].max())
    counted = dropped.group_by("table", "reason").len().rows()
    assert sorted(log.reasons()) == sorted(counted)
    assert log.reasons()[0][2] == max(count for table_name, _, count in counted if table_name == "raw_interactions")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 3), st.sampled_from([1.0, 2.0, math.nan])),
        max_size=30,
    ),
    unit=st.sampled_from([1, 999, 1000, _DAY]),
    far=st.sampled_from([0, 2**31, 2**61]),
)
def test_the_order_is_by_user_time_item_and_rating(
    rows: list[tuple[int, int, int, float]], unit: int, far: int
) -> None:
    """Whatever fits into one integer, and whatever ties: the order of a plain sort, ratings that are missing last."""
    users, times, items, ratings = (np.array([row[place] for row in rows]) for place in range(4))
    times = times.astype(np.int64) * unit + np.where(times == 4, far, 0)
    order = order_of(users.astype(np.uint32), times, items.astype(np.uint32), ratings.astype(np.float64))
    key = [(users[row], times[row], items[row], math.isnan(ratings[row]), ratings[row]) for row in range(len(rows))]
    plain = sorted(range(len(rows)), key=lambda row: [0 if value != value else value for value in key[row]])
    assert sorted(order.tolist()) == list(range(len(rows)))
    assert [repr(key[row]) for row in order] == [repr(key[row]) for row in plain]
