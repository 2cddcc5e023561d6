"""Runs that nobody will end any more are closed; runs that somebody works at are left alone."""

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test
from dagster._daemon.types import DaemonHeartbeat
from filelock import FileLock

from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.resources import GPU_POOL
from macrec_pipeline.defs.runs.abandoned import (
    close_abandoned_runs,
    close_runs_of_a_stopped_ui,
    runs_at_work,
    sign_of_life,
    turn_of,
    who_computes,
)
from macrec_pipeline.errors import ConfigError

STARTED = dg.DagsterRunStatus.STARTED
FIRST, SECOND, THIRD = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


def _start(instance: dg.DagsterInstance, run_id: str, *, by_command_line: bool) -> None:
    tags = {LAUNCHED_BY: COMMAND_LINE} if by_command_line else {}
    create_run_for_test(instance, job_name="full_pipeline", run_id=run_id, status=STARTED, tags=tags)


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def _beat(instance: dg.DagsterInstance, *, seconds_ago: float) -> None:
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, "SENSOR", "daemon", None))


def test_a_command_line_run_lives_as_long_as_its_process(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """The lock decides: held, the run is at work; gone or free, its process was killed."""
    living, killed, vanished = FIRST, SECOND, THIRD
    for run_id in (living, killed, vanished):
        _start(instance, run_id, by_command_line=True)
    with sign_of_life(tmp_path, killed):
        pass
    (tmp_path / ".running" / f"{killed}.lock").touch()  # a killed process leaves the file, not the lock
    with sign_of_life(tmp_path, living):
        assert set(close_abandoned_runs(instance, tmp_path)) == {killed, vanished}
        assert _status(instance, living) == STARTED
    for run_id in (killed, vanished):
        assert _status(instance, run_id) == dg.DagsterRunStatus.CANCELED
    assert close_abandoned_runs(instance, tmp_path) == [living]
    assert not list((tmp_path / ".running").iterdir())


@pytest.mark.parametrize(("seconds_ago", "closed"), [(None, 1), (5.0, 0), (3600.0, 1)])
def test_a_run_of_the_ui_needs_a_daemon(
    seconds_ago: float | None, closed: int, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Without a daemon that was heard of lately nothing works at the runs that a UI launched."""
    _start(instance, FIRST, by_command_line=False)
    if seconds_ago is not None:
        _beat(instance, seconds_ago=seconds_ago)
    assert len(close_abandoned_runs(instance, tmp_path)) == closed


def test_a_stopped_ui_takes_only_its_own_runs_along(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Runs of the command line, and those of an earlier UI, are none of its business."""
    _start(instance, FIRST, by_command_line=False)
    _start(instance, SECOND, by_command_line=True)
    now = datetime.now(UTC)
    assert close_runs_of_a_stopped_ui(instance, tmp_path, started=now + timedelta(minutes=1)) == []
    assert close_runs_of_a_stopped_ui(instance, tmp_path, started=now - timedelta(minutes=1)) == [FIRST]
    assert _status(instance, SECOND) == STARTED


def test_the_training_slot_of_a_killed_run_is_freed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """A slot that a dead run keeps would make every later training wait for ever."""
    _start(instance, THIRD, by_command_line=True)
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    instance.event_log_storage.claim_concurrency_slot(GPU_POOL, THIRD, "recommender")
    assert who_computes(instance) == [THIRD]
    close_abandoned_runs(instance, tmp_path)
    assert who_computes(instance) == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The lock is the first thing that a run writes into its home."""
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match="home cannot be written"), sign_of_life(tmp_path / "home", "run"):
        pass


def test_runs_of_one_data_set_take_turns(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A command waits for the run of a UI and for another command, of the same data set and of no other."""
    _beat(instance, seconds_ago=1)
    of_demo = {"dagster/partition": "demo"}
    create_run_for_test(instance, job_name="full_pipeline", run_id=FIRST, status=STARTED, tags=of_demo)
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 5:
            instance.report_run_canceled(instance.get_run_by_id(FIRST), "done")  # type: ignore[arg-type]
        if len(waits) == 2:
            another_command.release()
        assert runs_at_work(instance, "demo") == ([FIRST] if len(waits) < 5 else [])

    another_command = FileLock(tmp_path / ".turns" / "demo.lock")
    Path(another_command.lock_file).parent.mkdir()
    another_command.acquire()
    monkeypatch.setattr("macrec_pipeline.defs.runs.abandoned.time.sleep", wait)
    with caplog.at_level("INFO", logger="macrec_pipeline"):
        with turn_of(instance, tmp_path, "other"):
            assert waits == []
        with turn_of(instance, tmp_path, "demo"):
            assert len(waits) == 5
        another_command.acquire(timeout=0)  # it is free again
        another_command.release()
    assert caplog.messages == [f"The run {FIRST} is at work on demo. This one waits until it is done."]


def test_a_command_that_died_keeps_nobody_waiting(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """The kernel frees its lock, and its run is closed before it is waited for."""
    tags = {LAUNCHED_BY: COMMAND_LINE, "dagster/partition": "demo"}
    create_run_for_test(instance, job_name="full_pipeline", run_id=FIRST, status=STARTED, tags=tags)
    with turn_of(instance, tmp_path, "demo"):
        assert _status(instance, FIRST) == dg.DagsterRunStatus.CANCELED
