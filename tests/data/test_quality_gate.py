"""The quality gate: too many unusable rows stop the run, while rows that settings drop do not count."""

from typing import Any

import polars as pl
import pytest

from macrec_pipeline.config import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_NOW = 1_700_000_000_000


def _log(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Build a raw log from rows of (user, item, timestamp, problem); the first is line 2."""
    full = [
        (user, item, None, stamp, "log.csv", line, problem)
        for line, (user, item, stamp, problem) in enumerate(rows, start=2)
    ]
    return pl.DataFrame(full, schema=RAW_INTERACTIONS.columns, orient="row")


def _items(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    """Build a raw catalogue from rows of (item, problem); the first is line 2."""
    full = [(item, "T", *[None] * 4, "items.csv", line, problem) for line, (item, problem) in enumerate(rows, 2)]
    return pl.DataFrame(full, schema=RAW_ITEMS.columns, orient="row")


_VALID = [
    (user, item, _NOW + position, None) for user in ("u", "v") for position, item in enumerate("abc")
]  # lines 2 to 7
_UNUSABLE = [
    ("u", "a", None, None),  # line 8
    ("u", "z", _NOW, None),
    ("w", "b", None, None),
    ("x", "c", None, "wrong_type: timestamp is 'noon', expected a number"),
    (None, "c", _NOW, None),
    ("u", "b", None, None),
    ("v", "b", None, None),  # line 14, the fourth with this reason
]
_CATALOGUE = _items([(item, None) for item in "abc"])


def _config(share: float) -> CleaningConfig:
    return CleaningConfig(k_core=1, max_quarantined_share=share)


@pytest.mark.parametrize("lazy", [False, True])
def test_the_error_lists_the_reasons_with_three_examples_each(lazy: bool) -> None:
    """For 6 of 13 rows: the count per reason, most frequent first, and the first three rows with file and line.

    The row whose item is not in the catalogue is told apart from them, with its own share.
    """
    raw = _log([*_VALID, *_UNUSABLE])
    with pytest.raises(DataError) as error:
        clean(raw.lazy() if lazy else raw, _CATALOGUE, _config(0.4), latest=_NOW + 9)
    message = str(error.value)
    assert message.startswith(
        "raw_interactions: 6 of 13 rows (46.2%) are unusable, which is more than "
        "`cleaning.max_quarantined_share` allows (40.0%). "
    )
    assert (
        "missing_timestamp (4): row 8 of log.csv (user 'u', item 'a': empty, or not readable in the data set's unit); "
        "row 10 of log.csv" in message
    )
    assert "row 13 of log.csv" in message
    assert "row 14" not in message
    assert "wrong_type (1): row 11 of log.csv (user 'x', item 'c': timestamp is 'noon', expected a number)." in message
    assert "unknown_item" not in message
    assert message.endswith("Rows whose item is not in the catalogue do not count; there are 1 (7.7%).")
    assert "missing_user_id (1): row 12 of log.csv (item 'c')." in message
    order = [message.index(f"{reason} ") for reason in ("missing_timestamp", "missing_user_id", "wrong_type")]
    assert order == sorted(order)
    assert "Check `timestamp` and `timestamp_unit`" in message


def test_a_share_equal_to_the_limit_is_accepted() -> None:
    """6 of 13 rows are not more than 6/13, and go to quarantine as usual."""
    raw = _log([*_VALID, *_UNUSABLE])
    assert clean(raw, _CATALOGUE, _config(6 / 13), latest=_NOW + 9).quarantine.height == 7
    with pytest.raises(DataError, match="6 of 13"):
        clean(raw, _CATALOGUE, _config(5.9 / 13), latest=_NOW + 9)


def test_rows_that_settings_drop_do_not_count() -> None:
    """Duplicates, the k-core, low ratings and items without interactions may be most of the file."""
    duplicates = _log([*_VALID, *_VALID, *_VALID, ("lonely", "a", _NOW, None)])
    catalogue = _items([(item, None) for item in "abcdefghabc"])
    assert clean(duplicates, catalogue, _config(0), latest=_NOW + 9).interactions.height == 6
    rated = _log(_VALID * 2).with_columns(rating=pl.Series([5.0] * 6 + [1.0] * 6))
    strict = CleaningConfig(k_core=1, min_rating=2, max_quarantined_share=0)
    assert clean(rated, _CATALOGUE, strict, latest=_NOW + 9).interactions.height == 6


def test_an_unusable_catalogue_stops_the_run_too() -> None:
    """For 2 of 5 rows of the catalogue: the reader's reason and the missing ID."""
    catalogue = _items([*((item, None) for item in "abc"), ("d", "wrong_type: title is {}"), (None, None)])
    with pytest.raises(DataError) as error:
        clean(_log(_VALID), catalogue, _config(0.3), latest=_NOW + 9)
    message = str(error.value)
    assert message.startswith("raw_items: 2 of 5 rows (40.0%)")
    assert "missing_item_id (1): row 6 of items.csv (no ID)." in message
    assert "wrong_type (1): row 5 of items.csv (item 'd': title is {})." in message
    assert clean(_log(_VALID), catalogue, _config(0.4), latest=_NOW + 9).items.height == 3


def test_interactions_with_unlisted_items_have_a_limit_of_their_own() -> None:
    """A log that is older than its catalogue runs; a limit stops it, and the message states both shares."""
    raw = _log([*_VALID, *(("u", f"old{number}", _NOW, None) for number in range(12)), ("u", "a", None, None)])
    catalogue = _items([(item, None) for item in "abc"])
    result = clean(raw, catalogue, _config(0.1), latest=_NOW + 9)
    assert result.interactions.height == 6
    assert result.quarantine["reason"].to_list().count("unknown_item") == 12
    strict = CleaningConfig(k_core=1, max_quarantined_share=0.1, max_unlisted_share=0.6)
    with pytest.raises(DataError) as error:
        clean(raw, catalogue, strict, latest=_NOW + 9)
    message = str(error.value)
    assert message.startswith(
        "raw_interactions: 12 of 19 rows (63.2%) name an item that is not in the catalogue and was not in it in an "
        "earlier run. Broken rows: 1 (5.3%). That is more than `cleaning.max_unlisted_share` allows (60.0%)."
    )
    assert "row 8 of log.csv (user 'u', item 'old0': not in raw_items)" in message
    assert "Only the log has ids such as 'old0', 'old1', 'old10'; the catalogue has 'a', 'b', 'c'." in message
