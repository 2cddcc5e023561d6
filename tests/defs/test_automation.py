"""What schedules, sensors and automation conditions launch, and what they leave alone."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.datasets import DatasetSpec, Schedule, load_dataset
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.asset_context import open_asset
from macrec_pipeline.defs.automation import automated_datasets, build_new_data_sensor, build_schedule
from macrec_pipeline.defs.jobs import JOB_OVERRIDES, REFRESH
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import SETTINGS_TAG
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch
from macrec_pipeline.errors import ConfigError

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
MONDAY = datetime(2026, 3, 30, 3, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.fixture
def spec(settings: Settings, partition: str) -> DatasetSpec:
    """A data set with a schedule and a sensor for new data."""
    automatic = {"schedule": {"timezone": "Europe/Berlin"}, "on_new_data": "refresh"}
    return DatasetSpec.model_validate(load_dataset(partition).model_dump() | automatic)


def test_a_schedule_launches_its_data_set_once_per_tick(spec: DatasetSpec) -> None:
    """A schedule for Mondays at three launches one run per tick, for its own partition and in the owner's time zone."""
    schedule, repository = build_schedule(spec), defs.get_repository_def()
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * 1", "Europe/Berlin")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    assert schedule.job.name == REFRESH
    ticks = [
        schedule.evaluate_tick(
            dg.build_schedule_context(scheduled_execution_time=due, repository_def=repository)
        ).run_requests
        for due in (MONDAY, MONDAY, MONDAY.replace(month=4, day=6))
    ]
    keys = [request.run_key for (request,) in ticks]  # type: ignore[misc]
    assert keys[0] == keys[1] != keys[2]
    assert [request.partition_key for (request,) in ticks] == [spec.name] * 3  # type: ignore[misc]


def test_nothing_is_launched_unless_the_file_says_so(
    settings: Settings, partition: str, caplog: pytest.LogCaptureFixture
) -> None:
    """No data set of the checkout is automated. One with an invalid file is left out, with a warning."""
    assert automated_datasets([partition]) == []
    assert defs.schedules == []
    folder = Path(settings.data or "").parent / "datasets"
    (folder / "wrong.yaml").write_text("name: wrong\ntitle: t\nschedule: {cron: never}\n", encoding="utf-8")
    (folder / "never.yaml").write_text(
        "name: never\ntitle: t\nsource: {reader: demo}\nschedule: {cron: '0 3 31 2 *'}\n", encoding="utf-8"
    )
    (folder / "right.yaml").write_text(
        "name: right\ntitle: t\nsource: {reader: demo}\nschedule: {job: batch_recommendations}\n", encoding="utf-8"
    )
    with caplog.at_level(logging.WARNING):
        assert [spec.name for spec in automated_datasets([partition, "right", "wrong", "never"])] == ["right"]
    assert "Automation is off for wrong" in caplog.text
    assert "five fields" in caplog.text
    assert "schedule.cron is '0 3 31 2 *', a time that never comes" in caplog.text


@pytest.mark.parametrize(
    ("cron", "is_valid"),
    [
        ("0 3 * * 1", True),
        ("*/15 0-6,22 1,15 * *", True),
        ("5 4 1-7/2 6 0", True),
        ("0 3 * *", False),
        ("60 3 * * 1", False),
        ("0 24 * * 1", False),
        ("0 3 * * 7", False),
        ("0 3 0 * *", False),
        ("0 5-3 * * *", False),
        ("0 3 * * mon", False),
        ("*/0 * * * *", False),
        ("@weekly", False),
    ],
)
def test_a_cron_line_is_validated_before_dagster_sees_it(cron: str, is_valid: bool) -> None:
    """One invalid file must not keep all definitions from loading. Dagster accepts whatever is valid here."""
    if is_valid:
        dg.ScheduleDefinition(name="test", job_name="test", cron_schedule=Schedule(cron=cron).cron)
    else:
        with pytest.raises(ValueError, match="cron"):
            Schedule(cron=cron)


def test_a_time_zone_must_exist() -> None:
    """A misspelt time zone is refused with an example of a valid one."""
    with pytest.raises(ValueError, match="such as Europe/Berlin"):
        Schedule(timezone="Berlin/Europe")


