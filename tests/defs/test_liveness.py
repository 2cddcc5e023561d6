"""Runs whose process has died are closed, and runs that are alive are left alone."""

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from dagster._daemon.types import DaemonHeartbeat
from filelock import FileLock

from macrec_pipeline.defs.resources import GPU_POOL
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.runs.liveness import (
    close_dead_runs,
    close_runs_of_stopped_ui,
    hold_run_lock,
    runs_holding_gpu_pool,
    unfinished_runs,
    wait_for_turn,
)
from macrec_pipeline.errors import ConfigError
from tests.defs.conftest import add_run

STARTED = dg.DagsterRunStatus.STARTED
FIRST, SECOND, THIRD = (str(uuid.UUID(int=number)) for number in (1, 2, 3))


def _start(instance: dg.DagsterInstance, run_id: str, *, by_command_line: bool) -> None:
    add_run(instance, run_id=run_id, tags={LAUNCHED_BY: COMMAND_LINE} if by_command_line else {})


def _status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def _send_heartbeat(instance: dg.DagsterInstance, *, seconds_ago: float) -> None:
    instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - seconds_ago, "SENSOR", "daemon", None))


def test_a_command_line_run_is_alive_as_long_as_its_process(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """The run is alive while its lock is held. If the lock is free or its file is missing, the process was killed."""
    alive, killed, without_file = FIRST, SECOND, THIRD
    for run_id in (alive, killed, without_file):
        _start(instance, run_id, by_command_line=True)
    with hold_run_lock(tmp_path, killed):
        pass
    (tmp_path / ".running" / f"{killed}.lock").touch()  # a killed process leaves the file, but its lock is free
    with hold_run_lock(tmp_path, alive):
        assert set(close_dead_runs(instance, tmp_path)) == {killed, without_file}
        assert _status(instance, alive) == STARTED
    for run_id in (killed, without_file):
        assert _status(instance, run_id) == dg.DagsterRunStatus.CANCELED
    assert close_dead_runs(instance, tmp_path) == [alive]
    assert not list((tmp_path / ".running").iterdir())


@pytest.mark.parametrize(("seconds_ago", "closed"), [(None, 1), (5.0, 0), (3600.0, 1)])
def test_a_run_of_the_ui_is_alive_as_long_as_a_daemon_sends_heartbeats(
    seconds_ago: float | None, closed: int, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    """Without a recent heartbeat of a daemon, no process works on the runs that a UI launched."""
    _start(instance, FIRST, by_command_line=False)
    if seconds_ago is not None:
        _send_heartbeat(instance, seconds_ago=seconds_ago)
    assert len(close_dead_runs(instance, tmp_path)) == closed


def test_stopping_a_ui_closes_only_its_own_runs(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """Runs of the command line and runs of an earlier UI are left alone."""
    _start(instance, FIRST, by_command_line=False)
    _start(instance, SECOND, by_command_line=True)
    now = datetime.now(UTC)
    assert close_runs_of_stopped_ui(instance, tmp_path, started=now + timedelta(minutes=1)) == []
    assert close_runs_of_stopped_ui(instance, tmp_path, started=now - timedelta(minutes=1)) == [FIRST]
    assert _status(instance, SECOND) == STARTED


def test_the_pool_slot_of_a_killed_run_is_freed(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """If a dead run kept its slot, every later training would wait forever."""
    _start(instance, THIRD, by_command_line=True)
    instance.event_log_storage.set_concurrency_slots(GPU_POOL, 1)
    instance.event_log_storage.claim_concurrency_slot(GPU_POOL, THIRD, "recommender")
    assert runs_holding_gpu_pool(instance) == [THIRD]
    close_dead_runs(instance, tmp_path)
    assert runs_holding_gpu_pool(instance) == []


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """The lock is the first file that a run writes to its home, so its error names the home."""
    (tmp_path / "home").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match="home cannot be written"), hold_run_lock(tmp_path / "home", "run"):
        pass


def test_runs_of_one_data_set_take_turns(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A command waits for a UI's run and for another command of the same data set, but not of other data sets."""
    _send_heartbeat(instance, seconds_ago=1)
    add_run(instance, run_id=FIRST, tags={"dagster/partition": "demo"})
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 5:
            instance.report_run_canceled(instance.get_run_by_id(FIRST), "done")  # type: ignore[arg-type]
        if len(waits) == 2:
            another_command.release()
        assert unfinished_runs(instance, "demo") == ([FIRST] if len(waits) < 5 else [])

    another_command = FileLock(tmp_path / ".turns" / "demo.lock")
    Path(another_command.lock_file).parent.mkdir()
    another_command.acquire()
    monkeypatch.setattr("macrec_pipeline.defs.runs.liveness.time.sleep", wait)
    with caplog.at_level("INFO", logger="macrec_pipeline"):
        with wait_for_turn(instance, tmp_path, "other") as waited_for:
            assert waits == waited_for == []
        with wait_for_turn(instance, tmp_path, "demo") as waited_for:
            assert len(waits) == 5
            assert waited_for == [FIRST]
        another_command.acquire(timeout=0)  # the lock is free again
        another_command.release()
    assert caplog.messages == [
        f"Run {FIRST} (full_pipeline) of demo is in progress. This run waits until it has finished."
    ]
    events = [entry.message for entry in instance.all_logs(FIRST)]
    assert "A command of the same data set waits until this run has finished." in events


def test_a_command_that_died_does_not_make_others_wait(instance: dg.DagsterInstance, tmp_path: Path) -> None:
    """The kernel releases its lock, and its run is closed instead of being waited for."""
    add_run(instance, run_id=FIRST, tags={LAUNCHED_BY: COMMAND_LINE, "dagster/partition": "demo"})
    with wait_for_turn(instance, tmp_path, "demo"):
        assert _status(instance, FIRST) == dg.DagsterRunStatus.CANCELED
