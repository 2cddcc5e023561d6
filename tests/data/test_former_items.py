"""Items that have left the catalogue are remembered, and stay in histories without being listed."""

from typing import Any

import polars as pl
import pytest

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean_log, remember_former_items
from macrec_pipeline.errors import DataError
from macrec_pipeline.runtime.time_units import DAY_MS
from macrec_pipeline.schemas import FORMER_ITEMS, INTERACTIONS, QUARANTINE, RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000
_CONFIG = CleaningConfig(k_core=1, max_quarantined_share=0)


def _catalogue(*item_ids: str | None) -> pl.DataFrame:
    rows = [
        (item, f"Title {item}", f"Text {item}", f"{item}.png", None, None, "items.csv", line, None)
        for line, item in enumerate(item_ids, start=2)
    ]
    return pl.DataFrame(rows, schema=RAW_ITEMS.columns, orient="row")


def _log(**items_of_users: str) -> pl.DataFrame:
    rows: list[tuple[Any, ...]] = [
        (user, item, None, _NOW + position)
        for user, items in items_of_users.items()
        for position, item in enumerate(items)
    ]
    full = [(*row, "log.csv", line, None) for line, row in enumerate(rows, start=2)]
    return pl.DataFrame(full, schema=RAW_INTERACTIONS.columns, orient="row")


def test_an_item_is_remembered_until_it_comes_back() -> None:
    """Each item that has left keeps its text, its image and the day on which it was first missing."""
    nothing = FORMER_ITEMS.empty()
    first, second = _catalogue("a", "b", "c", "b", None, ""), _catalogue("a")
    gone = remember_former_items(nothing, first, second, today=DAY_MS)
    assert gone.select("item_id", "text", "image_path", "left_at").rows() == [
        ("b", "Text b", "b.png", DAY_MS),
        ("c", "Text c", "c.png", DAY_MS),
    ]
    assert remember_former_items(gone, second, second, today=2 * DAY_MS).equals(gone), "read again, nothing changes"
    third = remember_former_items(gone, second, _catalogue("c", "d"), today=3 * DAY_MS)
    assert third.select("item_id", "left_at").rows() == [("a", 3 * DAY_MS), ("b", DAY_MS)]
    assert remember_former_items(nothing, first, first, today=DAY_MS).is_empty()


def test_interactions_with_an_item_that_has_left_are_kept() -> None:
    """It has its place in `items` and is marked as unlisted; an item that nobody knows goes to quarantine."""
    log = _log(u="abc", v="bcax", w="cab")
    former = remember_former_items(FORMER_ITEMS.empty(), _catalogue(*"abcde"), _catalogue(*"ac"), today=DAY_MS)
    result = clean_log(log, _catalogue(*"ac"), _CONFIG, latest=_NOW + 9, former_items=former)
    assert result.items.select("item_index", "item_id", "text").rows() == [
        (0, "a", "Text a"),
        (1, "b", "Text b"),
        (2, "c", "Text c"),
    ]
    assert result.unlisted_items.rows() == [(1, "b", DAY_MS)]
    assert INTERACTIONS.check(pl.concat(result.interactions())).height == 9
    quarantine = QUARANTINE.check(pl.concat(result.quarantine()))
    assert quarantine.select("table", "item_id", "reason").rows() == [("raw_interactions", "x", "unknown_item")]


def test_a_former_item_without_interactions_is_left_out() -> None:
    """Items that nobody bought are kept for recommendations, which an unlisted item does not get."""
    config = _CONFIG.model_copy(update={"keep_items_without_interactions": True})
    former = remember_former_items(FORMER_ITEMS.empty(), _catalogue(*"abcz"), _catalogue(*"abcd"), today=DAY_MS)
    result = clean_log(_log(u="abc"), _catalogue(*"abcd"), config, latest=_NOW + 9, former_items=former)
    assert result.items["item_id"].to_list() == ["a", "b", "c", "d"]
    assert result.unlisted_items.is_empty()


def test_an_item_of_both_catalogues_is_listed() -> None:
    """What is remembered does not override what the catalogue says now."""
    former = remember_former_items(FORMER_ITEMS.empty(), _catalogue(*"abc"), _catalogue(*"ab"), today=DAY_MS)
    result = clean_log(_log(u="abc"), _catalogue(*"abc"), _CONFIG, latest=_NOW + 9, former_items=former)
    assert result.unlisted_items.is_empty()
    assert result.items.equals(clean_log(_log(u="abc"), _catalogue(*"abc"), _CONFIG, latest=_NOW + 9).items)


def test_a_catalogue_of_strangers_stops_the_run() -> None:
    """If every item that remains has left, nothing can be recommended."""
    former = remember_former_items(FORMER_ITEMS.empty(), _catalogue(*"abc"), _catalogue("z"), today=DAY_MS)
    with pytest.raises(DataError, match="None of the 3 items that remain after cleaning is in today's catalogue"):
        clean_log(_log(u="abc"), _catalogue("z"), _CONFIG, latest=_NOW + 9, former_items=former)
