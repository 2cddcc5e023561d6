"""Runs that a code server took down with it are failed once the next server responds, and no other runs are."""

import uuid
from contextlib import nullcontext

import dagster as dg
import pytest
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import MAX_RETRIES_TAG, RUN_FAILURE_REASON_TAG

from macrec_pipeline.defs.dagster_private import RETRY_ON_STEP_FAILURE_TAG, DagsterUserCodeUnreachableError
from macrec_pipeline.defs.resources import GPU_POOL
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.servers import code_server
from macrec_pipeline.defs.servers.code_server import fail_runs, main, runs_of_code_server
from tests.defs.conftest import add_run

Status = dg.DagsterRunStatus
ADDRESS = ["--host", "0.0.0.0", "--port", "4000"]


def _run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> str:
    return add_run(instance, status=status, tags=tags).run_id


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_only_children_of_the_server_are_failed(instance: dg.DagsterInstance) -> None:
    """Runs in progress are failed, but not runs that wait, have ended, or belong to a command-line process."""
    children = {_run(instance, Status.STARTED), _run(instance, Status.STARTING)}
    others = {
        _run(instance, Status.STARTED, **{LAUNCHED_BY: COMMAND_LINE}): Status.STARTED,
        **{_run(instance, status): status for status in (Status.NOT_STARTED, Status.SUCCESS, Status.CANCELED)},
    }
    found = runs_of_code_server(instance)
    assert set(found) == children
    fail_runs(instance, found)
    assert {_status(instance, run_id) for run_id in children} == {Status.FAILURE}
    assert {run_id: _status(instance, run_id) for run_id in others} == others
    assert runs_of_code_server(instance) == []


def test_a_run_that_has_ended_keeps_its_status(instance: dg.DagsterInstance) -> None:
    """Someone may cancel a run while the new server is still starting; unknown runs are ignored."""
    canceled = _run(instance, Status.CANCELED)
    fail_runs(instance, [canceled, str(uuid.uuid4())])
    assert _status(instance, canceled) == Status.CANCELED


def test_the_daemon_retries_a_failed_run_and_its_slot_is_free(instance: dg.DagsterInstance) -> None:
    """Dagster retries the recorded failure reason, but not the reason of a step that failed by itself."""
    run_id = _run(instance, Status.STARTED, **{MAX_RETRIES_TAG: "1", RETRY_ON_STEP_FAILURE_TAG: "false"})
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    instance.event_log_storage.claim_concurrency_slot(GPU_POOL, run_id, "recommender")
    fail_runs(instance, [run_id])
    run = instance.get_run_by_id(run_id)
    assert run is not None
    reason = RunFailureReason(run.tags[RUN_FAILURE_REASON_TAG])
    assert auto_reexecution_should_retry_run(instance, run, reason)
    assert not auto_reexecution_should_retry_run(instance, run, RunFailureReason.STEP_FAILURE)
    assert not instance.event_log_storage.get_concurrency_info(GPU_POOL).active_run_ids


def test_it_becomes_the_server_of_dagster_and_a_child_fails_the_dead_runs(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dead runs are found before the server starts, and a child process that waits for the server fails them."""
    executed: list[list[str]] = []
    started: list[list[str]] = []
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: nullcontext(instance))
    monkeypatch.setattr(code_server.os, "execv", lambda _path, arguments: executed.append(arguments))
    monkeypatch.setattr(code_server.subprocess, "Popen", started.append)
    main(ADDRESS)
    assert not started
    dead = _run(instance, Status.STARTED)
    main(ADDRESS)
    server = "-m dagster code-server start -m macrec_pipeline.definitions --host 0.0.0.0 --port 4000"
    assert [" ".join(arguments[1:]) for arguments in executed] == [server, server]
    assert [arguments[2:] for arguments in started] == [
        ["macrec_pipeline.defs.servers.code_server", *ADDRESS, "--fail-runs", dead]
    ]


def test_runs_are_failed_only_once_the_server_responds(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon gives up a run that it cannot launch at once, so the server must respond first."""
    dead = _run(instance, Status.STARTED)
    statuses: list[str] = []

    class Client:
        def __init__(self, host: str, port: int) -> None:
            assert (host, port) == ("0.0.0.0", 4000)

        def list_repositories(self) -> None:
            statuses.append(_status(instance, dead).value)
            if len(statuses) < 3:
                raise DagsterUserCodeUnreachableError("not yet")

    waits: list[float] = []
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: nullcontext(instance))
    monkeypatch.setattr(code_server, "DagsterGrpcClient", Client)
    monkeypatch.setattr(code_server.time, "sleep", waits.append)
    main([*ADDRESS, "--fail-runs", dead])
    assert statuses == ["STARTED"] * 3
    assert max(waits) > 10
    assert _status(instance, dead) == Status.FAILURE
