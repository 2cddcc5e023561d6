"""Histories: each user's interactions in the order of time."""

import polars as pl
import pytest

from macrec_pipeline.data.cleaning.clean import encoded_log
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.errors import SchemaError
from macrec_pipeline.schemas import INTERACTIONS


def _interactions(rows: list[tuple[str, str, int]]) -> pl.DataFrame:
    full = [(user, item, None, stamp) for user, item, stamp in rows]
    return pl.DataFrame(full, schema=INTERACTIONS.columns, orient="row")


_ITEMS = pl.DataFrame({"item_id": ["1", "10", "2"], "item_index": [0, 1, 2]})


def test_histories_worked_out_by_hand() -> None:
    """Oldest first, equal times as the table has them, users in the order of user_id, repeats kept."""
    rows = [("u", "2", 7), ("u", "10", 7), ("u", "1", 9), ("v", "1", 3), ("v", "2", 4), ("v", "2", 5)]
    histories = build_histories(_interactions(rows), _ITEMS)
    assert histories.rows() == [(0, "u", [2, 1, 0], [7, 7, 9], True), (1, "v", [0, 2, 2], [3, 4, 5], True)]


@pytest.mark.parametrize("size", [1, 100])
@pytest.mark.parametrize(
    "rows",
    [
        [("u", "2", 7), ("u", "10", 6)],
        [("u", "2", 7), ("v", "2", 8), ("v", "1", 9), ("u", "1", 9)],
        [("v", "2", 7), ("u", "2", 8)],
    ],
    ids=["back in time", "a user again", "users"],
)
def test_interactions_out_of_order_are_refused(
    rows: list[tuple[str, str, int]], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of the table is that of the history, so one that goes back is none of cleaning's; nor is a scan."""
    monkeypatch.setattr(encoded_log, "_BATCH", size)
    table = _interactions(rows)
    for source in (table, table.lazy()):
        with pytest.raises(
            SchemaError, match=r"interactions \(for histories\): rows must be sorted by user_id, timestamp"
        ):
            build_histories(source, _ITEMS)


def test_an_item_outside_the_catalogue_is_refused() -> None:
    """The message names the item and the user."""
    with pytest.raises(SchemaError, match="item 'x' of user 'u' is not in items"):
        build_histories(_interactions([("u", "x", 1)]), _ITEMS)
