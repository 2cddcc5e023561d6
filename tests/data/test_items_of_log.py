"""Items of a log without a catalogue: the first interaction of each, whatever the parts."""

import polars as pl
import pytest

from macrec_pipeline.data.readers.items_of_log import items_of_log
from macrec_pipeline.data.readers.reader import raw_table
from macrec_pipeline.schemas import RAW_INTERACTIONS


@pytest.mark.parametrize("size", [1, 2, 9])
def test_each_item_is_listed_once_in_the_order_of_its_first_interaction(size: int) -> None:
    """Items that return in a later part are not listed again, and a row without an item lists none."""
    ids = ["b", "a", "b", None, "c", "a", "d", "b", "d"]
    columns = pl.DataFrame({"user_id": "u", "item_id": ids, "timestamp": 0}, schema_overrides={"item_id": pl.String})
    log = raw_table(RAW_INTERACTIONS, columns, file="log")
    items = items_of_log((log[start : start + size] for start in range(0, 9, size)), "log")
    expected = [("b", "b", 1), ("a", "a", 2), ("c", "c", 5), ("d", "d", 7)]
    assert items.select("item_id", "title", "source_row").rows() == expected
    assert items_of_log([], "log").is_empty()
