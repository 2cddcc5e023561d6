"""Closing the MLflow runs of a Dagster run that ended: its parent always, and the children that died with a process.

In: Dagster's news that a run succeeded, failed or was canceled. Out: MLflow runs with the same end, and the owner told
of a failure.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from dagster._core.storage.tags import PARTITION_NAME_TAG

from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.failures import tell_of_failure

# How Dagster's ends are called in MLflow.
MLFLOW_STATUS: dict[dg.DagsterRunStatus, Literal["FINISHED", "FAILED", "KILLED"]] = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}


def settings_of(run_config: Mapping[str, Any], *, home: Path | None = None) -> Settings:
    """The settings that a run was launched with: another home means another MLflow store.

    Args:
        run_config: of the run.
        home: what an unset home means; None: the environment of this process.
    """
    configured = run_config.get("resources", {}).get("settings", {}).get("config", {})
    given = {name: value for name, value in configured.items() if value is not None}
    return Settings(**({"home": str(home)} if home else {}) | given)


def close_mlflow_runs(run: dg.DagsterRun, settings: Settings) -> int:
    """Close what a Dagster run that ended left open in MLflow; returns how many child runs were still RUNNING."""
    dataset = run.tags.get(PARTITION_NAME_TAG)
    if dataset is None:
        return 0
    tracker = settings.tracker()
    closed = tracker.close_interrupted_runs(dataset, run.run_id)
    tracker.finish_pipeline(dataset, run.run_id, MLFLOW_STATUS[run.status])
    return closed


def _sensor(status: dg.DagsterRunStatus, name: str) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=status,
        name=name,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description=f"Closes the MLflow runs of a Dagster run that ended as {status.value}.",
    )
    def sensor(context: dg.RunStatusSensorContext) -> dg.SkipReason:
        run = context.dagster_run
        closed = close_mlflow_runs(run, settings_of(run.run_config))
        return dg.SkipReason(f"Closed the MLflow runs of {run.run_id}; {closed} assets were still running.")

    return sensor


@dg.run_failure_sensor(
    name="tell_of_failures",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Writes on a failed run's page why it failed and how to go on, and calls the owner's hooks.",
)
def tell_of_failures(context: dg.RunFailureSensorContext) -> dg.SkipReason:
    """A failed run -> its tags, and the owner's hooks; a run of the command line has told of itself."""
    run = context.dagster_run
    if run.tags.get(LAUNCHED_BY) == COMMAND_LINE:
        return dg.SkipReason(f"{run.run_id} was launched on the command line, which tells of it.")
    return dg.SkipReason(tell_of_failure(context.instance, run)["text"])


SENSORS = [
    tell_of_failures,
    _sensor(dg.DagsterRunStatus.SUCCESS, "finish_mlflow_runs"),
    _sensor(dg.DagsterRunStatus.FAILURE, "fail_mlflow_runs"),
    _sensor(dg.DagsterRunStatus.CANCELED, "kill_mlflow_runs"),
]
