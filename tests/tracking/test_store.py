"""Opening the MLflow store: creation by several processes at once, isolation, and errors of one line."""

import dataclasses
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError

from macrec_pipeline.errors import StoreUnavailableError, TrackingError
from macrec_pipeline.tracking import open_tracking, server, server_command, training_run_links
from macrec_pipeline.tracking.store import connect, one_line_errors


def run_python(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a script in a new process that has not imported this package."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=120, check=False
    )


def test_importing_the_package_does_not_import_mlflow() -> None:
    """Code that only reads settings or data must not wait seconds for MLflow."""
    result = run_python(
        "import sys, macrec_pipeline.tracking; print('mlflow' in sys.modules or 'pandas' in sys.modules)"
    )
    assert result.stdout.strip() == "False", result.stderr


SIX_AT_ONCE = """
import multiprocessing, sys, warnings
from pathlib import Path
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import open_tracking
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import mlflow.store.tracking.sqlalchemy_store  # once for all processes; opens no store

context = multiprocessing.get_context("fork")
opened = context.Barrier(6)

def track(asset):
    tracker = open_tracking(Path(sys.argv[1]))
    opened.wait()
    with tracker.asset_run(
        dataset="demo", asset=asset, dagster_run_id="run-1", config=resolve_config("demo")
    ) as run:
        run.log_metrics({"loss": 1.0})
        run.log_text("note.txt", "hello")

processes = [context.Process(target=track, args=(f"asset_{index}",)) for index in range(6)]
for process in processes:
    process.start()
for process in processes:
    process.join()
sys.exit(sum(process.exitcode != 0 for process in processes))
"""


