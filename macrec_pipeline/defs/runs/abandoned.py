"""Runs that nobody will end any more: their process was killed, or the UI that had launched them was.

Such a run stays STARTED in Dagster, keeps its slot of the pool, so that the next one waits for ever, and
stays RUNNING in MLflow. In: a Dagster instance and the folders of a home. Out: those runs canceled, and what they held
released. A command-line run holds a lock while it lives; a run of the UI needs a daemon that shows heartbeats.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG
from filelock import FileLock, Timeout

from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.resources import GPU_POOL, Settings
from macrec_pipeline.defs.runs.failures import tell_of_failure
from macrec_pipeline.defs.runs.run_sensors import MLFLOW_STATUS, close_mlflow_runs, settings_of
from macrec_pipeline.errors import ConfigError

logger = logging.getLogger(__name__)

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A daemon shows a heartbeat every half minute.
_SILENT_SECONDS = 150.0
_POLL_SECONDS = 2.0


@contextmanager
def sign_of_life(home: Path, run_id: str) -> Iterator[None]:
    """Hold the lock of a command-line run; the kernel drops it even when the process is killed.

    Raises:
        ConfigError: the home cannot be written.
    """
    lock = _life_line(home, run_id)
    with _home_is_written(home):
        Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def turn_of(instance: dg.DagsterInstance, home: Path, dataset: str) -> Iterator[None]:
    """Wait until no other run works at a data set, then keep the next command-line run of it waiting.

    Runs that the daemon launches wait in its queue for this one, and for each other (dagster.yaml).

    Raises:
        ConfigError: the home cannot be written.
    """
    turn, told = FileLock(home / ".turns" / f"{dataset}.lock"), False
    with _home_is_written(home):
        Path(turn.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            close_abandoned_runs(instance, home)
            if not turn.is_locked:
                with suppress(Timeout):
                    turn.acquire(timeout=0)
            others = runs_at_work(instance, dataset)
            if turn.is_locked and not others:
                break
            if not told:
                who = f"The run {others[0]}" if others else "Another run"
                logger.info("%s is at work on %s. This one waits until it is done.", who, dataset)
                told = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        turn.release()


def runs_at_work(instance: dg.DagsterInstance, dataset: str) -> list[str]:
    """The ids of a data set's runs that have been started and have not ended."""
    started = dg.RunsFilter(statuses=_UNFINISHED, tags={PARTITION_NAME_TAG: dataset})
    return [run.run_id for run in instance.get_runs(filters=started)]


def close_abandoned_runs(instance: dg.DagsterInstance, home: Path) -> list[str]:
    """Cancel the unfinished runs that no process works at any more, and release what they held.

    Returns:
        The ids of the Dagster runs that were closed.
    """
    beats = [heartbeat.timestamp for heartbeat in instance.get_daemon_heartbeats().values()]
    daemon_lives = time.time() - max(beats, default=0.0) < _SILENT_SECONDS
    closed = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        lives = _is_alive(home, run.run_id) if run.tags.get(LAUNCHED_BY) == COMMAND_LINE else daemon_lives
        if not lives:
            why = "The process ended without a word: it was killed, or the machine went down."
            _cancel(instance, run, home, why)
            tell_of_failure(instance, run, why=why)
            closed.append(run.run_id)
    return closed


def close_runs_of_a_stopped_ui(instance: dg.DagsterInstance, home: Path, *, started: datetime) -> list[str]:
    """Cancel the runs that a UI launched since `started`, once all its processes have ended; returns their ids."""
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED, created_after=started))
    left = [run for run in unfinished if run.tags.get(LAUNCHED_BY) != COMMAND_LINE]
    for run in left:
        _cancel(instance, run, home, "The UI was stopped while this run was at work.")
    return [run.run_id for run in left]


def release(instance: dg.DagsterInstance, run_id: str, settings: Settings) -> None:
    """Do what the daemon does for runs of the UI that ended: free pool slots, close MLflow runs, tell of a failure."""
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status in MLFLOW_STATUS:
        if run.status == dg.DagsterRunStatus.FAILURE:
            tell_of_failure(instance, run)
        close_mlflow_runs(run, settings)


def who_computes(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs that hold the pool of the GPU; the next step that needs it waits until they are done."""
    return sorted(instance.event_log_storage.get_concurrency_info(GPU_POOL).active_run_ids)


def _cancel(instance: dg.DagsterInstance, run: dg.DagsterRun, home: Path, why: str) -> None:
    instance.report_run_canceled(run, why)
    release(instance, run.run_id, settings_of(run.run_config, home=home))


@contextmanager
def _home_is_written(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The state folder {home} cannot be written: {error.strerror}. Choose another with --home."
        ) from None


def _life_line(home: Path, run_id: str) -> FileLock:
    return FileLock(home / ".running" / f"{run_id}.lock")


def _is_alive(home: Path, run_id: str) -> bool:
    lock = _life_line(home, run_id)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    Path(lock.lock_file).unlink(missing_ok=True)
    lock.release()
    return False
