"""Resuming a run that failed: what is refused, and which finished assets are materialized again."""

from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.data.histories import build
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.errors import ConfigError, DataError

CLEAN = {"interactions", "items", "quarantine"}


def _launch(settings: Settings, dataset: str, *, resume: bool = False) -> str:
    until = None if resume else "histories"
    request = LaunchRequest(dataset, settings.home_folder(), settings.data_folder(), until=until, resume=resume)
    return launch(request, defs=defs)


def _materialized(settings: Settings, run_id: str) -> set[str]:
    with open_instance(settings.home_folder()) as instance:
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return {event.asset_key.to_user_string() for entry in events if (event := entry.dagster_event)}  # type: ignore[union-attr]


@pytest.fixture
def failed(settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run up to `histories` that failed there."""

    def fail(*_: object) -> None:
        raise DataError("no histories today")

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_histories", fail)
        with pytest.raises(DataError, match="no histories today"):
            _launch(settings, partition)
    return settings


def test_only_remaining_assets_are_materialized(failed: Settings, partition: str) -> None:
    """The first run's selection still applies: nothing beyond `histories` is made, and then nothing is left."""
    assert _materialized(failed, _launch(failed, partition, resume=True)) == {"histories"}
    with pytest.raises(ConfigError, match=r"The last run of .* has finished\. Start a new one: `macrec run"):
        _launch(failed, partition, resume=True)


def test_without_a_run_there_is_nothing_to_resume(settings: Settings, partition: str) -> None:
    """The error has the command that starts a run."""
    with pytest.raises(
        ConfigError, match=rf"no run of {partition} by `macrec run` to resume\. Start a new one: `macrec run"
    ):
        _launch(settings, partition, resume=True)


def test_changed_settings_are_refused(failed: Settings, partition: str) -> None:
    """Assets made with one set of settings must not be combined with assets made with another."""
    file = Path(failed.data_folder().parent, "datasets", f"{partition}.yaml")
    file.write_text(file.read_text(encoding="utf-8").replace("k_core: 2", "k_core: 3"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"The settings of .* have changed since its run"):
        _launch(failed, partition, resume=True)


@pytest.mark.parametrize(
    ("asset", "again"), [("raw_items", {"raw_items", *CLEAN, "histories"}), ("items", {*CLEAN, "histories"})]
)
def test_a_damaged_asset_is_materialized_again(asset: str, again: set[str], failed: Settings, partition: str) -> None:
    """An asset whose file has changed since is materialized again with everything downstream, and nothing else is."""
    file = failed.store(partition).folder(asset) / f"{asset}.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert _materialized(failed, _launch(failed, partition, resume=True)) == again


def test_assets_of_another_run_in_between_are_noticed(failed: Settings, partition: str) -> None:
    """If a run of the UI has rebuilt an input from changed files, everything downstream of it is out of date."""
    items = failed.data_folder() / "items.csv"
    items.write_text(items.read_text(encoding="utf-8").replace("Item 3", "Article 3"), encoding="utf-8")
    with open_instance(failed.home_folder()) as instance:
        job = defs.resolve_job_def("full_pipeline")
        folders = {"home": failed.home, "data": failed.data}
        job.execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey("raw_items")],
            run_config={"resources": {"settings": {"config": folders}}},
        )
    assert _materialized(failed, _launch(failed, partition, resume=True)) == {"raw_items", *CLEAN, "histories"}


def test_nothing_remains_of_a_run_that_died_after_its_last_asset(settings: Settings, partition: str) -> None:
    """Everything was materialized and checked, so no second run is created."""
    run_id = _launch(settings, partition)
    with open_instance(settings.home_folder()) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.run_storage.handle_run_event(
            run_id,
            dg.DagsterEvent(dg.DagsterEventType.RUN_CANCELED.value, run.job_name),
        )
    assert _launch(settings, partition, resume=True) == run_id


def _resume_refresh(settings: Settings, dataset: str) -> str:
    home, data = settings.home_folder(), settings.data_folder()
    return launch(LaunchRequest(dataset, home, data, job="refresh", resume=True), defs=defs)


def test_a_later_run_of_another_job_is_not_taken_up(
    failed: Settings, partition: str, caplog: pytest.LogCaptureFixture
) -> None:
    """`macrec run --resume` continues the full pipeline although a refresh failed after it; both are listed first."""
    tags = {LAUNCHED_BY: COMMAND_LINE, "dagster/partition": partition}
    with open_instance(failed.home_folder()) as instance:
        refresh = instance.add_run(dg.DagsterRun("refresh", status=dg.DagsterRunStatus.STARTED, tags=tags))
        (run,) = instance.get_runs(filters=dg.RunsFilter(job_name="full_pipeline"))
    with caplog.at_level("INFO", "macrec_pipeline.defs.runs.launch"):
        assert _materialized(failed, _launch(failed, partition, resume=True)) == {"histories"}
    first, second = [message for message in caplog.messages if message.startswith("This run can be resumed:")]
    assert refresh.run_id in first
    assert "(refresh, " in first
    assert "stopped at its start)." in first
    assert run.run_id in second
    assert "(full_pipeline, " in second
    assert "stopped at histories)." in second


def test_a_job_without_a_run_names_those_that_have_one(failed: Settings, partition: str) -> None:
    """`macrec refresh --resume` does not continue the full pipeline; the message says what could be resumed."""
    with pytest.raises(
        ConfigError, match=r"no run of .* by `macrec refresh` to resume\. Runs of other jobs .*histories"
    ):
        _resume_refresh(failed, partition)


def test_a_person_can_name_the_run_that_is_taken_up(failed: Settings, partition: str) -> None:
    """An older run is continued although a newer one of its job failed too; each other ID is refused with the list."""
    home, data = failed.home_folder(), failed.data_folder()
    with open_instance(home) as instance:
        (older,) = instance.get_runs(filters=dg.RunsFilter(job_name="full_pipeline"))
        tags = {LAUNCHED_BY: COMMAND_LINE, "dagster/partition": partition}
        newer = instance.add_run(dg.DagsterRun("full_pipeline", status=dg.DagsterRunStatus.FAILURE, tags=tags))

    def resume(run_id: str, job: str = "full_pipeline") -> str:
        return launch(LaunchRequest(partition, home, data, job=job, resume=True, resumed_run=run_id), defs=defs)

    with pytest.raises(ConfigError, match=r"'3f2a' is too short .* at least its first 8 characters"):
        resume("3f2a")
    with pytest.raises(ConfigError, match=rf"no run of .* begins with 'ffffffff' .*can be resumed: {newer.run_id}"):
        resume("ffffffff")
    assert _materialized(failed, resume(older.run_id[:8], job="refresh")) == {"histories"}
    with open_instance(home) as instance:
        resumed = instance.get_runs(limit=1)[0]
    assert resumed.job_name == "full_pipeline", "the job of the run that is taken up, not of the command"
    with pytest.raises(ConfigError, match=rf"The run of {partition}, {resumed.run_id}, has finished"):
        resume(resumed.run_id)
