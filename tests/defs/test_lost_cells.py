"""Cells that reading turns into missing values are counted per column, in Dagster and in the manifests."""

from pathlib import Path

import dagster as dg

from macrec_pipeline.data.readers.registry import read_raw_interactions
from macrec_pipeline.datasets import load_dataset
from macrec_pipeline.defs.assets.interactions import raw_interactions, raw_items
from macrec_pipeline.defs.manifest_keys import LOST_CELLS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.storage import AssetStore

_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def test_lost_cells_are_counted_per_column(settings: Settings, partition: str) -> None:
    """Dagster shows the number of unreadable cells and a table; the manifest keeps the counts for the report."""
    data = Path(settings.data)
    with (data / "log.csv").open("a") as log:
        log.write("u01,i01,yesterday\nu01,i02,|soon|\nNULL,i03,1600000000\n")
    with (data / "items.csv").open("a") as items:
        items.write("i99,nan\n")
    result = dg.materialize(
        [raw_interactions, raw_items], partition_key=partition, resources={"settings": settings}, run_config=_QUIET
    )
    found = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    assert found["raw_interactions"]["unreadable_cells"].value == 2
    assert "| log\\.csv | time | unreadable | 2 |" in str(found["raw_interactions"]["lost_cells"].value)
    assert found["raw_items"]["unreadable_cells"].value == 0
    store = AssetStore(Path(settings.home), partition)
    assert store.manifest("raw_interactions").details[LOST_CELLS] == [
        {"file": "log.csv", "column": "user", "reason": "null_word", "num_cells": 1, "num_filled": None},
        {"file": "log.csv", "column": "time", "reason": "unreadable", "num_cells": 2, "num_filled": 63},
    ]
    assert store.manifest("raw_items").details[LOST_CELLS] == [
        {"file": "items.csv", "column": "title", "reason": "null_word", "num_cells": 1, "num_filled": None}
    ]
    assert read_raw_interactions(load_dataset(partition), data).height == 63


def test_a_clean_log_has_no_such_entry(settings: Settings, partition: str) -> None:
    """Nothing is shown where nothing was lost."""
    result = dg.materialize(
        [raw_interactions], partition_key=partition, resources={"settings": settings}, run_config=_QUIET
    )
    (event,) = result.get_asset_materialization_events()
    assert not {"unreadable_cells", "lost_cells"} & event.materialization.metadata.keys()
    assert AssetStore(Path(settings.home), partition).manifest("raw_interactions").details[LOST_CELLS] == []
