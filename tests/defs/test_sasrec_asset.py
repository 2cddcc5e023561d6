"""The asset `sasrec`: a training that was cut off ends with the same bytes, one that is not wanted leaves a note."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from macrec_pipeline.defs.assets.sasrec import DISABLED, sasrec
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.recommender import FittedSasrec, load_item_embeddings
from macrec_pipeline.recommender.sasrec.model import training
from macrec_pipeline.schemas import HISTORIES, ITEMS
from macrec_pipeline.storage import AssetStore

NUM_ITEMS, NUM_USERS = 12, 20
SMALL = ["sasrec.d_model=16", "sasrec.max_epochs=4", "sasrec.batch_size=32", "sasrec.patience=4"]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class CutOffError(Exception):
    """Stands for the power going out."""


def materialize(settings: Settings, partition: str, home: Path, *overrides: str) -> dg.ExecuteInProcessResult:
    store = AssetStore(home, partition)
    items = {"item_index": range(NUM_ITEMS), "item_id": [f"i{item:02d}" for item in range(NUM_ITEMS)]}
    rest: dict[str, Any] = {"title": None, "text": None, "image_path": None, "categories": None, "num_interactions": 1}
    store.write_table("items", pl.DataFrame(items).with_columns(**_literals(rest)).cast(ITEMS.columns))
    rows = np.random.default_rng(0).integers(0, NUM_ITEMS, (NUM_USERS, 8)).tolist()
    users = {"user_index": range(NUM_USERS), "user_id": [f"u{user:02d}" for user in range(NUM_USERS)]}
    histories = pl.DataFrame(users | {"item_indices": rows, "timestamps": [list(range(8))] * NUM_USERS, "tested": True})
    store.write_table("histories", histories.cast(HISTORIES.columns))
    own = Settings(home=str(home), data=settings.data, overrides=[*SMALL, *overrides])
    return dg.materialize([sasrec], partition_key=partition, resources={"settings": own}, run_config=QUIET)


def _literals(values: dict[str, Any]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in values.items()}


def test_a_training_that_was_cut_off_ends_with_the_same_bytes(
    settings: Settings, partition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt goes on after the second epoch, and nothing is left of the checkpoint."""
    materialize(settings, partition, tmp_path / "whole")
    saved: list[int] = []

    def cut_off(*arguments: Any, **named: Any) -> None:
        keep(*arguments, **named)
        saved.append(len(named["values"]["log"]))
        if len(saved) == 2:
            raise CutOffError

    keep = training.save_checkpoint
    monkeypatch.setattr(training, "save_checkpoint", cut_off)
    home = tmp_path / "cut"
    with pytest.raises(CutOffError):
        materialize(settings, partition, home)
    store, whole = AssetStore(home, partition), AssetStore(tmp_path / "whole", partition)
    assert not store.has("sasrec")
    materialize(settings, partition, home)
    assert saved == [1, 2, 3, 4]
    assert store.manifest("sasrec").files == whole.manifest("sasrec").files
    assert set(store.manifest("sasrec").files) == {"model.safetensors", "sasrec.json", "training_log.json"}
    assert not list(home.rglob("checkpoint*"))
    embeddings = load_item_embeddings(store.folder("sasrec"))
    assert embeddings is not None
    assert embeddings.shape == (NUM_ITEMS, 16)
    np.testing.assert_array_equal(FittedSasrec.load(store.folder("sasrec")).item_embeddings, embeddings)


def test_a_sasrec_that_is_not_wanted_leaves_a_note(settings: Settings, partition: str, tmp_path: Path) -> None:
    """The asset is there, says that it was skipped and why, and gives no embeddings."""
    result = materialize(settings, partition, tmp_path / "home", "sasrec.enabled=false")
    (made,) = result.asset_materializations_for_node("sasrec")
    assert made.metadata["skipped"].value == DISABLED
    store = AssetStore(tmp_path / "home", partition)
    assert set(store.manifest("sasrec").files) == {"skipped.json"}
    assert load_item_embeddings(store.folder("sasrec")) is None


def test_the_report_of_a_training_has_its_figures_and_curves(
    settings: Settings, partition: str, tmp_path: Path
) -> None:
    """The best epoch, its loss and its NDCG, and a picture of each."""
    result = materialize(settings, partition, tmp_path / "home")
    (made,) = result.asset_materializations_for_node("sasrec")
    assert {"epochs", "best_epoch", "train_loss", "validation_ndcg", "loss_curve", "validation_curve"} <= set(
        made.metadata
    )
    fitted = FittedSasrec.load(AssetStore(tmp_path / "home", partition).folder("sasrec"))
    assert made.metadata["validation_ndcg"].value == fitted.validation_ndcg
