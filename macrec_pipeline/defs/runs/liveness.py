"""Which runs are still alive: closing those whose process has died, and making runs of one data set take turns.

A run is dead when its process was killed, or when the UI that had launched it was. Dagster keeps such a run as STARTED,
with its slot of the pool, so that the next run would wait forever; in MLflow it stays RUNNING. The functions here find
such runs, cancel them, and release what they held. A command-line run is alive while its process holds a lock in the
home; a run of the UI, a schedule or a sensor is alive while a Dagster daemon sends heartbeats.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from macrec_pipeline.defs.dagster_private import PARTITION_TAG
from macrec_pipeline.defs.resources import GPU_POOL, Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.runs.failures import report_failure
from macrec_pipeline.defs.runs.run_sensors import MLFLOW_STATUS, close_mlflow_runs, settings_from_run_config
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.runtime.process_locks import ProcessState, hold_lock, process_state

logger = logging.getLogger(__name__)

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
# A daemon sends a heartbeat every half minute.
_MAX_SECONDS_WITHOUT_HEARTBEAT = 150.0
_POLL_SECONDS = 2.0


@contextmanager
def hold_run_lock(home: Path, run_id: str) -> Iterator[None]:
    """Hold the lock that shows that a command-line run is alive.

    Raises:
        ConfigError: the home cannot be written.
    """
    with ExitStack() as stack:
        with _write_errors_reported(home):
            stack.enter_context(hold_lock(_run_lock_file(home, run_id)))
        yield


@contextmanager
def wait_for_turn(instance: dg.DagsterInstance, home: Path, dataset: str) -> Iterator[None]:
    """Wait until no other run of a data set is in progress, then make the next command-line run of it wait.

    Runs that the daemon launches wait in its queue, for this run and for each other (see dagster.yaml).

    Raises:
        ConfigError: the home cannot be written.
    """
    turn, announced = FileLock(home / ".turns" / f"{dataset}.lock"), False
    with _write_errors_reported(home):
        Path(turn.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            close_dead_runs(instance, home)
            if not turn.is_locked:
                with suppress(Timeout):
                    turn.acquire(timeout=0)
            others = unfinished_runs(instance, dataset)
            if turn.is_locked and not others:
                break
            if not announced:
                other = f"Run {others[0]}" if others else "Another run"
                logger.info("%s of %s is in progress. This run waits until it has finished.", other, dataset)
                announced = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        turn.release()


def unfinished_runs(instance: dg.DagsterInstance, dataset: str) -> list[str]:
    """Return the IDs of the runs of a data set that have not ended."""
    of_dataset = dg.RunsFilter(statuses=_UNFINISHED, tags={PARTITION_TAG: dataset})
    return [run.run_id for run in instance.get_runs(filters=of_dataset)]


def close_dead_runs(instance: dg.DagsterInstance, home: Path) -> list[str]:
    """Cancel the unfinished runs that no process works on any more, and release what they held.

    Returns:
        The IDs of the Dagster runs that were closed.
    """
    heartbeats = [heartbeat.timestamp for heartbeat in instance.get_daemon_heartbeats().values()]
    daemon_is_alive = time.time() - max(heartbeats, default=0.0) < _MAX_SECONDS_WITHOUT_HEARTBEAT
    closed = []
    for run in instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED)):
        from_command_line = run.tags.get(LAUNCHED_BY) == COMMAND_LINE
        if not (_process_is_alive(home, run.run_id) if from_command_line else daemon_is_alive):
            reason = "The process ended without reporting why: it was killed, or the machine went down."
            _cancel(instance, run, home, reason)
            report_failure(instance, run, reason=reason)
            closed.append(run.run_id)
    return closed


def close_runs_of_stopped_ui(instance: dg.DagsterInstance, home: Path, *, started: datetime) -> list[str]:
    """Cancel the runs that a UI launched since `started`, once all its processes have ended; returns their IDs."""
    unfinished = instance.get_runs(filters=dg.RunsFilter(statuses=_UNFINISHED, created_after=started))
    from_ui = [run for run in unfinished if run.tags.get(LAUNCHED_BY) != COMMAND_LINE]
    for run in from_ui:
        _cancel(instance, run, home, "The UI was stopped while this run was in progress.")
    return [run.run_id for run in from_ui]


def release_run(instance: dg.DagsterInstance, run_id: str, settings: Settings) -> None:
    """Do what the daemon does for its own runs when they end: free pool slots, report a failure, close MLflow runs."""
    instance.event_log_storage.free_concurrency_slots_for_run(run_id)
    run = instance.get_run_by_id(run_id)
    if run is not None and run.status in MLFLOW_STATUS:
        if run.status == dg.DagsterRunStatus.FAILURE:
            report_failure(instance, run)
        close_mlflow_runs(run, settings)


def runs_holding_gpu_pool(instance: dg.DagsterInstance) -> list[str]:
    """Return the IDs of the runs that hold the GPU pool. A step that needs the pool waits until they have finished."""
    return sorted(instance.event_log_storage.get_concurrency_info(GPU_POOL).active_run_ids)


def _cancel(instance: dg.DagsterInstance, run: dg.DagsterRun, home: Path, reason: str) -> None:
    instance.report_run_canceled(run, reason)
    release_run(instance, run.run_id, settings_from_run_config(run.run_config, home=home))


@contextmanager
def _write_errors_reported(home: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The state folder {home} cannot be written: {error.strerror}. Choose another one with --home."
        ) from None


def _run_lock_file(home: Path, run_id: str) -> Path:
    return home / ".running" / f"{run_id}.lock"


def _process_is_alive(home: Path, run_id: str) -> bool:
    lock_file = _run_lock_file(home, run_id)
    state = process_state(lock_file)
    if state is ProcessState.DEAD:
        lock_file.unlink(missing_ok=True)
    return state is ProcessState.ALIVE
