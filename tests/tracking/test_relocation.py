"""A home that was moved or copied: its MLflow records refer to the present folder; nothing reaches the former one."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.runtime.process_locks import hold_lock
from macrec_pipeline.tracking import Tracker, load_model, open_tracking
from macrec_pipeline.tracking.outbox import Outbox
from macrec_pipeline.tracking.relocation import update_locations
from macrec_pipeline.tracking.store import connect
from tests.tracking.test_registry import register


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stored_addresses(home: Path) -> str:
    with closing(sqlite3.connect(home / "mlflow" / "mlflow.db")) as connection:
        return "\n".join(connection.iterdump())


def recommended(home: Path) -> list[str]:
    loaded = load_model("models:/macrec-demo@champion", home)
    return list(loaded.unwrap_python_model().bundle.item_ids)


def test_a_copy_has_its_champion_and_leaves_the_original_alone(
    tracker: Tracker, home: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """The copy loads, logs and registers by itself, whether or not the original exists; the original's bytes stay."""
    register(tracker, bundle_folder)
    other = tmp_path / "restored" / "other home"
    shutil.copytree(home, other)
    before = contents(home)
    copy = open_tracking(other)
    assert register(copy, bundle_folder).version == 2
    assert contents(home) == before
    home.rename(tmp_path / "hidden")
    assert recommended(other) == [f"item-{index}" for index in range(12)]
    with copy.bundle("demo", 1) as folder:
        assert (folder / "bundle.json").is_file()
    assert register(copy, bundle_folder).version == 3
    assert not home.exists()
    assert home.as_uri() not in stored_addresses(other)


def test_a_renamed_home_and_its_original_name_taken_by_a_copy(
    tracker: Tracker, home: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """A home that is moved twice keeps its models; a home that never moved is not written when it is opened."""
    register(tracker, bundle_folder)
    first, second = tmp_path / "first", tmp_path / "second"
    home.rename(first)
    assert recommended(first)
    first.rename(second)
    assert recommended(second)
    database = second / "mlflow" / "mlflow.db"
    assert update_locations(database, second) == []


def test_a_home_has_one_address_through_every_link(
    tracker: Tracker, home: Path, bundle_folder: Path, tmp_path: Path
) -> None:
    """A home that is opened through a symbolic link keeps its addresses, so that two ways in do not alternate."""
    link = tmp_path / "link"
    link.symlink_to(home)
    assert register(open_tracking(link), bundle_folder).version == 1
    assert link.as_uri() not in stored_addresses(home)
    assert home.as_uri() in stored_addresses(home)


def test_addresses_outside_a_home_are_left_alone(home: Path, tmp_path: Path) -> None:
    """An experiment whose artifacts a person has placed elsewhere keeps its address."""
    client = connect(home).client
    client.create_experiment("elsewhere", artifact_location="s3://bucket/mlflow/artifacts/x")
    client.create_experiment("folder", artifact_location=(tmp_path / "mine").as_uri())
    moved = home.rename(tmp_path / "moved")
    client = connect(moved).client
    assert client.get_experiment_by_name("elsewhere").artifact_location == "s3://bucket/mlflow/artifacts/x"
    assert client.get_experiment_by_name("folder").artifact_location == (tmp_path / "mine").as_uri()


def test_a_database_that_the_environment_names_is_not_changed(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With MLFLOW_TRACKING_URI, the store belongs to somebody else, whatever addresses it has."""
    connect(home)
    shared = tmp_path / "shared.db"
    shutil.copyfile(home / "mlflow" / "mlflow.db", shared)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shared}")
    connect(tmp_path / "another")
    with closing(sqlite3.connect(shared)) as connection:
        (location,) = connection.execute("SELECT artifact_location FROM experiments").fetchone()
    assert location.startswith(home.as_uri())


def test_a_run_under_the_former_path_is_not_disturbed(home: Path, tmp_path: Path) -> None:
    """If a process still works in this very home, its addresses must not change under it."""
    connect(home)
    moved = home.rename(tmp_path / "moved")
    with (
        hold_lock(moved / "mlflow" / "running" / "run.lock"),
        pytest.raises(TrackingError, match=r"A run is in progress in .*moved under its former path .*a home"),
    ):
        connect(moved)
    connect(moved)


@pytest.mark.parametrize("absolute", [False, True])
def test_unsent_artifacts_are_sent_from_the_copy(absolute: bool, tracker: Tracker, home: Path, tmp_path: Path) -> None:
    """What waits for the store moves with the home, also if an earlier version recorded its absolute path."""
    config = resolve_config("demo")
    with tracker.asset_run(dataset="demo", asset="items", dagster_run_id="run-1", config=config) as run:
        pass
    note = tmp_path / "note.txt"
    note.write_text("hello", encoding="utf-8")
    outbox = Outbox(connect(home), run.run_id)
    outbox.add({"artifact": str(note), "folder": None})
    messages = outbox.folder / "messages.jsonl"
    message = json.loads(messages.read_text(encoding="utf-8"))
    assert message["artifact"] == "files/0/note.txt"
    if absolute:
        message["artifact"] = str(outbox.folder / message["artifact"])
        messages.write_text(json.dumps(message) + "\n", encoding="utf-8")
    moved = home.rename(tmp_path / "moved")
    with open_tracking(moved).asset_run(dataset="demo", asset="items", dagster_run_id="run-2", config=config):
        pass
    assert not (moved / "mlflow" / "unsent" / run.run_id).exists()
    (sent,) = (moved / "mlflow" / "artifacts").rglob(f"{run.run_id}/artifacts/note.txt")
    assert sent.read_text(encoding="utf-8") == "hello"
    assert not home.exists()
