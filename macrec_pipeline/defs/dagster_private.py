"""Everything that this package takes from private modules of Dagster.

Dagster may move or change private names in any release. These were checked against dagster 1.13.27;
`tests/defs/test_dagster_private.py` checks them again against the installed version and says what to do when one has
changed. No other module of the package imports from `dagster._core`, `dagster._grpc` or `dagster._utils`.

Why each name is needed:

- `AssetGraph`: for annotations only. `Definitions.resolve_asset_graph` returns one, but its class has no public name.
- `DagsterPipesExecutionError`: what `PipesSubprocessClient.run` raises when the process fails. Its only public base
  class is `Exception`.
- `InstanceRef` and the no-op compute log manager: the only way to open an instance folder with one setting replaced.
- `JobFailureData` and `RunFailureReason`: the daemon retries a failed run only if the failure event says why it failed.
- `DagsterGrpcClient` and `DagsterUserCodeUnreachableError`: whether a code server answers. The public command for it,
  `dagster api grpc-health-check`, starts an interpreter for each attempt.

The tags below are the other private thing: Dagster writes and reads them, but exports no constants for them.
"""

from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.errors import DagsterPipesExecutionError, DagsterUserCodeUnreachableError
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.instance.ref import InstanceRef
from dagster._grpc.client import DagsterGrpcClient

__all__ = [
    "CODE_VERSION_TAG",
    "DATA_VERSION_TAG",
    "PARENT_RUN_ID_TAG",
    "PARTITION_TAG",
    "REPOSITORY_TAG",
    "RETRY_ON_STEP_FAILURE_TAG",
    "ROOT_RUN_ID_TAG",
    "WILL_RETRY_TAG",
    "AssetGraph",
    "DagsterGrpcClient",
    "DagsterPipesExecutionError",
    "DagsterUserCodeUnreachableError",
    "open_instance_without_output_capture",
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

NO_OUTPUT_CAPTURE = {
    "module": "dagster._core.storage.noop_compute_log_manager",
    "class": "NoOpComputeLogManager",
}


def open_instance_without_output_capture(folder: Path) -> dg.DagsterInstance:
    """Open the instance of a folder, but leave standard output and standard error of its runs alone."""
    reference = InstanceRef.from_dir(str(folder), overrides={"compute_logs": NO_OUTPUT_CAPTURE})
    return dg.DagsterInstance.from_ref(reference)


def unexpected_termination() -> JobFailureData:
    """Return the failure data of a run whose process died, which the daemon's `run_retries` accept for a retry."""
    return JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION)
