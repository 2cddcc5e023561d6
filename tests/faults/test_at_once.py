"""Runs at once on one home: of two data sets, and of the same one, on sqlite and on PostgreSQL."""

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
# A training is among them, of which there may be one at a time; no encoder, whose weights take long to load.
MADE = ("raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories", "sasrec")
DAGSTER_ON_POSTGRESQL = "storage: {{postgres: {{postgres_url: '{url}'}}}}\ntelemetry: {{enabled: false}}\n"

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Two data sets, a home that does not exist yet."""
    (tmp_path / "datasets").mkdir()
    for name in ("tiny", "other"):
        own = DATASET.replace("name: tiny", f"name: {name}").replace("folder: shop", f"folder: {name}")
        (tmp_path / "datasets" / f"{name}.yaml").write_text(own, encoding="utf-8")
    own = {"MACREC_HOME": str(tmp_path / "home"), "MACREC_DATA": str(tmp_path / "data"), "HF_HUB_OFFLINE": "1"}
    foreign = ("DAGSTER_HOME", "MLFLOW_", "MACREC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {**kept, **own, "MACREC_DATASETS": str(tmp_path / "datasets")}


@pytest.fixture
def postgresql() -> Iterator[str]:
    """The URL of a PostgreSQL server of the test's own; it holds the databases `dagster` and `mlflow`."""
    for module in ("psycopg2", "dagster_postgres"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -c constraints.txt psycopg2-binary dagster-postgres")
    programs = Path(os.path.realpath(shutil.which("initdb") or "initdb")).parent
    if not (programs / "postgres").is_file():
        pytest.skip("PostgreSQL is not installed: there is no initdb")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = str(probe.getsockname()[1])
    # Not below tmp_path, which nobody but its owner may enter: as root, the server has to be another user's.
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
            server.send_signal(signal.SIGQUIT)  # at once
            server.wait(timeout=60)


def _create_database(programs: Path, port: str, name: str) -> None:
    command = [str(programs / "createdb"), "-h", "127.0.0.1", "-p", port, "-U", "macrec", name]
    for _ in range(100):  # the server may still be starting
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.3)
    pytest.fail(f"the database {name} cannot be made: {done.stderr}")


def _run_at_once(environment: dict[str, str]) -> None:
    """Two runs of one data set and one of another; all must end well."""
    command = [sys.executable, "-m", "tests.faults.at_once", MADE[-1], "tiny", "tiny", "other"]
    done = subprocess.run(
        command, env=environment, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = json.loads(done.stdout.splitlines()[-1])
    for status, said in ends:
        assert status == 0, said[-3000:]


def _assert_sound(home: Path) -> None:
    """Every asset is whole, and every run is closed and says what it made."""
    client = connect(home, create=False).client
    for name, runs in (("tiny", 2), ("other", 1)):
        store = AssetStore(home, name)
        for asset in MADE:
            store.folder(asset)
        experiment = client.get_experiment_by_name(f"macrec/{name}")
        found = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in found} == {"FINISHED"}
        assert len(found) == runs * (1 + len(MADE))
        tags = [run.data.tags for run in found if "macrec.asset" in run.data.tags]
        digests = {(each["macrec.asset"], each["macrec.digest"]) for each in tags}
        assert digests == {(asset, store.manifest(asset).digest) for asset in MADE}
    assert not list(home.glob("*/.versions/*/writing-*"))


def test_on_sqlite(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes that meet a home without a database: each waits where it must, none fails."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    _run_at_once(environment)
    _assert_sound(Path(environment["MACREC_HOME"]))


def test_on_postgresql(
    environment: dict[str, str], postgresql: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same with Dagster's and MLflow's records on a server, whose tables nobody has made yet."""
    dagster = tmp_path / "dagster"
    dagster.mkdir()
    (dagster / "dagster.yaml").write_text(DAGSTER_ON_POSTGRESQL.format(url=f"{postgresql}/dagster"), encoding="utf-8")
    uri = f"{postgresql}/mlflow"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    _run_at_once(environment | {"DAGSTER_HOME": str(dagster), "MLFLOW_TRACKING_URI": uri})
    _assert_sound(Path(environment["MACREC_HOME"]))