def test_new_raw_data_launches_a_refresh(
    spec: DatasetSpec, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New files launch one run once they stop changing; its key contains the digest of the content."""
    monkeypatch.setenv("MACREC_DATA", settings.data or "")
    sensor, log = build_new_data_sensor(spec), Path(settings.data or "") / "log.csv"
    assert sensor.job.name == REFRESH
    cursor, requests = None, []

    def tick() -> Any:
        nonlocal cursor
        context = dg.build_sensor_context(instance, cursor, repository_def=defs.get_repository_def())
        result = sensor.evaluate_tick(context)
        cursor = result.cursor
        requests.extend(result.run_requests or [])
        return result.skip_message

    assert "once they stop changing" in tick()
    assert tick() is None
    assert "No new data" in tick()
    log.write_text(log.read_text() + "u0,i03,1700000000\n")
    assert "once they stop changing" in tick()
    assert tick() is None
    assert [request.partition_key for request in requests] == [spec.name] * 2
    assert [request.tags["macrec/raw_data"] == request.run_key.split(":")[2] for request in requests] == [True, True]
    assert requests[0].run_key != requests[1].run_key
    log.unlink()
    assert "log.csv does not exist" in tick()
    assert len(requests) == 2


def test_the_overrides_of_a_job_reach_its_runs(settings: Settings, partition: str) -> None:
    """Overrides of a job take precedence over the data set's settings, but not over those of the launched run."""
    observed = []

    @dg.asset(name="raw_items", partitions_def=dg.StaticPartitionsDefinition([partition]))
    def raw_items(context: dg.AssetExecutionContext, settings: Settings) -> None:
        with open_asset(context, settings, "raw_items") as asset:
            observed.append((asset.config.seed, asset.config.quantizer.num_epochs))

    with_override = Settings(home=settings.home, data=settings.data, overrides=["seed=8"])
    tags = {SETTINGS_TAG: "seed=7 quantizer.num_epochs=3"}
    dg.materialize(
        [raw_items], partition_key=partition, resources={"settings": with_override}, run_config=QUIET, tags=tags
    )
    assert observed == [(8, 3)]


def test_refresh_appends_and_starts_warm(settings: Settings, partition: str) -> None:
    """Every run of `refresh` has both settings as a tag, and the same assets as the full pipeline."""
    job, full = (defs.resolve_job_def(name) for name in (REFRESH, "full_pipeline"))
    assert (
        job.run_tags[SETTINGS_TAG]
        == " ".join(JOB_OVERRIDES[REFRESH])
        == "identity.mode=append recommender.warm_start=true sasrec.warm_start=true"
    )
    assert job.asset_layer.executable_asset_keys == full.asset_layer.executable_asset_keys
    request = LaunchRequest(partition, settings.home_folder(), settings.data_folder(), job=REFRESH, until="raw_items")
    if "identity" in PipelineConfig.model_fields:
        launch(request, defs=defs)
        assert settings.store(partition).has("raw_items")
    else:
        with pytest.raises(ConfigError, match="identity"):
            launch(request, defs=defs)


def test_only_changed_content_requests_new_materializations(instance: dg.DagsterInstance, partition: str) -> None:
    """New content upstream requests what is made from it. The same content materialized again requests nothing."""
    cursor = None

    def materialize(asset: str, version: str) -> None:
        tags = {"dagster/data_version": version}
        instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition, tags=tags))

    def requested() -> set[str]:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(defs, instance, dg.AssetSelection.all(), cursor=cursor)
        cursor = result.cursor
        keys = defs.resolve_asset_graph().get_all_asset_keys()
        partitions = {key: result.get_requested_partitions(key) for key in keys}
        assert {name for names in partitions.values() for name in names} <= {partition}
        return {key.to_user_string() for key, names in partitions.items() if names}

    upstream_first = ("raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories")
    for asset in upstream_first:
        materialize(asset, "1")
    requested()  # text_embeddings and others were never materialized
    materialize("raw_items", "1")
    assert requested() & set(upstream_first) == set()
    materialize("raw_items", "2")
    assert requested() & set(upstream_first) == {"interactions", "items", "quarantine"}
    for asset in ("interactions", "items", "quarantine"):
        materialize(asset, "1")
    assert requested() & set(upstream_first) == set()
