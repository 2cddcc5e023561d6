"""What went down with a code server is failed once the next one answers, and nothing else is."""

import uuid
from contextlib import nullcontext

import dagster as dg
import pytest
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import MAX_RETRIES_TAG, RETRY_ON_ASSET_OR_OP_FAILURE_TAG, RUN_FAILURE_REASON_TAG
from dagster._core.test_utils import create_run_for_test

from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.resources import GPU_POOL
from macrec_pipeline.defs.servers import code_server
from macrec_pipeline.defs.servers.code_server import fail_runs, main, runs_at_work

Status = dg.DagsterRunStatus
ADDRESS = ["--host", "0.0.0.0", "--port", "4000"]


def _run(instance: dg.DagsterInstance, status: dg.DagsterRunStatus, **tags: str) -> str:
    run_id = str(uuid.uuid4())
    create_run_for_test(instance, job_name="full_pipeline", run_id=run_id, status=status, tags=tags)
    return run_id


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_only_its_children_are_failed(instance: dg.DagsterInstance) -> None:
    """Runs that were at work in the server; not those that wait, ended, or are processes of the command line."""
    dead = {_run(instance, Status.STARTED), _run(instance, Status.STARTING)}
    others = {
        _run(instance, Status.STARTED, **{LAUNCHED_BY: COMMAND_LINE}): Status.STARTED,
        **{_run(instance, status): status for status in (Status.NOT_STARTED, Status.SUCCESS, Status.CANCELED)},
    }
    found = runs_at_work(instance)
    assert set(found) == dead
    fail_runs(instance, found)
    assert {_status(instance, run_id) for run_id in dead} == {Status.FAILURE}
    assert {run_id: _status(instance, run_id) for run_id in others} == others
    assert runs_at_work(instance) == []


def test_a_run_that_has_ended_meanwhile_keeps_its_end(instance: dg.DagsterInstance) -> None:
    """Between the question and the answer of the new server somebody may have canceled it."""
    canceled = _run(instance, Status.CANCELED)
    fail_runs(instance, [canceled, str(uuid.uuid4())])
    assert _status(instance, canceled) == Status.CANCELED


def test_the_daemon_takes_the_run_up_again_and_its_slot_is_free(instance: dg.DagsterInstance) -> None:
    """The reason that is written down is one that Dagster retries; a step that failed by itself is none."""
    run_id = _run(instance, Status.STARTED, **{MAX_RETRIES_TAG: "1", RETRY_ON_ASSET_OR_OP_FAILURE_TAG: "false"})
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    instance.event_log_storage.claim_concurrency_slot(GPU_POOL, run_id, "recommender")
    fail_runs(instance, [run_id])
    run = instance.get_run_by_id(run_id)
    assert run is not None
    reason = RunFailureReason(run.tags[RUN_FAILURE_REASON_TAG])
    assert auto_reexecution_should_retry_run(instance, run, reason)
    assert not auto_reexecution_should_retry_run(instance, run, RunFailureReason.STEP_FAILURE)
    assert not instance.event_log_storage.get_concurrency_info(GPU_POOL).active_run_ids


def test_it_becomes_dagsters_server_and_leaves_the_dead_to_a_child(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The runs are looked for before there is a server, and failed by a process that waits for it."""
    became: list[list[str]] = []
    started: list[list[str]] = []
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: nullcontext(instance))
    monkeypatch.setattr(code_server.os, "execv", lambda _path, words: became.append(words))
    monkeypatch.setattr(code_server.subprocess, "Popen", started.append)
    main(ADDRESS)
    assert not started
    dead = _run(instance, Status.STARTED)
    main(ADDRESS)
    server = "-m dagster code-server start -m macrec_pipeline.definitions --host 0.0.0.0 --port 4000"
    assert [" ".join(words[1:]) for words in became] == [server, server]
    assert [words[2:] for words in started] == [
        ["macrec_pipeline.defs.servers.code_server", *ADDRESS, "--went-down", dead]
    ]


def test_runs_are_failed_only_once_the_server_answers(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The daemon gives up a run that it cannot start at once, so the server comes first."""
    dead = _run(instance, Status.STARTED)
    seen: list[str] = []

    class Client:
        def __init__(self, host: str, port: int) -> None:
            assert (host, port) == ("0.0.0.0", 4000)

        def list_repositories(self) -> None:
            seen.append(_status(instance, dead).value)
            if len(seen) < 3:
                raise DagsterUserCodeUnreachableError("not yet")

    waits: list[float] = []
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: nullcontext(instance))
    monkeypatch.setattr(code_server, "DagsterGrpcClient", Client)
    monkeypatch.setattr(code_server.time, "sleep", waits.append)
    main([*ADDRESS, "--went-down", dead])
    assert seen == ["STARTED"] * 3
    assert max(waits) > 10
    assert _status(instance, dead) == Status.FAILURE
