"""What is launched by itself: by the clock, when new raw data arrives, and when something upstream has changed.

In: the data sets' files, which say what they want; without a word in them nothing is launched. Out: schedules, sensors,
the condition under which an asset is made again, and how old the newest model may be.
"""

import logging
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg
from dagster._utils.schedules import is_valid_cron_string

from macrec_pipeline.data.new_data import KnownFiles, find_changed_files
from macrec_pipeline.data.readers.registry import source_files
from macrec_pipeline.datasets import DatasetSpec, dataset_names, load_dataset
from macrec_pipeline.defs.jobs import JOBS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

RAW_DATA_TAG = "macrec/raw_data"
_JOBS = {job.name: job for job in JOBS}
_LOOK_SECONDS = 60

_WHEN = dg.AutomationCondition
# An asset is made again when one upstream holds something else than before, not when that is only made again, as
# eager() would have it; or when its own code is another. A data set that was never made is left alone.
ON_CHANGE = (
    (
        _WHEN.any_deps_match(_WHEN.data_version_changed()) | (_WHEN.code_version_changed() & ~_WHEN.missing())
    ).since_last_handled()  # type: ignore[misc]  # declared for keys of checks as well
    & ~_WHEN.any_deps_missing()
    & ~_WHEN.any_deps_in_progress()
    & ~_WHEN.in_progress()
).with_label("something that it is made from has changed")


def schedule_of(spec: DatasetSpec) -> dg.ScheduleDefinition:
    """The schedule that a data set's file asks for; it is on as long as the file does."""
    asked = spec.schedule
    assert asked is not None, "only called for a data set with a schedule"

    def due(context: dg.ScheduleEvaluationContext) -> dg.RunRequest:
        # one run a tick, also after a daemon that died between launching it and writing that down
        return dg.RunRequest(f"{spec.name}:{context.scheduled_execution_time.isoformat()}", partition_key=spec.name)

    return dg.ScheduleDefinition(
        f"{asked.job}_{_python_name(spec)}",
        job=_JOBS[asked.job],
        cron_schedule=asked.cron,
        execution_timezone=asked.timezone,
        execution_fn=due,
        default_status=dg.DefaultScheduleStatus.RUNNING,
        description=f"Launches {asked.job} for {spec.name}, as its file says.",
    )


def sensor_of(spec: DatasetSpec) -> dg.SensorDefinition:
    """The sensor that launches a job when a data set's raw files hold something new and are no longer written to."""
    assert spec.on_new_data is not None, "only called for a data set that waits for new data"

    def arrived(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        try:
            known, new = find_changed_files(
                source_files(spec, Settings().data_folder()), KnownFiles.from_json(context.cursor)
            )
        except (DataError, OSError) as error:
            return dg.SkipReason(str(error))
        if not new:
            waits = known.seen != known.read
            reason = "Something has changed; it is taken if it stays so." if waits else "There is nothing new."
            return dg.SensorResult(skip_reason=reason, cursor=known.to_json())
        # with its number, so that data that comes back after a wrong delivery is new again
        run_key = f"{spec.name}:{known.arrivals}:{known.digest}"
        request = dg.RunRequest(run_key, partition_key=spec.name, tags={RAW_DATA_TAG: known.digest})
        return dg.SensorResult(run_requests=[request], cursor=known.to_json())

    return dg.SensorDefinition(
        f"new_data_of_{_python_name(spec)}",
        job=_JOBS[spec.on_new_data],
        evaluation_fn=arrived,
        minimum_interval_seconds=_LOOK_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Launches {spec.on_new_data} when the files of {spec.name} hold something new, as its file says.",
    )


def automated(names: Sequence[str]) -> list[DatasetSpec]:
    """The data sets that want something launched by itself. One whose file is wrong is told of and left out."""
    specs = []
    for name in names:
        try:
            spec = load_dataset(name)
            if spec.schedule and not is_valid_cron_string(spec.schedule.cron):
                raise ConfigError(f"schedule.cron {spec.schedule.cron!r} names a time that never comes.")
        except ConfigError as error:  # its own runs will say so too; the other data sets go on
            logger.warning("Nothing is launched by itself for %s: %s", name, error)
            continue
        if spec.schedule or spec.on_new_data:
            specs.append(spec)
    return specs


def _python_name(spec: DatasetSpec) -> str:
    return spec.name.replace("-", "_")


_AUTOMATED = automated(dataset_names())
SCHEDULES = [schedule_of(spec) for spec in _AUTOMATED if spec.schedule]
NEW_DATA_SENSORS = [sensor_of(spec) for spec in _AUTOMATED if spec.on_new_data]
CHANGE_SENSOR = dg.AutomationConditionSensorDefinition(
    "make_again_what_changed",
    target=dg.AssetSelection.all(),
    default_status=dg.DefaultSensorStatus.STOPPED,
    description="Makes assets again when what they are made from has changed. Off unless switched on here.",
)
# Dagster judges an asset by its newest partition, so this tells when no data set has got a new model for long.
FRESHNESS = (
    dg.FreshnessPolicy.time_window(fail_window=timedelta(days=15), warn_window=timedelta(days=8)) if SCHEDULES else None
)
