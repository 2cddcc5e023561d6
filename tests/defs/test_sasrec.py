"""The asset `sasrec`: interrupted training ends with the same bytes, and a disabled SASRec leaves a note."""

from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from macrec_pipeline.defs.assets.sasrec import DISABLED, sasrec
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.recommender import FittedSasrec, load_item_embeddings
from macrec_pipeline.runtime import checkpoint
from macrec_pipeline.schemas import HISTORIES, ITEMS
from macrec_pipeline.storage import AssetStore

NUM_ITEMS, NUM_USERS = 12, 20
SMALL = ["sasrec.d_model=16", "sasrec.max_epochs=4", "sasrec.batch_size=32", "sasrec.patience=4"]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class InterruptedTrainingError(Exception):
    """Stands for a power failure."""


def materialize(
    settings: Settings, partition: str, home: Path, *overrides: str, timestamps: list[list[int]] | None = None
) -> dg.ExecuteInProcessResult:
    store = AssetStore(home, partition)
    items = {"item_index": range(NUM_ITEMS), "item_id": [f"i{item:02d}" for item in range(NUM_ITEMS)]}
    other_columns: dict[str, Any] = {
        "title": None,
        "text": None,
        "image_path": None,
        "categories": None,
        "num_interactions": 1,
    }
    store.write_table("items", pl.DataFrame(items).with_columns(**_literals(other_columns)).cast(ITEMS.columns))
    rows = np.random.default_rng(0).integers(0, NUM_ITEMS, (NUM_USERS, 8)).tolist()
    users = {"user_index": range(NUM_USERS), "user_id": [f"u{user:02d}" for user in range(NUM_USERS)]}
    times = timestamps or [list(range(8))] * NUM_USERS
    other_columns = {"item_indices": rows, "timestamps": times, "tested": True, "num_at_target_time": 1}
    histories = pl.DataFrame(users | other_columns)
    store.write_table("histories", histories.cast(HISTORIES.columns))
    small = Settings(home=str(home), data=settings.data, overrides=[*SMALL, *overrides])
    return dg.materialize([sasrec], partition_key=partition, resources={"settings": small}, run_config=QUIET)


def _literals(values: dict[str, Any]) -> dict[str, pl.Expr]:
    return {name: pl.lit(value) for name, value in values.items()}


def test_interrupted_training_ends_with_the_same_bytes(
    settings: Settings, partition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second attempt continues after the second epoch, and the checkpoint is deleted in the end."""
    materialize(settings, partition, tmp_path / "whole")
    saved: list[int] = []

    def save_or_fail(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        saved.append(len(named["values"]["log"]))
        if len(saved) == 2:
            raise InterruptedTrainingError

    original = checkpoint.save_checkpoint
    monkeypatch.setattr(checkpoint, "save_checkpoint", save_or_fail)
    home = tmp_path / "interrupted"
    with pytest.raises(InterruptedTrainingError):
        materialize(settings, partition, home)
    store, whole = AssetStore(home, partition), AssetStore(tmp_path / "whole", partition)
    assert not store.has("sasrec")
    materialize(settings, partition, home)
    assert saved == [1, 2, 3, 4]
    assert store.manifest("sasrec").files == whole.manifest("sasrec").files
    assert set(store.manifest("sasrec").files) == {
        "model.safetensors",
        "sasrec.json",
        "training_log.json",
        "items.json",
    }
    assert not list(home.rglob("checkpoint*"))
    embeddings = load_item_embeddings(store.folder("sasrec"))
    assert embeddings is not None
    assert embeddings.shape == (NUM_ITEMS, 16)
    np.testing.assert_array_equal(FittedSasrec.load(store.folder("sasrec")).item_embeddings, embeddings)


def test_a_disabled_sasrec_leaves_a_note(settings: Settings, partition: str, tmp_path: Path) -> None:
    """The asset exists, says that it was skipped and why, and has no embeddings."""
    result = materialize(settings, partition, tmp_path / "home", "sasrec.enabled=false")
    (materialization,) = result.asset_materializations_for_node("sasrec")
    assert materialization.metadata["skipped"].value == DISABLED
    store = AssetStore(tmp_path / "home", partition)
    assert set(store.manifest("sasrec").files) == {"skipped.json"}
    assert load_item_embeddings(store.folder("sasrec")) is None


def test_the_report_has_figures_and_curves(settings: Settings, partition: str, tmp_path: Path) -> None:
    """The report has the best epoch, its loss and its NDCG, and a curve of both."""
    result = materialize(settings, partition, tmp_path / "home")
    (materialization,) = result.asset_materializations_for_node("sasrec")
    assert {"epochs", "best_epoch", "train_loss", "validation_ndcg", "loss_curve", "validation_curve"} <= set(
        materialization.metadata
    )
    fitted = FittedSasrec.load(AssetStore(tmp_path / "home", partition).folder("sasrec"))
    assert materialization.metadata["validation_ndcg"].value == fitted.validation_ndcg


def test_a_warm_start_is_as_long_as_the_change(
    settings: Settings, partition: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With 2.5% new interactions, a training of 40 epochs continues for 10; the first run has nothing to start from."""
    home, long = tmp_path / "home", ("sasrec.warm_start=true", "sasrec.max_epochs=40", "sasrec.patience=40")
    first = _metadata(materialize(settings, partition, home, *long))
    assert (first["warm_start"], first["epochs"]) == ("none", 40)
    assert "there is no SASRec yet" in caplog.text
    newer = [list(range(8))] * (NUM_USERS - 4) + [[*range(7), 9]] * 4
    second = _metadata(materialize(settings, partition, home, *long, timestamps=newer))
    assert (second["warm_start"], second["epochs"], second["changed_share"]) == ("taken over", 10, 4 / 160)
    third = _metadata(materialize(settings, partition, home, *long, "sasrec.d_model=8", timestamps=newer))
    assert third["epochs"] == 40
    assert third["warm_start"] == "the previous SASRec has sasrec.d_model 16, but the setting is now 8"


def _metadata(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    (materialization,) = result.asset_materializations_for_node("sasrec")
    return {name: value.value for name, value in materialization.metadata.items()}
