"""The result of cleaning: it does not depend on batch sizes or on the order of lines, and its facts are correct."""

import math

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning import duplicates as duplicates_module
from macrec_pipeline.data.cleaning import encoded_log, k_core
from macrec_pipeline.data.cleaning.clean import clean, clean_log
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.runtime.time_units import DAY_MS, MINUTE_MS
from macrec_pipeline.schemas import INTERACTIONS, RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000
_GAP_MINUTES = 2 * DAY_MS / MINUTE_MS


def _raw_tables(rows: int, *, files_in_order: bool) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Draw a log with few users and items, many equal times and every reason for quarantine, and a catalogue."""
    draw = np.random.default_rng(rows)

    def with_nulls(values: np.ndarray) -> list[object]:
        return [
            None if missing else value for value, missing in zip(values.tolist(), draw.random(rows) < 0.03, strict=True)
        ]

    files = draw.integers(0, 2, rows)
    log = {
        "user_id": with_nulls(np.array([f"u{user}" if user else "" for user in draw.integers(0, 15, rows)])),
        "item_id": with_nulls(np.array([f"i{item}" for item in draw.integers(0, 12, rows)])),
        "rating": with_nulls(draw.choice([1.0, 2.0, 5.0, math.nan], rows)),
        "timestamp": with_nulls(_NOW + DAY_MS * draw.integers(-6, 1, rows)),
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
@pytest.mark.parametrize("ties", ["hash", "item_id", "position"])
@pytest.mark.parametrize("gap", [None, _GAP_MINUTES])
@pytest.mark.parametrize("batch_rows", [1, 7, 64])
def test_the_batch_size_does_not_change_the_result(
    batch_rows: int, gap: float | None, ties: str, policy: str, files_in_order: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches that separate a user's rows or duplicates give the same tables as one batch, from a table or a scan."""
    raw, items = _raw_tables(300, files_in_order=files_in_order)
    config = CleaningConfig(
        k_core=3, max_quarantined_share=1, min_rating=2.0, duplicates=policy, ties=ties, session_gap_minutes=gap
    )
    whole = clean(raw, items, config, latest=_NOW)
    histories = build_histories(whole.interactions, whole.items)
    for module, name in (
        (encoded_log, "_BATCH_ROWS"),
        (encoded_log, "_SLICE_ROWS"),
        (k_core, "_CHUNK_ROWS"),
        (duplicates_module, "_CHUNK_ROWS"),
    ):
        monkeypatch.setattr(module, name, batch_rows)
    for source in (raw, raw.lazy()):
        parts = clean(source, items, config, latest=_NOW)
        assert parts.interactions.equals(whole.interactions)
        assert parts.items.equals(whole.items)
        assert parts.quarantine.equals(whole.quarantine)
    assert build_histories(whole.interactions.lazy(), whole.items).equals(histories)
    assert INTERACTIONS.check(whole.interactions).height > 20
    assert whole.quarantine["reason"].n_unique() > 8


@pytest.mark.parametrize("gap", [None, _GAP_MINUTES])
@pytest.mark.parametrize("policy", ["first", "last", "keep"])
def test_positions_are_those_of_the_source(policy: str, gap: float | None) -> None:
    """With `ties: position`, a row's file and line decide, not its place in the raw table."""
    raw, items = _raw_tables(300, files_in_order=True)
    config = CleaningConfig(
        k_core=3, max_quarantined_share=1, duplicates=policy, ties="position", session_gap_minutes=gap
    )
    in_order, shuffled = (
        clean(log, items, config, latest=_NOW) for log in (raw, raw.sample(fraction=1.0, shuffle=True, seed=3))
    )
    assert in_order.interactions.equals(shuffled.interactions)
    assert in_order.quarantine.equals(shuffled.quarantine)


def test_the_facts_agree_with_the_tables() -> None:
    """Each fact about the result equals what counting in its tables gives."""
    raw, items = _raw_tables(300, files_in_order=True)
    config = CleaningConfig(k_core=3, max_quarantined_share=1, session_gap_minutes=_GAP_MINUTES)
    result = clean_log(raw.lazy(), items, config, latest=_NOW)
    table, quarantine = pl.concat(result.interactions()), pl.concat(result.quarantine())
    assert result.num_interactions == table.height
    assert result.interactions_per_user().tolist() == table.group_by("user_id").len().sort("user_id")["len"].to_list()
    assert result.period() == (table["timestamp"].min(), table["timestamp"].max())
    counted = quarantine.group_by("table", "reason").len().rows()
    assert sorted(result.quarantine_counts()) == sorted(counted)
    assert result.quarantine_counts()[0][2] == max(
        count for table_name, _, count in counted if table_name == "raw_interactions"
    )
