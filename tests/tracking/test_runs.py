"""Parent and child runs: their content, their status after success, failure and interruption, and killed processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.errors import TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import AssetRun, Tracker
from macrec_pipeline.tracking.git_commit import git_commit
from macrec_pipeline.tracking.runs import MAX_PARAM_LENGTH, flat_params
from macrec_pipeline.tracking.store import connect

CONFIG = resolve_config("demo")


def asset_run(tracker: Tracker, asset: str = "quantizer", dagster_run_id: str = "run-1", **changes: Any):
    return tracker.asset_run(
        dataset="demo", asset=asset, dagster_run_id=dagster_run_id, **{"config": CONFIG, **changes}
    )


def runs_of(home: Path, kind: str) -> list[Any]:
    """Return all runs of a kind (pipeline or asset), oldest first."""
    client = connect(home).client
    experiment = client.get_experiment_by_name("macrec/demo")
    found = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    return [run for run in found if run.data.tags["macrec.kind"] == kind]


def interrupt(run: AssetRun) -> None:
    run.log_metrics({"loss": 2.5})
    raise KeyboardInterrupt


def fail(run: AssetRun, message: str) -> None:
    run.log_metrics({"loss": 2.5}, step=7)
    raise ValueError(message)


def delete_and_fail(home: Path, run: AssetRun) -> None:
    connect(home).client.delete_run(run.run_id)
    fail(run, "original error")


def test_a_run_records_settings_inputs_and_its_parent(tracker: Tracker, home: Path) -> None:
    """The child run has the settings, the digests of its inputs, the commit and its parent, and ends as FINISHED."""
    with asset_run(tracker, input_digests={"text_embeddings": "ab" * 32}, tags={"partition": "demo"}) as run:
        assert runs_of(home, "asset")[0].info.status == "RUNNING"
    (child,), (parent,) = runs_of(home, "asset"), runs_of(home, "pipeline")
    assert (child.info.run_id, child.info.run_name, child.info.status) == (run.run_id, "quantizer", "FINISHED")
    assert child.info.end_time is not None
    params, tags = child.data.params, child.data.tags
    assert params["quantizer.codebook_size"] == "32"
    assert params["quantizer.hidden_dims"] == json.dumps(list(CONFIG.quantizer.hidden_dims))
    assert params["cleaning.min_rating"] == "null"
    assert params["text_encoder.name"] == CONFIG.text_encoder.name
    assert params["input.text_embeddings"] == "ab" * 32
    assert tags["macrec.asset"] == "quantizer"
    assert tags["macrec.dataset"] == parent.data.tags["macrec.dataset"] == "demo"
    assert tags["dagster.run_id"] == parent.data.tags["dagster.run_id"] == "run-1"
    assert tags["mlflow.parentRunId"] == parent.info.run_id
    assert tags["partition"] == "demo"
    assert tags.get("macrec.git_commit") == git_commit()
    assert run.url.endswith(f"/#/experiments/{child.info.experiment_id}/runs/{run.run_id}")


def test_the_settings_are_stored_completely(tracker: Tracker, home: Path) -> None:
    """`config.json` restores exactly the settings of the run."""
    with asset_run(tracker) as run:
        pass
    content = connect(home).client.download_artifacts(run.run_id, "config.json")
    assert PipelineConfig.model_validate(json.loads(Path(content).read_text())) == CONFIG


def test_a_failure_is_recorded_and_raised(tracker: Tracker, home: Path) -> None:
    """An exception ends the run as FAILED with the metrics logged so far, and reaches the caller."""
    with pytest.raises(ValueError, match="no such thing"), asset_run(tracker) as run:
        fail(run, "no such thing " + "x" * 5000)
    (child,) = runs_of(home, "asset")
    assert child.info.status == "FAILED"
    assert child.data.tags["macrec.error"].startswith("ValueError: no such thing")
    assert len(child.data.tags["macrec.error"]) == 1000
    assert child.data.metrics == {"loss": 2.5}


def test_an_interruption_is_recorded(tracker: Tracker, home: Path) -> None:
    """Ctrl-C ends the run as KILLED, with the metrics logged so far."""
    with pytest.raises(KeyboardInterrupt), asset_run(tracker) as run:
        interrupt(run)
    (child,) = runs_of(home, "asset")
    assert child.info.status == "KILLED"
    assert child.data.metrics == {"loss": 2.5}


def test_the_error_of_the_block_takes_precedence_over_that_of_the_store(tracker: Tracker, home: Path, caplog) -> None:
    """If the store fails too, the caller sees its own error, and the error of the store is logged as a warning."""
    with pytest.raises(ValueError, match="original error"), asset_run(tracker) as run:
        delete_and_fail(home, run)
    assert any("end of the MLflow run" in message for message in caplog.messages)


def test_the_assets_of_a_pipeline_run_share_a_parent(tracker: Tracker, home: Path) -> None:
    """There is one parent per pipeline run and data set, for all trackers; another pipeline run has its own."""
    with asset_run(tracker, "items"):
        pass
    with asset_run(Tracker(connect(home)), "histories"):
        pass
    with asset_run(tracker, "items", "run-2"):
        pass
    first, second = runs_of(home, "pipeline")
    assert (first.data.tags["dagster.run_id"], second.data.tags["dagster.run_id"]) == ("run-1", "run-2")
    parents = [child.data.tags["mlflow.parentRunId"] for child in runs_of(home, "asset")]
    assert parents == [first.info.run_id, first.info.run_id, second.info.run_id]


@pytest.mark.parametrize("status", ["FINISHED", "FAILED", "KILLED"])
def test_the_parent_gets_the_status_of_the_pipeline_run(tracker: Tracker, home: Path, status) -> None:
    """The parent is closed with the status of the pipeline run, and reopened if the run is resumed."""
    with asset_run(tracker):
        pass
    assert runs_of(home, "pipeline")[0].info.status == "RUNNING"
    tracker.finish_pipeline("demo", "run-1", status)
    assert runs_of(home, "pipeline")[0].info.status == status
    with asset_run(tracker):
        assert runs_of(home, "pipeline")[0].info.status == "RUNNING"
    assert len(runs_of(home, "pipeline")) == 1


def test_a_pipeline_run_without_assets_has_no_parent(tracker: Tracker, home: Path) -> None:
    """Finishing a pipeline run that failed before its first asset creates no parent."""
    tracker.finish_pipeline("demo", "run-9", "FAILED")
    assert runs_of(home, "pipeline") == []


@pytest.mark.parametrize("run_id", ["", "x' or '1' = '1", "a b", "x" * 101])
def test_invalid_run_ids_are_rejected(tracker: Tracker, run_id: str) -> None:
    """A run id is part of a query, so it must match its pattern."""
    with pytest.raises(TrackingError, match="is not a valid run id"), asset_run(tracker, dagster_run_id=run_id):
        pass


def test_process_wide_settings_of_mlflow_are_ignored(tracker: Tracker, home: Path) -> None:
    """`MLFLOW_RUN_ID`, which would make MLflow's own functions continue another run, has no effect."""
    os.environ["MLFLOW_RUN_ID"] = "0123456789abcdef0123456789abcdef"
    with asset_run(tracker) as run:
        pass
    assert [child.info.run_id for child in runs_of(home, "asset")] == [run.run_id]


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import open_tracking
tracker = open_tracking(Path(sys.argv[1]))
config = resolve_config("demo")
with (
    tracker.asset_run(dataset="demo", asset="quantizer", dagster_run_id="run-1", config=config),
    tracker.asset_run(dataset="demo", asset="quantizer", dagster_run_id="run-2", config=config),
):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_runs_of_killed_processes_are_closed(tracker: Tracker, home: Path) -> None:
    """After kill -9, child runs are closed as KILLED, but not that of a living process; so are parents without any."""
    command = [sys.executable, "-c", KILLED_RUN, str(home)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    with asset_run(tracker, "semantic_ids", "run-1"):
        assert tracker.close_interrupted_runs("demo", "run-1") == 1
        statuses = {
            (run.info.run_name, run.data.tags["dagster.run_id"]): run.info.status for run in runs_of(home, "asset")
        }
        assert statuses == {
            ("quantizer", "run-1"): "KILLED",
            ("semantic_ids", "run-1"): "RUNNING",
            ("quantizer", "run-2"): "RUNNING",
        }
        assert [run.info.status for run in runs_of(home, "pipeline")] == ["RUNNING", "RUNNING"]
        assert tracker.close_interrupted_runs("demo") == 1
        assert [run.info.status for run in runs_of(home, "pipeline")] == ["RUNNING", "KILLED"]
    assert tracker.close_interrupted_runs("demo") == 0
    assert list((home / "mlflow" / "running").iterdir()) == []


def test_long_parameters_are_shortened() -> None:
    """Values longer than the limit are cut off and end in dots."""
    flat = flat_params({"a": {"b": {"c": "x" * 501}, "d": "x" * 500}, "e": [1, 2], "f": None, "g": True})
    assert flat["a.b.c"] == "x" * (MAX_PARAM_LENGTH - 3) + "..."
    assert flat["a.d"] == "x" * 500
    assert (flat["e"], flat["f"], flat["g"]) == ("[1, 2]", "null", "true")


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.com", "-c", "commit.gpgsign=false"]
    result = subprocess.run(["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    """The commit is that of the checkout with the package, marked if files changed; without a checkout it is None."""
    package = tmp_path / "package"
    package.mkdir()
    assert git_commit(package) is None
    git_commit.cache_clear()
    git(tmp_path, "init", "-q")
    (package / "a.py").write_text("a = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "-a", "v1", "-m", "a tag must not take the commit's place")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_commit(package) == commit
    git_commit.cache_clear()
    (package / "a.py").write_text("a = 2\n")
    assert git_commit(package) == f"{commit}-dirty"
    git_commit.cache_clear()
    (package / "inner").mkdir()
    assert git_commit(package / "inner") is None


KILLED_WHILE_UNAVAILABLE = """
import os, signal, sys
from pathlib import Path
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import open_tracking
def unavailable(*_, **__):
    raise MlflowException("the server does not answer")
tracker = open_tracking(Path(sys.argv[1]))
with tracker.asset_run(dataset="demo", asset="quantizer", dagster_run_id="run-1", config=resolve_config("demo")) as run:
    MlflowClient.log_batch = unavailable
    run.log_metrics({f"m_{index}": index for index in range(600)})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_data_that_a_killed_process_could_not_send_is_sent_later(tracker: Tracker, home: Path) -> None:
    """The next run sends it, and the killed run is still recognized as dead and can be closed."""
    command = [sys.executable, "-c", KILLED_WHILE_UNAVAILABLE, str(home)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    with asset_run(tracker, "semantic_ids", "run-2"):
        pass
    (killed,) = [run for run in runs_of(home, "asset") if run.info.run_name == "quantizer"]
    assert killed.data.metrics == {f"m_{index}": float(index) for index in range(600)}
    assert killed.info.status == "RUNNING"
    assert tracker.close_interrupted_runs("demo") == 1
    assert not list((home / "mlflow" / "unsent").iterdir())
