"""Sensors that react when a Dagster run ends: they close its MLflow runs and report a failure to the owner.

The parent MLflow run always has to be closed here. Children are closed here only if their process died before it could
do so itself.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import dagster as dg

from macrec_pipeline.defs.dagster_private import PARTITION_TAG
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.runs.failures import report_failure

MLFLOW_STATUS: dict[dg.DagsterRunStatus, Literal["FINISHED", "FAILED", "KILLED"]] = {
    dg.DagsterRunStatus.SUCCESS: "FINISHED",
    dg.DagsterRunStatus.FAILURE: "FAILED",
    dg.DagsterRunStatus.CANCELED: "KILLED",
}
"""The MLflow status for each final status of a Dagster run."""


def settings_from_run_config(run_config: Mapping[str, Any], *, home: Path | None = None) -> Settings:
    """Return the settings that a run was launched with, whose home may have another MLflow store.

    Args:
        run_config: the run's config.
        home: the home if the run config has none; None: the environment of this process.
    """
    configured = run_config.get("resources", {}).get("settings", {}).get("config") or {}
    given = {name: value for name, value in configured.items() if name != "home" or value is not None}
    return Settings.from_run_config(({"home": str(home)} if home else {}) | given)


def close_mlflow_runs(run: dg.DagsterRun, settings: Settings) -> int:
    """Close the MLflow runs that a finished Dagster run left open; returns how many children were still RUNNING."""
    dataset = run.tags.get(PARTITION_TAG)
    if dataset is None:
        return 0
    tracker = settings.tracker()
    num_closed = tracker.close_interrupted_runs(dataset, run.run_id)
    tracker.finish_pipeline(dataset, run.run_id, MLFLOW_STATUS[run.status])
    return num_closed


def _closing_sensor(status: dg.DagsterRunStatus, name: str) -> dg.SensorDefinition:
    @dg.run_status_sensor(
        run_status=status,
        name=name,
        default_status=dg.DefaultSensorStatus.RUNNING,
        minimum_interval_seconds=30,
        description=f"Closes the MLflow runs of a Dagster run that ended as {status.value}. They get the status "
        f"{MLFLOW_STATUS[status]}.",
    )
    def sensor(context: dg.RunStatusSensorContext) -> dg.SkipReason:
        run = context.dagster_run
        num_closed = close_mlflow_runs(run, settings_from_run_config(run.run_config))
        return dg.SkipReason(f"Closed the MLflow runs of {run.run_id}; {num_closed} assets were still running.")

    return sensor


@dg.run_failure_sensor(
    name="tell_of_failures",
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=30,
    description="Adds to the page of a failed run why it failed and how to continue, as tags. It also calls the "
    "owner's command or webhook, if the environment names one.",
)
def failure_sensor(context: dg.RunFailureSensorContext) -> dg.SkipReason:
    """Report a failed run, unless it was launched on the command line, which reports its own failures."""
    run = context.dagster_run
    if run.tags.get(LAUNCHED_BY) == COMMAND_LINE:
        return dg.SkipReason(f"{run.run_id} was launched on the command line, which reports the failure itself.")
    return dg.SkipReason(report_failure(context.instance, run)["text"])


SENSORS = [
    failure_sensor,
    _closing_sensor(dg.DagsterRunStatus.SUCCESS, "finish_mlflow_runs"),
    _closing_sensor(dg.DagsterRunStatus.FAILURE, "fail_mlflow_runs"),
    _closing_sensor(dg.DagsterRunStatus.CANCELED, "kill_mlflow_runs"),
]
