"""What is launched by itself, and what is not."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from dagster._utils.schedules import is_valid_cron_string

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.datasets import DatasetSpec, Schedule, load_dataset
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.asset_context import SETTINGS_TAG, stage
from macrec_pipeline.defs.automation import automated, schedule_of, sensor_of
from macrec_pipeline.defs.jobs import REFRESH, SETTINGS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch
from macrec_pipeline.errors import ConfigError

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
MONDAY = datetime(2026, 3, 30, 3, tzinfo=ZoneInfo("Europe/Berlin"))


@pytest.fixture
def spec(settings: Settings, partition: str) -> DatasetSpec:
    """A data set that wants both."""
    automatic = {"schedule": {"timezone": "Europe/Berlin"}, "on_new_data": "refresh"}
    return DatasetSpec.model_validate(load_dataset(partition).model_dump() | automatic)


def test_a_schedule_launches_its_data_set_once_a_tick(spec: DatasetSpec) -> None:
    """Mondays at three in the owner's time zone, for this partition alone; the same tick is the same run."""
    schedule, repository = schedule_of(spec), defs.get_repository_def()
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
    """Neither for the data sets of the checkout nor for one whose file is wrong, which is told."""
    assert automated([partition]) == []
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
        assert [spec.name for spec in automated([partition, "right", "wrong", "never"])] == ["right"]
    assert "Nothing is launched by itself for wrong" in caplog.text
    assert "five fields" in caplog.text
    assert "'0 3 31 2 *' names a time that never comes" in caplog.text


@pytest.mark.parametrize(
    ("cron", "right"),
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
def test_a_cron_line_is_checked_before_dagster_sees_it(cron: str, right: bool) -> None:
    """One wrong file must not keep all definitions from loading; what passes here passes there."""
    if right:
        assert is_valid_cron_string(Schedule(cron=cron).cron)
    else:
        with pytest.raises(ValueError, match="cron"):
            Schedule(cron=cron)


def test_a_time_zone_is_one_that_there_is() -> None:
    """A misspelt one is refused with an example."""
    with pytest.raises(ValueError, match="as Europe/Berlin is"):
        Schedule(timezone="Berlin/Europe")


def test_new_raw_data_launches_a_refresh(
    spec: DatasetSpec, settings: Settings, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it is whole, once; the run's key holds the digest of the content."""
    monkeypatch.setenv("MACREC_DATA", settings.data or "")
    sensor, log = sensor_of(spec), Path(settings.data or "") / "log.csv"
    assert sensor.job.name == REFRESH
    cursor, requests = None, []

    def tick() -> Any:
        nonlocal cursor
        context = dg.build_sensor_context(instance, cursor, repository_def=defs.get_repository_def())
        told = sensor.evaluate_tick(context)
        cursor = told.cursor
        requests.extend(told.run_requests or [])
        return told.skip_message

    assert "if it stays so" in tick()
    assert tick() is None
    assert "nothing new" in tick()
    log.write_text(log.read_text() + "u0,i03,1700000000\n")
    assert "if it stays so" in tick()
    assert tick() is None
    assert [request.partition_key for request in requests] == [spec.name] * 2
    assert [request.tags["macrec/raw_data"] == request.run_key.split(":")[2] for request in requests] == [True, True]
    assert requests[0].run_key != requests[1].run_key
    log.unlink()
    assert "log.csv is not there" in tick()
    assert len(requests) == 2


def test_a_jobs_settings_reach_its_runs(settings: Settings, partition: str) -> None:
    """They lie over the data set's own and below those of the person who launched it."""
    seen = []

    @dg.asset(name="raw_items", partitions_def=dg.StaticPartitionsDefinition([partition]))
    def raw_items(context: dg.AssetExecutionContext, settings: Settings) -> None:
        with stage(context, settings, "raw_items") as work:
            seen.append((work.config.seed, work.config.quantizer.num_epochs))

    mine = Settings(home=settings.home, data=settings.data, overrides=["seed=8"])
    tags = {SETTINGS_TAG: "seed=7 quantizer.num_epochs=3"}
    dg.materialize([raw_items], partition_key=partition, resources={"settings": mine}, run_config=QUIET, tags=tags)
    assert seen == [(8, 3)]


def test_refresh_appends_and_starts_warm(settings: Settings, partition: str) -> None:
    """Its runs carry both settings as a tag, wherever they come from, and make what the full pipeline makes."""
    job, full = (defs.resolve_job_def(name) for name in (REFRESH, "full_pipeline"))
    assert (
        job.run_tags[SETTINGS_TAG] == " ".join(SETTINGS[REFRESH]) == "identity.mode=append recommender.warm_start=true"
    )
    assert job.asset_layer.executable_asset_keys == full.asset_layer.executable_asset_keys
    request = LaunchRequest(partition, settings.home_folder(), settings.data_folder(), job=REFRESH, until="raw_items")
    if "identity" in PipelineConfig.model_fields:
        launch(request, defs=defs)
        assert settings.store(partition).has("raw_items")
    else:
        with pytest.raises(ConfigError, match="identity"):
            launch(request, defs=defs)


def test_only_a_real_change_is_carried_on(instance: dg.DagsterInstance, partition: str) -> None:
    """Other content upstream asks for what is made from it; the same content made again asks for nothing."""
    cursor = None

    def made(asset: str, version: str) -> None:
        tags = {"dagster/data_version": version}
        instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition, tags=tags))

    def asked() -> set[str]:
        nonlocal cursor
        result = dg.evaluate_automation_conditions(defs, instance, dg.AssetSelection.all(), cursor=cursor)
        cursor = result.cursor
        wanted = {key: result.get_requested_partitions(key) for key in defs.resolve_asset_graph().get_all_asset_keys()}
        assert {name for keys in wanted.values() for name in keys} <= {partition}
        return {key.to_user_string() for key, keys in wanted.items() if keys}

    upstream_first = ("raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories")
    for asset in upstream_first:
        made(asset, "1")
    asked()  # text_embeddings and others were never made
    made("raw_items", "1")
    assert asked() & set(upstream_first) == set()
    made("raw_items", "2")
    assert asked() & set(upstream_first) == {"interactions", "items", "quarantine"}
    for asset in ("interactions", "items", "quarantine"):
        made(asset, "1")
    assert asked() & set(upstream_first) == set()
