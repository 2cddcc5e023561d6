"""The frame around assets: visible progress, numbers that reach MLflow, tables that a person can read."""

import logging
from collections.abc import Mapping
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.manifest_keys import GIVEN
from macrec_pipeline.defs.presentation import AssetProgress, format_metrics, preview
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.table_conversion import codes_matrix, training_sequences
from macrec_pipeline.runtime.progress import quiet_progress
from macrec_pipeline.schemas import PSEUDO_LABELS

_QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


class _FakeRun:
    """Records what an asset logs to MLflow."""

    url = "http://127.0.0.1:5000/#/run"

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.tags: dict[str, str] = {}
        self.files: dict[str, bytes] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics |= metrics

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags |= tags

    def log_bytes(self, name: str, data: bytes) -> None:
        self.files[name] = data


@pytest.fixture
def mlflow_run() -> _FakeRun:
    return _FakeRun()


@pytest.fixture
def asset(settings: Settings, partition: str, mlflow_run: _FakeRun) -> AssetContext:
    any_run: Any = mlflow_run
    return AssetContext(
        "pseudo_labels", settings=settings, dataset=partition, mlflow_run=any_run, progress=quiet_progress
    )


def test_progress_is_logged_at_each_quarter(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand steps make four lines in Dagster's log, each with the newest values. A new stage starts again."""
    progress = AssetProgress(logging.getLogger("test"), interactive=False)
    with caplog.at_level(logging.INFO, logger="test"):
        for done in range(1, 1001):
            progress("training", done, 1000, {"loss": 1 / done})
        progress("decoding", 2, 2)
        progress.close()
    assert caplog.messages == [
        "training: 250/1000 loss=0.004",
        "training: 500/1000 loss=0.002",
        "training: 750/1000 loss=0.001333",
        "training: 1000/1000 loss=0.001",
        "decoding: 2/2",
    ]


def test_a_report_has_the_digest_and_the_finite_numbers(asset: AssetContext, mlflow_run: _FakeRun) -> None:
    """Dagster gets all metadata and the digest as data version; MLflow gets the finite numbers under valid names."""
    table = pl.DataFrame(
        {"item_index": [0], "item_id": ["a"], "text_cluster": [1], "image_cluster": [2]},
        schema=PSEUDO_LABELS.columns,
    )
    result = asset.save_table(table, text_clusters=3, rate=0.5, infinite=float("inf"), ready=True, note="words")
    manifest = asset.store.manifest("pseudo_labels")
    assert result.data_version == dg.DataVersion(manifest.digest)
    assert result.asset_key == dg.AssetKey("pseudo_labels")
    assert result.metadata is not None
    assert {"text_clusters", "rate", "infinite", "ready", "note", "path", "digest", "mlflow_run"} < set(result.metadata)
    assert result.metadata["dagster/row_count"] == 1
    assert mlflow_run.metrics.pop("seconds") >= 0
    assert mlflow_run.metrics == {"row_count": 1.0, "text_clusters": 3.0, "rate": 0.5}
    assert mlflow_run.tags == {"macrec.digest": manifest.digest}


def test_a_skipped_asset_says_why(asset: AssetContext) -> None:
    """If the data set provides its semantic IDs, the tables upstream of them are empty and say so."""
    result = asset.skip(PSEUDO_LABELS.empty())
    assert result.metadata is not None
    assert result.metadata["skipped"] == GIVEN
    assert asset.read_table("pseudo_labels").height == 0


def test_a_plot_goes_to_dagster_and_to_mlflow(asset: AssetContext, mlflow_run: _FakeRun) -> None:
    """The same image is Markdown in Dagster's catalogue and a file of the MLflow run."""
    metadata = asset.log_plot("loss", b"png bytes")
    assert mlflow_run.files == {"plots/loss.png": b"png bytes"}
    assert str(metadata.value).startswith("![loss](data:image/png;base64,cG5nIGJ5dGVz")


def test_a_missing_input_is_named(settings: Settings, partition: str) -> None:
    """The inputs are checked before an MLflow run is opened."""

    @dg.asset(name="histories", deps=["items"], partitions_def=dg.StaticPartitionsDefinition([partition]))
    def histories(context: dg.AssetExecutionContext) -> None:
        with open_asset(context, settings, "histories"):
            pytest.fail("must not be reached")

    with pytest.raises(Exception, match=r"items of .* does not exist yet"):
        dg.materialize([histories], partition_key=partition, run_config={"loggers": _QUIET})
    assert not (settings.home_folder() / "mlflow").exists()


def test_a_preview_is_a_table_whatever_the_texts_hold() -> None:
    """A bar or a line break in a title must not break the Markdown table, and a long text is cut."""
    metadata = preview(pl.DataFrame({"id": ["a|b", "c\nd"], "text": ["x" * 200, "short"]}), ["id", "text"], rows=2)
    lines = str(metadata.value).splitlines()
    assert lines[:2] == ["| id | text |", "| --- | --- |"]
    assert lines[2] == f"| a\\|b | {'x' * 77}\\.\\.\\. |"
    assert lines[3] == "| c d | short |"


def test_codes_keep_their_order() -> None:
    """A column of lists becomes a matrix with the same rows."""
    table = pl.DataFrame({"codes": [[1, 2, 3], [4, 5, 6]]})
    codes = codes_matrix(table, "codes")
    assert codes.dtype == np.int64
    assert codes.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert format_metrics({"loss": 0.123456, "epoch": 3.0}) == "loss 0.1235, epoch 3"


def test_training_never_sees_a_test_target() -> None:
    """Item 0 replaces it. A user without a test target has item 0 after the validation target."""
    table = pl.DataFrame({"item_indices": [[5, 6, 7, 8], [5, 6, 7]], "tested": [True, False]})
    assert [row.tolist() for row in training_sequences(table)] == [[5, 6, 7, 0], [5, 6, 7, 0]]
