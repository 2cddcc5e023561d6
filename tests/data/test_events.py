"""Reader `tables` on logs with several kinds of events."""

from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.config.data import CleaningConfig
from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items, validate_source
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import DataError

_LOG = {"file": "log.csv", "user_id": "u", "item_id": "i", "timestamp": "t", "event": "kind"}


def _spec(**interactions: Any) -> DatasetSpec:
    items = {"file": "items.csv", "item_id": "id", "title": "name"}
    source = {"reader": "tables", "interactions": _LOG | interactions, "items": items}
    return DatasetSpec.model_validate({"name": "s", "title": "S", "source": source})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder with a log in which three of six events are purchases, one of them with blanks around it."""
    (tmp_path / "items.csv").write_text("id,name\nA,Ball\nB,Kite\nC,Top\n")
    (tmp_path / "log.csv").write_text(
        "u,i,t,kind\n1,A,1000000001,view\n1,A,1000000002,buy\n1,B,1000000003, buy \n1,C,1000000004,buy\n"
        "1,C,1000000005,\n1,C,soon,Buy\n"
    )
    return tmp_path


def test_only_the_chosen_kinds_are_kept(data: Path) -> None:
    """The other rows go to quarantine with their kind, and do not count as unusable."""
    spec = _spec(events=["buy"])
    assert validate_source(spec, data) == []
    config = CleaningConfig(k_core=1, max_quarantined_share=0.0)
    tables = clean(read_raw_interactions(spec, data), read_raw_items(spec, data), config)
    assert tables.interactions["item_id"].to_list() == ["A", "B", "C"]
    assert tables.quarantine.sort("source_row").select("source_row", "reason", "detail").rows() == [
        (2, "other_event", "'view' is not in `events`"),
        (6, "other_event", "'' is not in `events`"),
        (7, "other_event", "'Buy' is not in `events`"),
    ]


def test_the_weight_of_an_event_is_its_rating(data: Path) -> None:
    """So `cleaning.min_rating` chooses kinds, and the weights reach the interactions."""
    spec = _spec(events={"view": 1, "buy": 3})
    assert read_raw_interactions(spec, data)["rating"].to_list() == [1.0, 3.0, 3.0, 3.0, None, None]
    config = CleaningConfig(k_core=1, min_rating=2)
    tables = clean(read_raw_interactions(spec, data), read_raw_items(spec, data), config)
    assert tables.interactions["rating"].to_list() == [3.0, 3.0, 3.0]
    assert tables.quarantine["reason"].sort().to_list() == ["below_min_rating", "other_event", "other_event"]


def test_a_log_without_the_chosen_kinds_says_so(data: Path) -> None:
    """The message counts the rows and names the setting."""
    spec = _spec(events=["purchase"])
    with pytest.raises(DataError, match=r"other_event 6\. Check that `events`"):
        clean(read_raw_interactions(spec, data), read_raw_items(spec, data), CleaningConfig(k_core=1))


def test_the_settings_are_checked(data: Path) -> None:
    """A column needs kinds and the other way round; weights and ratings exclude each other; columns must exist."""
    for changes, message in (
        ({}, "belong together"),
        ({"event": None, "events": ["buy"]}, "belong together"),
        ({"events": {"buy": 1}, "rating": "t"}, "exclude each other"),
    ):
        with pytest.raises(ValueError, match=message):
            _spec(**changes)
    (problem,) = validate_source(_spec(event="type", events=["buy"]), data)
    assert "no column 'type'" in problem
