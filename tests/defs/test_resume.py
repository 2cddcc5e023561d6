"""Going on from a run that broke off: what is refused, and what is made again though it had been finished."""

from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.data.histories.build import build
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.errors import ConfigError, DataError

CLEAN = {"interactions", "items", "quarantine"}


def _launch(settings: Settings, dataset: str, *, resume: bool = False) -> str:
    until = None if resume else "histories"
    request = LaunchRequest(dataset, settings.home_folder(), settings.data_folder(), until=until, resume=resume)
    return launch(request, defs=defs)


def _made(settings: Settings, run_id: str) -> set[str]:
    with open_instance(settings.home_folder()) as instance:
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return {event.asset_key.to_user_string() for entry in events if (event := entry.dagster_event)}  # type: ignore[union-attr]


@pytest.fixture
def broken_off(settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """A run up to `histories` that failed in it."""

    def fail(*_: object) -> None:
        raise DataError("no histories today")

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_histories", fail)
        with pytest.raises(DataError, match="no histories today"):
            _launch(settings, partition)
    return settings


def test_only_what_is_left_is_made(broken_off: Settings, partition: str) -> None:
    """The selection of the first run is kept: nothing beyond `histories` is made; after that nothing is left."""
    assert _made(broken_off, _launch(broken_off, partition, resume=True)) == {"histories"}
    with pytest.raises(ConfigError, match=r"The last run of .* has finished\. Start another: `macrec run"):
        _launch(broken_off, partition, resume=True)


def test_without_a_run_there_is_nothing_to_go_on_from(settings: Settings, partition: str) -> None:
    """The message is the command that starts one."""
    with pytest.raises(ConfigError, match=rf"There is no run of {partition} to go on from\. Start one: `macrec run"):
        _launch(settings, partition, resume=True)


def test_other_settings_start_anew(broken_off: Settings, partition: str) -> None:
    """What was made under one set of settings is no part of a run under another."""
    file = Path(broken_off.data_folder().parent, "datasets", f"{partition}.yaml")
    file.write_text(file.read_text(encoding="utf-8").replace("k_core: 2", "k_core: 3"), encoding="utf-8")
    with pytest.raises(ConfigError, match="are no longer those of its run"):
        _launch(broken_off, partition, resume=True)


@pytest.mark.parametrize(
    ("asset", "again"), [("raw_items", {"raw_items", *CLEAN, "histories"}), ("items", {*CLEAN, "histories"})]
)
def test_what_was_damaged_is_made_again(asset: str, again: set[str], broken_off: Settings, partition: str) -> None:
    """A finished asset whose file was changed since is made again, with all that follows it, and nothing else."""
    file = broken_off.store(partition).folder(asset) / f"{asset}.parquet"
    file.write_bytes(file.read_bytes()[:-1] + b"X")
    assert _made(broken_off, _launch(broken_off, partition, resume=True)) == again


def test_what_another_run_made_meanwhile_is_noticed(broken_off: Settings, partition: str) -> None:
    """Inputs that were made anew from other files, by a run of the UI, do not go with what is there."""
    items = broken_off.data_folder() / "items.csv"
    items.write_text(items.read_text(encoding="utf-8").replace("Item 3", "Article 3"), encoding="utf-8")
    with open_instance(broken_off.home_folder()) as instance:
        job = defs.resolve_job_def("full_pipeline")
        folders = {"home": broken_off.home, "data": broken_off.data}
        job.execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=[dg.AssetKey("raw_items")],
            run_config={"resources": {"settings": {"config": folders}}},
        )
    assert _made(broken_off, _launch(broken_off, partition, resume=True)) == {"raw_items", *CLEAN, "histories"}


def test_a_run_that_died_after_its_last_asset_has_nothing_left(settings: Settings, partition: str) -> None:
    """Everything was made and checked, so no second run is filed."""
    run_id = _launch(settings, partition)
    with open_instance(settings.home_folder()) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.run_storage.handle_run_event(
            run_id,
            dg.DagsterEvent(dg.DagsterEventType.RUN_CANCELED.value, run.job_name),
        )
    assert _launch(settings, partition, resume=True) == run_id
