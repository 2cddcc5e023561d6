"""Too many broken rows stop the run with their reasons and examples; what settings leave out does not count."""

from typing import Any

import polars as pl
import pytest

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000


def _log(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows of (user, item, timestamp, problem); the first stands in line 2."""
    full = [
        (user, item, None, stamp, "log.csv", line, problem)
        for line, (user, item, stamp, problem) in enumerate(rows, start=2)
    ]
    return pl.DataFrame(full, schema=RAW_INTERACTIONS.columns, orient="row")


def _items(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Rows of (item, problem)."""
    full = [(item, "T", *[None] * 4, "items.csv", line, problem) for line, (item, problem) in enumerate(rows, 2)]
    return pl.DataFrame(full, schema=RAW_ITEMS.columns, orient="row")


_GOOD = [(user, item, _NOW + place, None) for user in ("u", "v") for place, item in enumerate("abc")]  # lines 2 to 7
_BROKEN = [
    ("u", "a", None, None),  # line 8
    ("u", "z", _NOW, None),
    ("w", "b", None, None),
    ("x", "c", None, "wrong_type: timestamp is 'noon', expected a number"),
    (None, "c", _NOW, None),
    ("u", "b", None, None),
    ("v", "b", None, None),  # line 14, the fourth of its reason
]
_CATALOGUE = _items([(item, None) for item in "abc"])


def _config(share: float) -> CleaningConfig:
    return CleaningConfig(k_core=1, max_quarantined_share=share)


@pytest.mark.parametrize("lazy", [False, True])
def test_too_many_broken_rows_are_told_with_three_examples_of_each_reason(lazy: bool) -> None:
    """7 of 13 rows: counts by reason, the most frequent first, and the first three of each with file and line."""
    raw = _log([*_GOOD, *_BROKEN])
    with pytest.raises(DataError) as caught:
        clean(raw.lazy() if lazy else raw, _CATALOGUE, _config(0.5), latest=_NOW + 9)
    said = str(caught.value)
    assert said.startswith("raw_interactions: 7 of 13 rows (53.8%) cannot be used, more than the 50.0% of ")
    assert "cleaning.max_quarantined_share" in said
    assert (
        "missing_timestamp 4: row 8 of log.csv (user 'u', item 'a': empty, or not readable in the data set's unit); "
        "row 10 of log.csv" in said
    )
    assert "row 13 of log.csv" in said
    assert "row 14" not in said
    assert "wrong_type 1: row 11 of log.csv (user 'x', item 'c': timestamp is 'noon', expected a number)." in said
    assert "unknown_item 1: row 9 of log.csv" in said
    assert "missing_user_id 1: row 12 of log.csv (item 'c')." in said
    order = [said.index(f"{reason} ") for reason in ("missing_timestamp", "missing_user_id", "unknown_item")]
    assert order == sorted(order)
    assert "Check timestamp and timestamp_unit" in said


def test_the_share_itself_is_allowed() -> None:
    """7 of 13 are not more than 7/13; the rows then lie in quarantine as ever."""
    raw = _log([*_GOOD, *_BROKEN])
    assert clean(raw, _CATALOGUE, _config(7 / 13), latest=_NOW + 9).quarantine.height == 7
    with pytest.raises(DataError, match="7 of 13"):
        clean(raw, _CATALOGUE, _config(6.9 / 13), latest=_NOW + 9)


def test_what_settings_leave_out_is_not_broken() -> None:
    """Copies, the k-core, low ratings and items that nobody touched may be most of the file."""
    copies = _log([*_GOOD, *_GOOD, *_GOOD, ("lonely", "a", _NOW, None)])
    catalogue = _items([(item, None) for item in "abcdefghabc"])
    assert clean(copies, catalogue, _config(0), latest=_NOW + 9).interactions.height == 6
    rated = _log(_GOOD * 2).with_columns(rating=pl.Series([5.0] * 6 + [1.0] * 6))
    strict = CleaningConfig(k_core=1, min_rating=2, max_quarantined_share=0)
    assert clean(rated, _CATALOGUE, strict, latest=_NOW + 9).interactions.height == 6


def test_a_broken_catalogue_stops_as_well() -> None:
    """2 of 5 rows of the catalogue, with the reader's reason and the missing id."""
    catalogue = _items([*((item, None) for item in "abc"), ("d", "wrong_type: title is {}"), (None, None)])
    with pytest.raises(DataError) as caught:
        clean(_log(_GOOD), catalogue, _config(0.3), latest=_NOW + 9)
    said = str(caught.value)
    assert said.startswith("raw_items: 2 of 5 rows (40.0%)")
    assert "missing_item_id 1: row 6 of items.csv (no id)." in said
    assert "wrong_type 1: row 5 of items.csv (item 'd': title is {})." in said
    assert clean(_log(_GOOD), catalogue, _config(0.4), latest=_NOW + 9).items.height == 3
