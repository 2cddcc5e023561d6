"""Homes whose path has characters that mean something in a URL: everything works there, and nothing lies elsewhere."""

from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.tracking import open_tracking


@pytest.mark.parametrize("name", ["ho%20me", "ho?me", "a # home", "Zürich [2024]", "100%"])
def test_a_run_works_in_a_home_with_any_name(name: str, settings: Settings, partition: str, tmp_path: Path) -> None:
    """The run is recorded in the home's own databases; beside the home, nothing is created."""
    parent = tmp_path / "homes"
    home = parent / name
    run_id = launch(LaunchRequest(partition, home, settings.data_folder(), until="items"), defs=defs)
    assert [path.name for path in parent.iterdir()] == [name]
    assert (home / "dagster" / "history" / "runs.db").is_file()
    assert (home / "mlflow" / "mlflow.db").is_file()
    with open_instance(home) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status == dg.DagsterRunStatus.SUCCESS
    assert open_tracking(home).champion(partition) is None


def test_the_ui_opens_the_same_databases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that knows only DAGSTER_HOME sees the runs, also after a home was moved to such a path."""
    with open_instance(tmp_path / "home") as instance:
        instance.add_run(dg.DagsterRun("job"))
    home = (tmp_path / "home").rename(tmp_path / "50% off?")
    with open_instance(home) as instance:
        assert len(instance.get_runs()) == 1
    monkeypatch.setenv("DAGSTER_HOME", str(home / "dagster"))
    with dg.DagsterInstance.get() as instance:
        assert len(instance.get_runs()) == 1
