"""Everything that this package takes from private modules of Dagster.

Dagster may move or change private names in any release. These were checked against dagster 1.13.27;
`tests/defs/test_dagster_private.py` checks them again against the installed version and says what to do when one has
changed. No other module of the package imports from `dagster._core`, `dagster._grpc` or `dagster._utils`.

Why each name is needed:

- `AssetGraph`: for annotations only. `Definitions.resolve_asset_graph` returns one, but its class has no public name.
- `DagsterPipesExecutionError`: what `PipesSubprocessClient.run` raises when the process fails. Its only public base
  class is `Exception`.
- `DagsterSqliteStorage` and the modules that put a path into a database URL: `dagster_sqlite` quotes the path.
- `InstanceRef` and the no-op compute log manager: the only way to open an instance folder with one setting replaced.
- `JobFailureData` and `RunFailureReason`: the daemon retries a failed run only if the failure event says why it failed.
- `PostProcessingError`: how a config type refuses a value, so that a run with a wrong setting is not launched. Dagster
  calls it part of the formal API of config types, but it has no public name.
- `SqliteEventLogStorage`: it keeps a file for each run, which it empties but does not remove when the run is deleted.
- `SqlEventLogStorage` and `AssetCheckExecutionsTable`: the results of checks are not deleted with their run.
- `DagsterGrpcClient` and `DagsterUserCodeUnreachableError`: whether a code server answers. The public command for it,
  `dagster api grpc-health-check`, starts an interpreter for each attempt.

The tags below are the other private thing: Dagster writes and reads them, but exports no constants for them.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import dagster._core.storage.event_log.sqlite.sqlite_event_log as _event_log
import dagster._core.storage.runs.sqlite.sqlite_run_storage as _run_storage
import dagster._core.storage.schedules.sqlite.sqlite_schedule_storage as _schedule_storage
from dagster._config.errors import PostProcessingError
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.errors import DagsterPipesExecutionError, DagsterUserCodeUnreachableError
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.event_log.schema import AssetCheckExecutionsTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite.sqlite_event_log import SqliteEventLogStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._grpc.client import DagsterGrpcClient

__all__ = [
    "CODE_VERSION_TAG",
    "DATA_VERSION_TAG",
    "PARENT_RUN_ID_TAG",
    "PARTITION_TAG",
    "REPOSITORY_TAG",
    "RETRY_ON_STEP_FAILURE_TAG",
    "ROOT_RUN_ID_TAG",
    "SQLITE_MODULES",
    "WILL_RETRY_TAG",
    "AssetGraph",
    "DagsterGrpcClient",
    "DagsterPipesExecutionError",
    "DagsterSqliteStorage",
    "DagsterUserCodeUnreachableError",
    "PostProcessingError",
    "delete_check_results",
    "event_files",
    "open_instance_without_output_capture",
    "runs_with_event_files",
    "unexpected_termination",
]

# Tags of a run.
PARTITION_TAG = "dagster/partition"
PARENT_RUN_ID_TAG = "dagster/parent_run_id"
ROOT_RUN_ID_TAG = "dagster/root_run_id"
RETRY_ON_STEP_FAILURE_TAG = "dagster/retry_on_asset_or_op_failure"
WILL_RETRY_TAG = "dagster/will_retry"
REPOSITORY_TAG = ".dagster/repository"
# Tags of a materialization.
CODE_VERSION_TAG = "dagster/code_version"
DATA_VERSION_TAG = "dagster/data_version"

SQLITE_MODULES = (_run_storage, _event_log, _schedule_storage)
"""Modules with a name `create_db_conn_string`, which they call with a folder and the name of a database in it."""

NO_OUTPUT_CAPTURE = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}


def open_instance_without_output_capture(
    folder: Path, *, storage: Mapping[str, Any] | None = None
) -> dg.DagsterInstance:
    """Open the instance of a folder, but leave standard output and standard error of its runs alone.

    Args:
        folder: the folder with the dagster.yaml.
        storage: the custom storage that replaces the one in the dagster.yaml; None: that one.
    """
    overrides = {"compute_logs": NO_OUTPUT_CAPTURE} | ({"storage": {"custom": storage}} if storage else {})
    reference = InstanceRef.from_dir(str(folder), overrides=overrides)
    return dg.DagsterInstance.from_ref(reference)


def unexpected_termination() -> JobFailureData:
    """Return the failure data of a run whose process died, which the daemon's `run_retries` accept for a retry."""
    return JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION)


def event_files(instance: dg.DagsterInstance, run_id: str) -> list[Path]:
    """The files that hold the events of one run; none if the events of all runs are in one database."""
    storage = instance.event_log_storage
    if not isinstance(storage, SqliteEventLogStorage):
        return []
    database = storage.path_for_shard(run_id)
    return [path for path in map(Path, (database, f"{database}-wal", f"{database}-shm")) if path.is_file()]


def runs_with_event_files(instance: dg.DagsterInstance) -> set[str]:
    """The ids of all runs that have a file of events, whether the runs still exist or not."""
    storage = instance.event_log_storage
    return set(storage.get_all_run_ids()) if isinstance(storage, SqliteEventLogStorage) else set()


def delete_check_results(instance: dg.DagsterInstance, run_id: str) -> None:
    """Delete the results of a run's checks, which Dagster keeps when it deletes the run."""
    storage = instance.event_log_storage
    if isinstance(storage, SqlEventLogStorage):
        with storage.index_connection() as connection:
            connection.execute(AssetCheckExecutionsTable.delete().where(AssetCheckExecutionsTable.c.run_id == run_id))
