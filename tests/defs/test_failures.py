"""A failed run tells its owner what failed, why, and how to continue."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, ERROR_TAG, LAUNCHED_BY, RESUME_TAG
from macrec_pipeline.defs.runs.failures import COMMAND, WEBHOOK, report_failure
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.defs.runs.liveness import close_dead_runs
from macrec_pipeline.defs.runs.run_sensors import failure_sensor
from macrec_pipeline.errors import StorageError
from tests.defs.conftest import add_run


@pytest.fixture(autouse=True)
def _no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (COMMAND, WEBHOOK):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """The messages that a webhook on loopback has received."""
    received: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.server_port}/hook?token=secret")
        yield received
        server.shutdown()


def _failed(instance: dg.DagsterInstance, *, job: str = "refresh", **tags: str) -> dg.DagsterRun:
    status = dg.DagsterRunStatus.FAILURE
    return add_run(instance, job=job, status=status, tags={"dagster/partition": "demo", **tags})


def test_a_failed_command_reports_the_error_of_its_asset(
    settings: Settings, partition: str, posted: list[dict[str, str]]
) -> None:
    """The hook gets the asset's error and the command that continues; the run's page has both."""
    home = settings.home_folder()
    with pytest.raises(StorageError, match="does not exist yet") as raised:
        launch(LaunchRequest(partition, home, settings.data_folder(), only="histories"), defs=defs)
    (message,) = posted
    assert (message["dataset"], message["job"]) == (partition, "full_pipeline")
    assert message["error"] == f"histories: StorageError: {raised.value}"
    assert f"`macrec run {partition}`" in message["resume"]
    assert message["error"] in message["text"]
    assert message["resume"] in message["text"]
    with open_instance(home) as instance:
        run = instance.get_run_by_id(message["run_id"])
        assert run is not None
        assert (run.tags[ERROR_TAG], run.tags[RESUME_TAG]) == (message["error"], message["resume"])
        failed = run.status == dg.DagsterRunStatus.FAILURE
        assert failed


def test_the_owners_command_gets_the_message(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's command gets the message on standard input and without a shell, so shell syntax in it stays text."""
    received = tmp_path / "message.json"
    code = f"import pathlib, sys; pathlib.Path({str(received)!r}).write_bytes(sys.stdin.buffer.read())"
    monkeypatch.setenv(COMMAND, f'{sys.executable} -c "{code}"')
    message = report_failure(instance, _failed(instance), reason="disk\n  full; $(rm -rf x)")
    assert json.loads(received.read_text()) == message
    assert message["error"] == "disk full; $(rm -rf x)"
    assert "`macrec refresh demo`" in message["resume"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (COMMAND, "/no/such/program --token secret"),
        (COMMAND, f"{sys.executable} -c 'raise SystemExit(3)' secret"),
        (COMMAND, "unclosed 'secret"),
        (WEBHOOK, "http://127.0.0.1:9/secret"),
        (WEBHOOK, "file:///etc/passwd?secret"),
    ],
)
def test_a_failing_hook_is_logged_without_its_secrets(
    name: str,
    value: str,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A failing hook must not hide the run's failure, and the address of a webhook is often its password."""
    monkeypatch.setenv(name, value)
    run = _failed(instance)
    report_failure(instance, run, reason="x")
    assert f"The hook in {name} failed with" in caplog.text
    assert "secret" not in caplog.text
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    assert stored.tags[ERROR_TAG] == "x"


def test_the_next_command_reports_a_killed_one(
    instance: dg.DagsterInstance, tmp_path: Path, posted: list[dict[str, str]]
) -> None:
    """The process of the killed command is gone, and a daemon does not watch it."""
    tags = {LAUNCHED_BY: COMMAND_LINE, "dagster/partition": "demo"}
    add_run(instance, tags=tags)
    assert len(close_dead_runs(instance, tmp_path)) == 1
    assert ["killed" in message["error"] for message in posted] == [True]


@pytest.mark.parametrize(("by_command_line", "times"), [(False, 1), (True, 0)])
def test_the_daemon_reports_failed_runs_that_no_command_launched(
    by_command_line: bool, times: int, instance: dg.DagsterInstance, posted: list[dict[str, str]]
) -> None:
    """The daemon reports a failed run of the UI, a schedule or a sensor once; a command reports its own failure."""
    run = _failed(instance, job="batch_recommendations", **({LAUNCHED_BY: COMMAND_LINE} if by_command_line else {}))
    event = dg.DagsterEvent("PIPELINE_FAILURE", job_name=run.job_name, message="The step worker was killed.")
    instance.report_dagster_event(event, run_id=run.run_id)
    context = dg.build_run_status_sensor_context("tell_of_failures", event, instance, run).for_run_failure()
    failure_sensor(context)
    assert len(posted) == times
    if posted:
        assert posted[0]["error"] == "The step worker was killed."
        assert "`macrec recommend-all demo`" in posted[0]["resume"]


@pytest.mark.parametrize(("will_retry", "times"), [("true", 0), ("false", 1)])
def test_no_hook_is_called_for_a_run_that_the_daemon_retries(
    will_retry: str, times: int, instance: dg.DagsterInstance, posted: list[dict[str, str]]
) -> None:
    """The run's page says that it will be retried; only the last attempt calls the hooks."""
    run = _failed(instance, **{"dagster/will_retry": will_retry})
    message = report_failure(instance, run, reason="killed")
    assert posted == [message] * times
    stored = instance.get_run_by_id(run.run_id)
    assert stored is not None
    assert stored.tags[ERROR_TAG] == "killed"
    assert ("No action is needed" in stored.tags[RESUME_TAG]) == (times == 0)
