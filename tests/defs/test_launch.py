"""Runs from the command line: where they are stored, which assets they materialize, how errors are reported."""

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


def _materialized_by(home: Path, run_id: str) -> tuple[dg.DagsterRun, set[str]]:
    with open_instance(home) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        events = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        return run, {event.asset_key.to_user_string() for entry in events if (event := entry.dagster_event)}  # type: ignore[union-attr]


def test_a_run_is_stored_where_the_ui_looks_for_it(settings: Settings, partition: str) -> None:
    """`until` materializes an asset and what is upstream of it, `only` the asset alone; both belong to the UI's job."""
    home = settings.home_folder()
    run, materialized = _materialized_by(home, launch(_request(settings, partition, until="histories"), defs=defs))
    assert run.status == dg.DagsterRunStatus.SUCCESS
    assert run.job_name == "full_pipeline"
    assert run.tags[".dagster/repository"] == "__repository__@macrec_pipeline.definitions"
    assert run.tags["dagster/partition"] == partition
    assert materialized == {"raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories"}
    _, materialized = _materialized_by(home, launch(_request(settings, partition, only="items"), defs=defs))
    assert materialized == {"interactions", "items", "quarantine"}  # one function makes all three
    assert not list((home / ".running").iterdir())


def test_a_failed_check_is_reported_with_its_findings(
    settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error says what the check found and what to do, not that some step of Dagster failed."""

    original = CleaningResult.interactions

    def with_a_future_time(log: CleaningResult) -> Iterator[pl.DataFrame]:
        late = pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(9_999_999_999_999).otherwise(pl.col("timestamp"))
        return (part.with_columns(timestamp=late) for part in original(log))

    monkeypatch.setattr(CleaningResult, "interactions", with_a_future_time)
    with pytest.raises(
        DataError,
        match=r"^Check `interactions_are_sound` of interactions failed: .*timestamp in the future.* What to do: ",
    ):
        launch(_request(settings, partition, until="histories"), defs=defs)


def test_the_error_of_an_asset_is_raised_unchanged(settings: Settings, partition: str) -> None:
    """If an input is missing, the store's own error names it."""
    with pytest.raises(StorageError, match="does not exist yet"):
        launch(_request(settings, partition, only="histories"), defs=defs)


def test_a_database_that_cannot_be_written_is_named(
    settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk Dagster's database fails first; the error says so, and what to run once there is space."""

    def fail(*_: object) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))

    monkeypatch.setattr("macrec_pipeline.defs.runs.liveness.close_dead_runs", fail)
    with pytest.raises(StorageError, match=rf"dagster cannot be .*disk is full.*`macrec run {partition} --resume`\.$"):
        launch(_request(settings, partition), defs=defs)


def test_assets_are_listed_upstream_first() -> None:
    """The list in an error message is in the order of the pipeline."""
    names = asset_names(defs)
    assert names[:2] == ["raw_interactions", "raw_items"]
    assert names[-1] == "registered_model"
    assert len(names) == 19


def test_an_unknown_asset_is_refused_with_a_suggestion(settings: Settings, partition: str) -> None:
    """The error suggests the asset with the most similar name, if there is one, and lists all of them."""
    with pytest.raises(ConfigError) as raised:
        launch(_request(settings, partition, until="recomender"), defs=defs)
    start = (
        "Unknown asset `recomender`. Did you mean `recommender`? The assets of full_pipeline are: raw_interactions, "
    )
    assert str(raised.value).startswith(start)
    with pytest.raises(
        ConfigError, match=r"Unknown asset `xyz`\. The assets of full_pipeline are: .*, registered_model"
    ):
        launch(_request(settings, partition, only="xyz"), defs=defs)


def test_no_process_reads_an_incomplete_dagster_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that read half of the file would have no pools, and would delete the recorded pool limits."""
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    size = 2**26
    (tmp_path / "dagster_home").mkdir()
    (tmp_path / "dagster_home" / "dagster.yaml").write_bytes(b"#" * size)
    monkeypatch.setattr(launching, "_CHECKOUT", tmp_path)
    settings = tmp_path / "home" / "dagster" / "dagster.yaml"
    sizes: list[int] = []

    def wait_for_file() -> None:
        while not settings.exists():
            pass
        sizes.append(settings.stat().st_size)

    reader = Thread(target=wait_for_file)
    reader.start()
    dagster_folder(tmp_path / "home")
    reader.join()
    assert sizes == [size]
    assert [each.name for each in settings.parent.iterdir()] == ["dagster.yaml"]


def test_a_new_dagster_folder_gets_the_settings_of_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is copied only once, so that a person's changes to it stay. DAGSTER_HOME takes precedence."""
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
    """`--set` replaces the data set's own settings; the last one wins."""
    settings_of_run = Settings(home=settings.home, data=settings.data, overrides=list(overrides))
    assert settings_of_run.config(partition).seed == expected


def test_folders_come_from_the_environment_when_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The UI passes folders in environment variables, so nothing may be fixed when the code is loaded."""
    settings = Settings()
    monkeypatch.setenv("MACREC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MACREC_DATA", str(tmp_path / "data"))
    assert (settings.home_folder(), settings.data_folder()) == (tmp_path / "home", tmp_path / "data")
    monkeypatch.delenv("MACREC_HOME")
    monkeypatch.chdir(tmp_path)
    assert settings.home_folder() == tmp_path / ".macrec"
    assert Settings(home="/elsewhere").home_folder() == Path("/elsewhere")


def test_a_truncated_log_leaves_no_table(settings: Settings, partition: str) -> None:
    """The table is written while the log is read, so the reader's error must come through unchanged."""
    path = settings.data_folder() / "log.csv"
    packed = gzip.compress(path.read_bytes() * 50, compresslevel=1)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"log\.csv cannot be read"):
        launch(_request(settings, partition, only="raw_interactions"), defs=defs)
    assert not AssetStore(settings.home_folder(), partition).has("raw_interactions")
