"""Runs at once on one home: of two data sets, and of the same one, on sqlite and on PostgreSQL."""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from macrec_pipeline.storage import AssetStore
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
def postgresql(tmp_path: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server of the test's own; it holds the databases `dagster` and `mlflow`."""
    for module in ("psycopg2", "dagster_postgres"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed: pip install -c constraints.txt psycopg2-binary dagster-postgres")
    programs = Path(os.path.realpath(shutil.which("initdb") or "initdb")).parent
    if not (programs / "pg_ctl").is_file():
        pytest.skip("PostgreSQL is not installed: initdb and pg_ctl are not there")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path / "postgresql"
    folder.mkdir()
    as_owner: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        for parent in folder.parents[:-1]:
            if parent.stat().st_uid == os.geteuid() and parent != Path("/tmp"):
                parent.chmod(parent.stat().st_mode | 0o011)
        as_owner = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]

    def call(program: str, *arguments: str) -> None:
        subprocess.run(
            [*as_owner, str(programs / program), *arguments], cwd=folder, check=True, capture_output=True, timeout=120
        )

    call("initdb", "-D", str(folder / "data"), "-U", "macrec", "--auth=trust")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    call("pg_ctl", "-D", str(folder / "data"), "-l", str(folder / "log"), "-w", "-o", options, "start")
    try:
        for name in ("dagster", "mlflow"):
            call("createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "macrec", name)
        yield f"postgresql+psycopg2://macrec@127.0.0.1:{port}"
    finally:
        call("pg_ctl", "-D", str(folder / "data"), "-m", "immediate", "stop")


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


def _assert_sound(home: Path, uri: str) -> None:
    """Every asset is whole, and every run is closed and says what it made."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, uri)
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


def test_on_sqlite(environment: dict[str, str]) -> None:
    """Three processes that meet a home without a database: each waits where it must, none fails."""
    _run_at_once(environment)
    home = Path(environment["MACREC_HOME"])
    _assert_sound(home, f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")


def test_on_postgresql(environment: dict[str, str], postgresql: str, tmp_path: Path) -> None:
    """The same with Dagster's and MLflow's records on a server, whose tables nobody has made yet."""
    dagster = tmp_path / "dagster"
    dagster.mkdir()
    (dagster / "dagster.yaml").write_text(DAGSTER_ON_POSTGRESQL.format(url=f"{postgresql}/dagster"), encoding="utf-8")
    uri = f"{postgresql}/mlflow"
    _run_at_once(environment | {"DAGSTER_HOME": str(dagster), "MLFLOW_TRACKING_URI": uri})
    _assert_sound(Path(environment["MACREC_HOME"]), uri)
