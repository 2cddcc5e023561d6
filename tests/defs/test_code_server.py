"""What went down with a code server is failed when the next one starts, and nothing else is."""

import uuid

import dagster as dg
import pytest
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import MAX_RETRIES_TAG, RUN_FAILURE_REASON_TAG
from dagster._core.test_utils import create_run_for_test

from macrec_pipeline.defs import code_server
from macrec_pipeline.defs.code_server import fail_runs_of_the_server_before
from macrec_pipeline.defs.resources import TRAINING_POOL
from macrec_pipeline.defs.tracked import COMMAND_LINE, LAUNCHED_BY

Status = dg.DagsterRunStatus


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
    assert set(fail_runs_of_the_server_before(instance)) == dead
    assert {_status(instance, run_id) for run_id in dead} == {Status.FAILURE}
    assert {run_id: _status(instance, run_id) for run_id in others} == others
    assert fail_runs_of_the_server_before(instance) == []


def test_the_daemon_takes_the_run_up_again_and_its_slot_is_free(instance: dg.DagsterInstance) -> None:
    """The reason that is written down is one that Dagster retries; a step that failed by itself is none."""
    run_id = _run(instance, Status.STARTED, **{MAX_RETRIES_TAG: "1", "dagster/retry_on_asset_or_op_failure": "false"})
    instance.event_log_storage.set_concurrency_slots(TRAINING_POOL, 1)
    instance.event_log_storage.claim_concurrency_slot(TRAINING_POOL, run_id, "recommender")
    fail_runs_of_the_server_before(instance)
    run = instance.get_run_by_id(run_id)
    assert run is not None
    reason = RunFailureReason(run.tags[RUN_FAILURE_REASON_TAG])
    assert auto_reexecution_should_retry_run(instance, run, reason)
    assert not auto_reexecution_should_retry_run(instance, run, RunFailureReason.STEP_FAILURE)
    assert not instance.event_log_storage.get_concurrency_info(TRAINING_POOL).active_run_ids


def test_the_server_gets_its_own_words(monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance) -> None:
    """This process becomes Dagster's code server of the package, with the host and the port that it was given."""
    became: list[list[str]] = []
    monkeypatch.setattr(dg.DagsterInstance, "get", lambda: dg.DagsterInstance.ephemeral())
    monkeypatch.setattr(code_server.os, "execv", lambda _path, words: became.append(words))
    monkeypatch.setattr(code_server.sys, "argv", ["code_server", "-h", "0.0.0.0", "-p", "4000"])
    code_server.main()
    assert " ".join(became[0][1:]) == "-m dagster code-server start -m macrec_pipeline.definitions -h 0.0.0.0 -p 4000"
