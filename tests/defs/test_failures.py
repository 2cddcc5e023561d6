"""A failed run tells its owner what failed, why, and how to go on."""

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.abandoned import close_abandoned_runs
from macrec_pipeline.defs.runs.failures import COMMAND, ERROR_TAG, RESUME_TAG, WEBHOOK, tell_of_failure
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.defs.runs.run_sensors import tell_of_failures
from macrec_pipeline.errors import StorageError


@pytest.fixture(autouse=True)
def _no_hooks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (COMMAND, WEBHOOK):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def posted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    """What a webhook on loopback was sent."""
    got: list[dict[str, str]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.headers["Content-Type"] == "application/json"
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *words: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(WEBHOOK, f"http://127.0.0.1:{server.server_port}/hook?token=secret")
        yield got
        server.shutdown()


def _failed(instance: dg.DagsterInstance, *, job: str = "refresh", **tags: str) -> dg.DagsterRun:
    status = dg.DagsterRunStatus.FAILURE
    return create_run_for_test(instance, job_name=job, status=status, tags={"dagster/partition": "demo", **tags})


def test_a_failed_command_tells_what_its_stage_said(
    settings: Settings, partition: str, posted: list[dict[str, str]]
) -> None:
    """The hook gets the error of the stage and the command to go on with; the run's page has both."""
    home = settings.home_folder()
    with pytest.raises(StorageError, match="is not there yet") as raised:
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
    """On standard input, without a shell: what looks like one in the error stays text."""
    keep = tmp_path / "message.json"
    code = f"import pathlib, sys; pathlib.Path({str(keep)!r}).write_bytes(sys.stdin.buffer.read())"
    monkeypatch.setenv(COMMAND, f'{sys.executable} -c "{code}"')
    message = tell_of_failure(instance, _failed(instance), why="disk\n  full; $(rm -rf x)")
    assert json.loads(keep.read_text()) == message
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
def test_a_hook_that_fails_is_told_without_its_secrets(
    name: str,
    value: str,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The run's own failure is what counts; the address of a webhook is often its password."""
    monkeypatch.setenv(name, value)
    run = _failed(instance)
    tell_of_failure(instance, run, why="x")
    assert f"The hook of {name} could not be told" in caplog.text
    assert "secret" not in caplog.text
    kept = instance.get_run_by_id(run.run_id)
    assert kept is not None
    assert kept.tags[ERROR_TAG] == "x"


def test_a_killed_command_is_told_of_by_the_next(
    instance: dg.DagsterInstance, tmp_path: Path, posted: list[dict[str, str]]
) -> None:
    """Nobody else can: its process is gone, and a daemon does not watch it."""
    tags = {LAUNCHED_BY: COMMAND_LINE, "dagster/partition": "demo"}
    create_run_for_test(instance, job_name="full_pipeline", status=dg.DagsterRunStatus.STARTED, tags=tags)
    assert len(close_abandoned_runs(instance, tmp_path)) == 1
    assert ["killed" in message["error"] for message in posted] == [True]


@pytest.mark.parametrize(("by_command_line", "times"), [(False, 1), (True, 0)])
def test_the_daemon_tells_of_the_runs_that_it_sees_fail(
    by_command_line: bool, times: int, instance: dg.DagsterInstance, posted: list[dict[str, str]]
) -> None:
    """Of those of the UI, a schedule or a sensor, once; a command has told of itself."""
    run = _failed(instance, job="batch_recommendations", **({LAUNCHED_BY: COMMAND_LINE} if by_command_line else {}))
    event = dg.DagsterEvent("PIPELINE_FAILURE", job_name=run.job_name, message="The step worker was killed.")
    instance.report_dagster_event(event, run_id=run.run_id)
    context = dg.build_run_status_sensor_context("tell_of_failures", event, instance, run).for_run_failure()
    tell_of_failures(context)
    assert len(posted) == times
    if posted:
        assert posted[0]["error"] == "The step worker was killed."
        assert "`macrec recommend-all demo`" in posted[0]["resume"]


@pytest.mark.parametrize(("will_retry", "times"), [("true", 0), ("false", 1)])
def test_nobody_is_woken_for_a_run_that_goes_on_by_itself(
    will_retry: str, times: int, instance: dg.DagsterInstance, posted: list[dict[str, str]]
) -> None:
    """Its page says so; the last attempt, which is not taken up again, is told of."""
    run = _failed(instance, **{"dagster/will_retry": will_retry})
    message = tell_of_failure(instance, run, why="killed")
    assert posted == [message] * times
    kept = instance.get_run_by_id(run.run_id)
    assert kept is not None
    assert kept.tags[ERROR_TAG] == "killed"
    assert ("by itself" in kept.tags[RESUME_TAG]) == (times == 0)
