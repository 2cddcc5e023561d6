"""Histories: each user's interactions in chronological order."""

import polars as pl
import pytest

from macrec_pipeline.data.cleaning import encoded_log
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import INTERACTIONS


def _interactions(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    full = [(user, item, None, time) for user, item, time in rows]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row")


_ITEMS = pl.DataFrame({"item_id": ["1", "10", "2"], "item_index": [0, 1, 2]})


def test_histories_worked_out_by_hand() -> None:
    """Items are oldest first and keep the table's order at equal times; users are sorted; repeats are kept."""
    rows = [("u", "2", 7), ("u", "10", 7), ("u", "1", 9), ("v", "1", 3), ("v", "2", 4), ("v", "2", 5)]
    histories = build_histories(_interactions(rows), _ITEMS)
    assert histories.rows() == [(0, "u", [2, 1, 0], [7, 7, 9], True), (1, "v", [0, 2, 2], [3, 4, 5], True)]


@pytest.mark.parametrize("batch_rows", [1, 100])
@pytest.mark.parametrize(
    "rows",
    [
        [("u", "2", 7), ("u", "10", 6)],
        [("u", "2", 7), ("v", "2", 8), ("v", "1", 9), ("u", "1", 9)],
        [("v", "2", 7), ("u", "2", 8)],
    ],
    ids=["time goes back", "user in two places", "users not sorted"],
)
def test_interactions_out_of_order_are_rejected(
    rows: list[tuple[str, str, int]], batch_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Histories take the order of the table, so a table or scan that is not sorted is an error, in any batch size."""
    monkeypatch.setattr(encoded_log, "_BATCH_ROWS", batch_rows)
    table = _interactions(rows)
    for source in (table, table.lazy()):
        with pytest.raises(
            SchemaError, match=r"interactions \(for histories\): rows must be sorted by user_id, timestamp"
        ):
            build_histories(source, _ITEMS)


def test_an_item_outside_the_catalogue_is_rejected() -> None:
    """The error names the item and the user."""
    with pytest.raises(SchemaError, match="item 'x' of user 'u' is not in items"):
        build_histories(_interactions([("u", "x", 1)]), _ITEMS)
