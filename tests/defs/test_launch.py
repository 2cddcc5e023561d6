"""Runs from the command line: where they are kept, which assets they make, how their errors are told."""

import gzip
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Thread

import dagster as dg
import polars as pl
import pytest
from sqlalchemy.exc import OperationalError

from macrec_pipeline.data.cleaning.result import CleaningResult
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs import launch as launching
from macrec_pipeline.defs.runs.launch import LaunchRequest, asset_names, dagster_folder, launch, open_instance
from macrec_pipeline.errors import ConfigError, DataError, StorageError
from macrec_pipeline.storage import AssetStore


def _request(settings: Settings, partition: str, *, until: str | None = None, only: str | None = None) -> LaunchRequest:
    return LaunchRequest(partition, settings.home_folder(), settings.data_folder(), until=until, only=only)


def _made_by(home: Path, run_id: str) -> tuple[dg.DagsterRun, set[str]]:
    with open_instance(home) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return run, {event.asset_key.to_user_string() for entry in events if (event := entry.dagster_event)}  # type: ignore[union-attr]


def test_a_run_is_kept_where_the_ui_looks_for_it(settings: Settings, partition: str) -> None:
    """`until` makes an asset and what it needs, `only` it alone; both are filed under the job of the code location."""
    home = settings.home_folder()
    run, made = _made_by(home, launch(_request(settings, partition, until="histories"), defs=defs))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert run.job_name == "full_pipeline"
    assert run.tags[".dagster/repository"] == "__repository__@macrec_pipeline.definitions"
    assert run.tags["dagster/partition"] == partition
    assert made == {"raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories"}
    _, made = _made_by(home, launch(_request(settings, partition, only="items"), defs=defs))
    assert made == {"interactions", "items", "quarantine"}  # one function makes the three
    assert not list((home / ".running").iterdir())


def test_a_failed_check_is_told_with_its_findings(
    settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person reads what the check found, not that some step of Dagster failed."""

    honest = CleaningResult.interactions

    def careless(log: CleaningResult) -> Iterator[pl.DataFrame]:
        late = pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(9_999_999_999_999).otherwise(pl.col("timestamp"))
        return (part.with_columns(timestamp=late) for part in honest(log))

    monkeypatch.setattr(CleaningResult, "interactions", careless)
    with pytest.raises(DataError, match=r"interactions \(interactions_are_sound\): .*timestamp in the future"):
        launch(_request(settings, partition, until="histories"), defs=defs)


def test_what_a_stage_raises_comes_through(settings: Settings, partition: str) -> None:
    """An asset without what it is made from says which asset is missing, as the store says it."""
    with pytest.raises(StorageError, match="is not there yet"):
        launch(_request(settings, partition, only="histories"), defs=defs)


def test_records_that_cannot_be_written_are_named(
    settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk Dagster's own database fails first: one line that says so, and what to run once there is room."""

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr("macrec_pipeline.defs.runs.abandoned.close_abandoned_runs", fail)
    with pytest.raises(StorageError, match=rf"dagster cannot .*disk is full.*`macrec run {partition} --resume`\.$"):
        launch(_request(settings, partition), defs=defs)


def test_assets_are_named_upstream_first() -> None:
    """The list in an error message follows the pipeline."""
    names = asset_names(defs)
    assert names[:2] == ["raw_interactions", "raw_items"]
    assert names[-1] == "registered_model"
    assert len(names) == 17


def test_nobody_sees_half_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever opens Dagster by a file half copied works without its pools, and takes them out of the records."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    size = 2**26
    (tmp_path / "dagster_home").mkdir()
    (tmp_path / "dagster_home" / "dagster.yaml").write_bytes(b"#" * size)
    monkeypatch.setattr(launching, "_CHECKOUT", tmp_path)
    settings = tmp_path / "home" / "dagster" / "dagster.yaml"
    seen: list[int] = []

    def look() -> None:
        while not settings.exists():
            pass
        seen.append(settings.stat().st_size)

    looking = Thread(target=look)
    looking.start()
    dagster_folder(tmp_path / "home")
    looking.join()
    assert seen == [size]
    assert [each.name for each in settings.parent.iterdir()] == ["dagster.yaml"]


def test_the_dagster_folder_is_furnished_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new home gets the checkout's dagster.yaml; what a person changed in it stays; DAGSTER_HOME wins."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    folder = dagster_folder(tmp_path / "home")
    assert folder == tmp_path / "home" / "dagster"
    assert "telemetry:\n  enabled: false" in (folder / "dagster.yaml").read_text(encoding="utf-8")
    (folder / "dagster.yaml").write_text("telemetry: {enabled: true}\n", encoding="utf-8")
    dagster_folder(tmp_path / "home")
    assert (folder / "dagster.yaml").read_text(encoding="utf-8") == "telemetry: {enabled: true}\n"
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path / "own"))
    assert dagster_folder(tmp_path / "home") == tmp_path / "own"
    monkeypatch.setenv("DAGSTER_HOME", "relative")
    with pytest.raises(ConfigError, match="absolute"):
        dagster_folder(tmp_path / "home")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [((), 20260), (("seed=7",), 7), (("seed=7", "seed=8"), 8)],
)
def test_overrides_reach_the_settings_of_a_run(
    settings: Settings, partition: str, overrides: Sequence[str], expected: int
) -> None:
    """`--set` lies over the data set's own settings; the last one wins."""
    own = Settings(home=settings.home, data=settings.data, overrides=list(overrides))
    assert own.config(partition).seed == expected


def test_folders_come_from_the_environment_when_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UI's processes are told by environment variables, so nothing may be fixed when the code is loaded."""
    settings = Settings()
    monkeypatch.setenv("MACREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACREC_DATA", str(tmp_path / "data"))
    assert (settings.home_folder(), settings.data_folder()) == (tmp_path / "home", tmp_path / "data")
    monkeypatch.delenv("MACREC_HOME")
    monkeypatch.chdir(tmp_path)
    assert settings.home_folder() == tmp_path / ".macrec"
    assert Settings(home="/elsewhere").home_folder() == Path("/elsewhere")


def test_a_log_that_breaks_off_leaves_no_table(settings: Settings, partition: str) -> None:
    """It is written while it is read, so the reader's error comes out of the writing, in its own words."""
    path = settings.data_folder() / "log.csv"
    packed = gzip.compress(path.read_bytes() * 50, compresslevel=1)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"log\.csv cannot be read"):
        launch(_request(settings, partition, only="raw_interactions"), defs=defs)
    assert not AssetStore(settings.home_folder(), partition).has("raw_interactions")
