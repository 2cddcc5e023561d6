"""A home that was moved or copied: its Dagster runs resume, close and run again in the present folder."""

import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from macrec_pipeline.data.histories import build
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.defs.runs.liveness import close_dead_runs
from macrec_pipeline.errors import DataError
from tests.defs.conftest import add_run


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _homes(home: Path) -> list[Any]:
    with open_instance(home) as instance:
        configs = [run.run_config for run in instance.get_runs()]
    return [config["resources"]["settings"]["config"].get("home") for config in configs if config]


def test_a_failed_run_resumes_in_the_copy_alone(
    settings: Settings, partition: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy takes up the run with the copied assets, and leaves every byte of the original alone.

    An interrupted run of the copy, which a kill left as started, is closed in the copy's MLflow records.
    """
    home, other = settings.home_folder(), tmp_path / "restored" / "other home"
    until = LaunchRequest(partition, home, settings.data_folder(), until="histories")

    def fail(*_: object) -> None:
        raise DataError("no histories today")

    with monkeypatch.context() as patch:
        patch.setattr(build, "build_histories", fail)
        with pytest.raises(DataError, match="no histories today"):
            launch(until, defs=defs)
    with open_instance(home) as instance:
        (failed,) = instance.get_runs()
        tags = {LAUNCHED_BY: COMMAND_LINE, "dagster/partition": partition}
        instance.add_run(
            dg.DagsterRun("refresh", run_config=failed.run_config, status=dg.DagsterRunStatus.STARTED, tags=tags)
        )
    shutil.copytree(home, other, symlinks=True)
    before = _contents(home)
    with open_instance(other) as instance:
        assert len(close_dead_runs(instance, other)) == 1
        instance.delete_run(instance.get_runs(limit=1)[0].run_id)  # it is the newest, and would be resumed
    run_id = launch(LaunchRequest(partition, other, settings.data_folder(), resume=True), defs=defs)
    with open_instance(other) as instance:
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        assert [entry.get_dagster_event().asset_key.to_user_string() for entry in events] == ["histories"]
    assert _contents(home) == before
    assert set(_homes(other)) == {str(other)}
    assert set(_homes(home)) == {str(home)}
    shutil.rmtree(home)
    launch(LaunchRequest(partition, other, settings.data_folder(), only="histories"), defs=defs)
    assert not home.exists()


def test_runs_that_name_another_home_keep_it(settings: Settings, tmp_path: Path) -> None:
    """A home that a person typed into the UI's launchpad, and a URL, are no former folder of the moved home."""
    home = settings.home_folder()

    def config(value: str) -> dict[str, Any]:
        return {"resources": {"settings": {"config": {"home": value}}}}

    with open_instance(home) as instance:
        add_run(instance, tags={})
        instance.add_run(dg.DagsterRun("job", run_config=config("/elsewhere")))
        instance.add_run(dg.DagsterRun("job", run_config=config("s3://b/p"), tags={LAUNCHED_BY: COMMAND_LINE}))
        instance.add_run(dg.DagsterRun("job", run_config=config(str(home)), tags={LAUNCHED_BY: COMMAND_LINE}))
        instance.add_run(dg.DagsterRun("job", run_config=config(str(home))))  # repeated in the UI
    moved = home.rename(tmp_path / "moved")
    assert sorted(_homes(moved)) == sorted(["/elsewhere", "s3://b/p", str(moved), str(moved)])
