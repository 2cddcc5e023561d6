"""Concurrent runs on one home, of two data sets and of the same one, with SQLite and with PostgreSQL."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from macrec_pipeline.storage import AssetStore
from macrec_pipeline.tracking.store import connect
from tests.test_pipeline import DATASET

CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 900
# They include a training, which only one run may do at a time, but no encoder, whose weights take long to load.
ASSETS = ("raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories", "sasrec")
DAGSTER_ON_POSTGRESQL = "storage: {{postgres: {{postgres_url: '{url}'}}}}\ntelemetry: {{enabled: false}}\n"

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of the runs: two data sets, and a home that does not exist yet."""
    (tmp_path / "datasets").mkdir()
    for name in ("tiny", "other"):
        spec = DATASET.replace("name: tiny", f"name: {name}").replace("folder: shop", f"folder: {name}")
        (tmp_path / "datasets" / f"{name}.yaml").write_text(spec, encoding="utf-8")
    added = {"MACREC_HOME": str(tmp_path / "home"), "MACREC_DATA": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    removed = ("DAGSTER_HOME", "MLFLOW_", "MACREC_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    return {**inherited, **added, "MACREC_DATASETS": str(tmp_path / "datasets")}


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server for this test, with the databases `dagster` and `mlflow`."""
    for module in ("psycopg2", "dagster_postgres"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -c constraints.txt psycopg2-binary dagster-postgres")
    programs = Path(os.path.realpath(shutil.which("initdb") or "initdb")).parent
    if not (programs / "postgres").is_file():
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    # The folder is not below tmp_path, which only its owner may enter: root must run the server as another user.
    with tempfile.TemporaryDirectory() as name:
        folder, as_owner = Path(name), []
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres")
            as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        make = [*as_owner, str(programs / "initdb"), "-D", f"{folder}/data", "-U", "macrec", "--auth=trust"]
        subprocess.run(make, cwd=folder, check=True, capture_output=True, timeout=120)
        serve = [*as_owner, str(programs / "postgres"), "-D", f"{folder}/data", "-p", port, "-k", str(folder), "-F"]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(serve, cwd=folder, stdout=log, stderr=log)
        try:
            for database in ("dagster", "mlflow"):
                _create_database(programs, port, database)
            yield f"postgresql+psycopg2://macrec@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGQUIT)  # immediate shutdown
            server.wait(timeout=60)


def _create_database(programs: Path, port: str, name: str) -> None:
    command = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", port, "-U", "macrec", name]
    for _ in range(100):  # the server may still be starting
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.3)
    pytest.fail(f"the database {name} cannot be created: {done.stderr}")


def _run_concurrently(environment: dict[str, str]) -> None:
    """Start two runs of one data set and one of another; all of them must succeed."""
    command = [sys.executable, "-m", "tests.faults.concurrent_runs", ASSETS[-1], "tiny", "tiny", "other"]
    done = subprocess.run(
        command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    for status, output in results:
        assert status == 0, output[-3000:]


def _assert_complete(home: Path) -> None:
    """Every asset is complete, and every MLflow run is closed and has the digest of what it made."""
    client = connect(home, create=False).client
    for name, num_runs in (("tiny", 2), ("other", 1)):
        store = AssetStore(home, name)
        for asset in ASSETS:
            store.folder(asset)
        experiment = client.get_experiment_by_name(f"macrec/{name}")
        mlflow_runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in mlflow_runs} == {"FINISHED"}
        assert len(mlflow_runs) == num_runs * (1 + len(ASSETS))
        tags = [run.data.tags for run in mlflow_runs if "macrec.asset" in run.data.tags]
        digests = {(each["macrec.asset"], each["macrec.digest"]) for each in tags}
        assert digests == {(asset, store.manifest(asset).digest) for asset in ASSETS}
    assert not list(home.glob("*/.versions/*/writing-*"))


def test_on_sqlite(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes start on a home without a database: each waits where it must, and none fails."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _run_concurrently(environment)
    _assert_complete(Path(environment["MACREC_HOME"]))


def test_on_postgresql(
    environment: dict[str, str], postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same holds if Dagster and MLflow use a database server whose tables do not exist yet."""
    dagster = tmp_path / "dagster"
    dagster.mkdir()
    (dagster / "dagster.yaml").write_text(DAGSTER_ON_POSTGRESQL.format(url=f"{postgresql}/dagster"), encoding="utf-8")
    uri = f"{postgresql}/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _run_concurrently(environment | {"DAGSTER_HOME": str(dagster), "MLFLOW_TRACKING_URI": uri})
    _assert_complete(Path(environment["MACREC_HOME"]))
