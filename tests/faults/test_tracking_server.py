"""An MLflow server that hangs, stops and comes back while a training logs: nothing fails and nothing is lost."""

import os
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.errors import StoreUnavailableError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import AssetRun, Tracker, asset_run, open_tracking, outbox, server_command

SECONDS = 120
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "1"}

pytestmark = pytest.mark.slow


class Server:
    """`mlflow server` on a free port, which can be killed and started again."""

    def __init__(self, home: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._command, self._environment = server_command(home, self.port)
        self._log = home / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        pytest.fail(f"the server did not start: {self._log.read_text()[-2000:]}")

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "MACREC_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "server").mkdir()
    running = Server(tmp_path / "server")
    running.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", running.url)
    for name, value in IMPATIENT.items():  # fail at once instead of after several seconds
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(outbox, "_SHORT_TIMEOUTS", IMPATIENT)
    for name, seconds in {"_BATCH_SECONDS": 0.05, "_FIRST_RETRY_SECONDS": 0.1, "_MAX_RETRY_SECONDS": 0.2}.items():
        monkeypatch.setattr(asset_run, name, seconds)
    yield running
    running.kill()


def _run(tracker: Tracker, asset: str) -> Any:
    return tracker.asset_run(dataset="demo", asset=asset, dagster_run_id="run-1", config=resolve_config("demo"))


def _train(run: AssetRun, steps: range) -> None:
    """Log a few batches, then a plot and a tag."""
    for step in steps:
        run.log_metrics({"loss": 1 / (step + 1)}, step=step)
        time.sleep(0.02)
    run.log_bytes(f"plots/{steps.stop}.png", b"\x89PNG" + bytes(steps.stop))
    run.set_tags({f"until.{steps.stop}": "done"})


def _assert_complete(server: Server, run: AssetRun, *stops: int) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(server.url)
    points = sorted((point.step, point.value) for point in client.get_metric_history(run.run_id, "loss"))
    assert points == [(step, 1 / (step + 1)) for step in range(stops[-1])]
    stored = client.get_run(run.run_id)
    assert stored.info.status == "FINISHED"
    assert stored.info.end_time is not None
    for stop in stops:
        assert stored.data.tags[f"until.{stop}"] == "done"
        plot = Path(client.download_artifacts(run.run_id, f"plots/{stop}.png"))
        assert plot.read_bytes() == b"\x89PNG" + bytes(stop)


def test_a_server_that_stops_and_comes_back(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After the server hung, was killed and came back, the run has every point, plot and tag exactly once."""
    home = tmp_path / "home"
    with _run(open_tracking(home), "recommender") as run:
        _train(run, range(20))
        server.signal(signal.SIGSTOP)
        _train(run, range(20, 40))
        server.signal(signal.SIGCONT)
        _train(run, range(40, 60))
        server.kill()
        _train(run, range(60, 80))
        server.start()
        _train(run, range(80, 100))
    assert any("trying again in" in message for message in caplog.messages)
    _assert_complete(server, run, 20, 40, 60, 80, 100)
    assert not list((home / "mlflow" / "unsent").iterdir())


def test_a_server_that_is_unavailable_at_the_end(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The asset succeeds and says where unsent data is. A new one fails before its work; later all data is sent."""
    home = tmp_path / "home"
    with _run(open_tracking(home), "recommender") as run:
        _train(run, range(20))
        server.kill()
        _train(run, range(20, 40))
    unsent = home / "mlflow" / "unsent" / run.run_id
    warning = f"recommender: data that could not be sent to MLflow is in {unsent}; the next run sends it."
    assert warning in caplog.messages
    with pytest.raises(StoreUnavailableError, match=rf"^MLflow store {server.url}: .*failed"):
        open_tracking(home)
    server.start()
    with _run(open_tracking(home), "predictions"):
        _assert_complete(server, run, 20, 40)
    assert not unsent.exists()
