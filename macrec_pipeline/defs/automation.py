"""What Dagster launches without a person: on a schedule, when new raw data arrives, and when an input has changed.

The data sets' files say what they want; without such an entry nothing is launched. This module turns the entries into
schedules and sensors. It also defines when an asset counts as outdated and how old the newest model may become.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from macrec_pipeline.data.new_data import KnownFiles, find_changed_files
from macrec_pipeline.data.readers.registry import source_files
from macrec_pipeline.datasets import DatasetSpec, dataset_names, load_dataset
from macrec_pipeline.defs.jobs import JOBS, prune_job
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.retention import PRUNE
from macrec_pipeline.defs.run_tags import RAW_DATA_TAG
from macrec_pipeline.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

_JOBS_BY_NAME = {job.name: job for job in JOBS}
_POLL_SECONDS = 60

_Condition = dg.AutomationCondition
# An asset is outdated when an input has new content (not merely a new materialization, as in `eager()`), or when its
# own code version has changed. A data set that was never materialized is left alone.
ON_CHANGE = (
    (
        _Condition.any_deps_match(_Condition.data_version_changed())
        | (_Condition.code_version_changed() & ~_Condition.missing())
    ).since_last_handled()  # type: ignore[misc]  # declared for keys of checks as well
    & ~_Condition.any_deps_missing()
    & ~_Condition.any_deps_in_progress()
    & ~_Condition.in_progress()
).with_label("an input has changed")


def build_schedule(spec: DatasetSpec) -> dg.ScheduleDefinition:
    """Build the schedule that a data set's file requests. It is on for as long as the file requests it."""
    schedule = spec.schedule
    assert schedule is not None, "only called for a data set with a schedule"

    def request_run(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        # One run per tick, even if the daemon dies between launching the run and recording it.
        return dg.RunRequest(f"{spec.name}:{context.scheduled_execution_time.isoformat()}", partition_key=spec.name)

    return dg.ScheduleDefinition(
        f"{schedule.job}_{_python_name(spec)}",
        job=_JOBS_BY_NAME[schedule.job],
        cron_schedule=schedule.cron,
        execution_timezone=schedule.timezone,
        execution_fn=request_run,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Launches {schedule.job} for {spec.name} at the times in the data set's file.",
    )


def build_prune_schedule(spec: DatasetSpec) -> dg.ScheduleDefinition:
    """Build the schedule that removes what a data set no longer needs."""
    cron = spec.retention.cron
    assert cron is not None, "only called for a data set that is pruned automatically"

    def request_run(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        when = context.scheduled_execution_time.isoformat()
        return dg.RunRequest(f"{PRUNE}:{spec.name}:{when}", partition_key=spec.name)

    return dg.ScheduleDefinition(
        f"{PRUNE}_{_python_name(spec)}",
        job=prune_job,
        cron_schedule=cron,
        execution_timezone=spec.retention.timezone,
        execution_fn=request_run,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Removes old versions, runs and events of {spec.name}, at the times in the data set's file.",
    )


def build_new_data_sensor(spec: DatasetSpec) -> dg.SensorDefinition:
    """Build the sensor that launches a job when a data set's raw files have new content and have stopped changing."""
    assert spec.on_new_data is not None, "only called for a data set that waits for new data"

    def evaluate(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            known, has_new_content = find_changed_files(
                source_files(spec, Settings().data_folder()), KnownFiles.from_json(context.cursor)
            )
        except (DataError, OSError) as error:
            return dg.SkipReason(str(error))
        if not has_new_content:
            waiting = known.seen != known.read
            reason = "The files have changed; they are read once they stop changing." if waiting else "No new data."
            return dg.SensorResult(skip_reason=reason, cursor=known.to_json())
        # The number of arrivals is part of the key, so that data restored after a wrong delivery counts as new again.
        run_key = f"{spec.name}:{known.arrivals}:{known.digest}"
        request = dg.RunRequest(run_key, partition_key=spec.name, tags={RAW_DATA_TAG: known.digest})
        return dg.SensorResult(run_requests=[request], cursor=known.to_json())

    return dg.SensorDefinition(
        f"new_data_of_{_python_name(spec)}",
        job=_JOBS_BY_NAME[spec.on_new_data],
        evaluation_fn=evaluate,
        minimum_interval_seconds=_POLL_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Launches {spec.on_new_data} when the raw files of {spec.name} have new content. It waits until "
        "the files have stopped changing. The data set's file turns it on.",
    )


def automated_datasets(names: Sequence[str]) -> list[DatasetSpec]:
    """Load the data sets for which something is launched without a person.

    A data set with an invalid file is logged and left out, so that it does not keep the others from loading.
    """
    specs = []
    for name in names:
        try:
            spec = load_dataset(name)
            if spec.schedule:
                _require_possible_time("schedule.cron", spec.schedule.cron)
            if spec.retention.cron:
                _require_possible_time("retention.cron", spec.retention.cron)
        except ConfigError as error:  # the data set's own runs report the error too
            logger.warning("Automation is off for %s: %s", name, error)
            continue
        if spec.schedule or spec.on_new_data or spec.is_pruned_automatically:
            specs.append(spec)
    return specs


def _require_possible_time(setting: str, cron: str) -> None:
    """Raise `ConfigError` for a cron line that Dagster refuses although its fields are valid, such as February 31."""
    try:
        dg.ScheduleDefinition(name="probe", job_name="probe", cron_schedule=cron)
    except dg.DagsterInvalidDefinitionError:
        raise ConfigError(f"{setting} is {cron!r}, a time that never comes. Choose a date that exists.") from None


def _python_name(spec: DatasetSpec) -> str:
    return spec.name.replace("-", "_")


_AUTOMATED = automated_datasets(dataset_names())
SCHEDULES = [build_schedule(spec) for spec in _AUTOMATED if spec.schedule]
PRUNE_SCHEDULES = [build_prune_schedule(spec) for spec in _AUTOMATED if spec.is_pruned_automatically]
NEW_DATA_SENSORS = [build_new_data_sensor(spec) for spec in _AUTOMATED if spec.on_new_data]
CHANGE_SENSOR = dg.AutomationConditionSensorDefinition(
    "make_again_what_changed",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Materializes an asset again when the content of an input or the asset's own code has changed. It is "
    "off until someone turns it on here.",
)
# Dagster judges an asset by its newest partition, so this warns when no data set has had a new model for that long.
FRESHNESS = (
    dg.FreshnessPolicy.time_window(fail_window=timedelta(days=15), warn_window=timedelta(days=8)) if SCHEDULES else None
)