def test_six_processes_open_a_new_home_at_once(tmp_path: Path) -> None:
    """Six processes that open a new home at once create one database, one experiment and one parent, without output.

    A file left behind by an interrupted process does no harm.
    """
    (tmp_path / "mlflow").mkdir()
    (tmp_path / "mlflow" / ".mlflow.db.unfinished").write_bytes(b"half a database")
    result = run_python(SIX_AT_ONCE, tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    client = connect(tmp_path).client
    runs = client.search_runs([client.get_experiment_by_name("macrec/demo").experiment_id])
    parents = [run for run in runs if run.data.tags["macrec.kind"] == "pipeline"]
    children = [run for run in runs if run.data.tags["macrec.kind"] == "asset"]
    assert len(parents) == 1
    assert sorted(run.info.run_name for run in children) == [f"asset_{index}" for index in range(6)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parents[0].info.run_id}
    assert {run.info.status for run in children} == {"FINISHED"}
    assert sorted(path.name for path in (tmp_path / "mlflow").glob("*.db*")) == ["mlflow.db"]
    assert not (tmp_path / "mlflow" / ".mlflow.db.unfinished").exists()


def test_everything_stays_below_the_home(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Artifacts are stored below the home regardless of the working directory, and nothing is written elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store = connect(home)
    experiment = store.client.get_experiment(store.experiment_id("demo"))
    assert experiment.name == "macrec/demo"
    assert experiment.artifact_location == (home / "mlflow" / "artifacts" / "demo").as_uri()
    assert list(elsewhere.iterdir()) == []


def test_the_environment_overrides_the_home(tmp_path: Path, fresh_database: Path) -> None:
    """`MLFLOW_TRACKING_URI` takes precedence over the home and is not changed."""
    uri = f"sqlite:///{fresh_database}"
    os.environ["MLFLOW_TRACKING_URI"] = uri
    assert open_tracking(tmp_path).uri == uri
    assert os.environ["MLFLOW_TRACKING_URI"] == uri
    assert not (tmp_path / "mlflow" / "mlflow.db").exists()


def test_process_wide_settings_of_mlflow_stay_unchanged(tmp_path: Path, home: Path) -> None:
    """Opening the store of a home does not change where other code in the process logs to."""
    import mlflow

    before = mlflow.get_tracking_uri()
    open_tracking(home)
    assert mlflow.get_tracking_uri() == before
    assert "MLFLOW_TRACKING_URI" not in os.environ


def test_the_environment_gets_only_defaults(home: Path) -> None:
    """Telemetry is off and timeouts are short, unless the user has set the variables."""
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "77"
    open_tracking(home)
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "3"
    from mlflow.telemetry.utils import is_telemetry_disabled

    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert is_telemetry_disabled()


def test_an_unreachable_server_raises_an_error_of_one_line(tmp_path: Path) -> None:
    """The error names the server and comes within seconds."""
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "1"
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"^MLflow store http://127\.0\.0\.1:9: ") as caught:
        open_tracking(tmp_path)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 20


def test_a_damaged_database_is_reported_at_once(home: Path) -> None:
    """The error names the database at once; MLflow alone would retry for minutes."""
    (home / "mlflow" / "mlflow.db").write_bytes(b"this is not a database" * 100)
    start = time.monotonic()
    with pytest.raises(TrackingError, match=r"mlflow\.db cannot be opened.*not a database"):
        open_tracking(home)
    assert time.monotonic() - start < 5


def test_a_database_of_another_mlflow_version_is_rejected(home: Path) -> None:
    """The error contains MLflow's own advice on how to upgrade the database."""
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")
        connection.commit()
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        open_tracking(home)


def test_a_home_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    """If a file has the name of the home, the error names it."""
    (tmp_path / "home").write_text("not a folder")
    with pytest.raises(TrackingError, match="home"):
        open_tracking(tmp_path / "home")


@pytest.mark.parametrize("dataset", ["", "..", "a/b", "Demo", "demo' or '1' = '1"])
def test_invalid_data_set_names_are_rejected(home: Path, dataset: str) -> None:
    """The name of a data set is part of a path and of a query, so it must match its pattern."""
    with pytest.raises(TrackingError, match="is not a valid name of a data set"):
        connect(home).experiment_id(dataset)


def test_a_deleted_experiment_is_restored(home: Path) -> None:
    """An experiment that was deleted in the UI does not block its data set."""
    store = connect(home)
    experiment_id = store.experiment_id("demo")
    store.client.delete_experiment(experiment_id)
    assert store.experiment_id("demo") == experiment_id
    assert store.client.get_experiment(experiment_id).lifecycle_stage == "active"


def test_the_server_command(home: Path) -> None:
    """The server of the UI listens only on loopback, has one worker, and uses the home's own store."""
    arguments, environment = server_command(home, 5055)
    assert arguments[:4] == [sys.executable, "-m", "mlflow", "server"]
    options = dict(zip(arguments[4::2], arguments[5::2], strict=True))
    assert options == {
        "--default-artifact-root": (home / "mlflow" / "artifacts").as_uri(),
        "--artifacts-destination": (home / "mlflow" / "artifacts").as_uri(),
        "--host": "127.0.0.1",
        "--port": "5055",
        "--workers": "1",
    }
    for kind in ("BACKEND", "REGISTRY"):
        assert environment[f"MLFLOW_{kind}_STORE_URI"] == f"sqlite:///{home}/mlflow/mlflow.db"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_the_password_of_a_database_is_not_on_the_command_line(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every user of a machine can read the arguments of a process, but not its environment."""
    uri = "postgresql://macrec:very-secret@db.example/mlflow"
    opened = dataclasses.replace(connect(home), uri=uri)
    monkeypatch.setattr(server, "connect", lambda _: opened)
    arguments, environment = server_command(home, 5055)
    assert not [argument for argument in arguments if "very-secret" in argument or "db.example" in argument]
    assert environment["MLFLOW_BACKEND_STORE_URI"] == environment["MLFLOW_REGISTRY_STORE_URI"] == uri


def test_links_follow_the_port_of_the_ui(home: Path) -> None:
    """Runs that start after `macrec ui --mlflow-port 5055` link to that port; a damaged record is ignored."""
    server_command(home, 5055)
    assert connect(home).ui_url == "http://127.0.0.1:5055"
    (home / "mlflow" / "ui-port").write_text("x", encoding="utf-8")
    assert connect(home).ui_url == "http://127.0.0.1:5000"


def test_links_to_the_runs_of_each_data_set(home: Path) -> None:
    """They open the view for model training, and only data sets of this product are listed."""
    store = connect(home)
    store.client.create_experiment("something-else")
    identifiers = {name: store.experiment_id(name) for name in ("shop", "demo")}
    assert training_run_links(home, "http://127.0.0.1:5055") == {
        name: f"http://127.0.0.1:5055/#/experiments/{identifiers[name]}/runs?workflowType=machine_learning"
        for name in ("demo", "shop")
    }


def test_an_error_of_the_database_names_its_cause() -> None:
    """SQLAlchemy puts a hint before the cause if a query flushed the session; the message is the cause."""
    error = OperationalError("INSERT INTO runs", {}, sqlite3.OperationalError("database is locked"))
    error.add_detail("raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block")
    cause = r"^saving: \(sqlite3\.OperationalError\) database is locked$"
    with pytest.raises(StoreUnavailableError, match=cause), one_line_errors("saving"):
        raise error


def test_the_ui_address(home: Path) -> None:
    """Links point to the UI on loopback, or to the address in the environment variable."""
    store = connect(home)
    assert store.ui_url == "http://127.0.0.1:5000"
    os.environ["MACREC_MLFLOW_UI_URL"] = "https://mlflow.example.com/"
    assert store.ui_url == "https://mlflow.example.com"
