"""Retention in MLflow: what is removed, what never is, and that the store stops growing."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import ViewType

from macrec_pipeline.datasets import Retention
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.tracking import Tracker, load_model
from macrec_pipeline.tracking.retention import WEEK_SECONDS, MlflowPlan, compact_sqlite, plan_mlflow, tree_size
from macrec_pipeline.tracking.store import connect


def cycle(tracker: Tracker, bundle_folder: Path, number: int, dataset: str = "demo") -> None:
    """Do what a weekly run does: two child runs with metrics and a plot, and a new version."""
    config, run_id = resolve_config("demo"), f"week-{number}"
    with tracker.asset_run(dataset=dataset, asset="recommender", dagster_run_id=run_id, config=config) as run:
        run.log_metrics({f"loss_{index}": float(index) for index in range(50)}, step=1)
        run.log_text("plot.txt", "x" * 50_000)
    with tracker.asset_run(dataset=dataset, asset="registered_model", dagster_run_id=run_id, config=config) as run:
        tracker.register(
            bundle_folder, dataset=dataset, metrics={"hr_10": 0.1}, dagster_run_id=run_id, run_id=run.run_id
        )
    tracker.finish_pipeline(dataset, run_id, "FINISHED")


def prune(tracker: Tracker, limits: Retention, dataset: str = "demo", **options: Any) -> MlflowPlan:
    with tracker.retention_plan(dataset, limits, **options) as plan:
        for step in plan.steps:
            step.carry_out()
    return plan


def versions(home: Path) -> set[int]:
    return {int(found.version) for found in connect(home).client.search_model_versions("name = 'macrec-demo'")}


def pipeline_runs(home: Path, view: int = ViewType.ALL) -> set[str]:
    client = connect(home).client
    experiment = client.get_experiment_by_name("macrec/demo").experiment_id
    return {run.data.tags["dagster.run_id"] for run in client.search_runs([experiment], run_view_type=view)}


def test_the_store_stops_growing(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """After the limits are reached, further cycles with a prune each leave files and database as large as before."""
    limits, files, database = Retention(versions=2, mlflow_runs=2), [], []
    for number in range(12):
        cycle(tracker, bundle_folder, number)
        prune(tracker, limits)
        files.append(tree_size(home / "mlflow" / "artifacts"))
        database.append((home / "mlflow" / "mlflow.db").stat().st_size)
    assert max(files[5:]) - min(files[5:]) < 2_000, files
    assert database[-1] - database[5] <= 2 * 4096 * 6, database  # a row for the number of each version remains
    assert versions(home) == {1, 11, 12}
    assert pipeline_runs(home) == {"week-0", "week-10", "week-11"}


def test_what_is_in_use_is_never_removed(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """Champion, challenger, aliases, pinned versions and former champions stay, with their runs, and can be loaded."""
    for number in range(9):
        cycle(tracker, bundle_folder, number)
    for version in (2, 3, 4, 5):
        tracker.promote("demo", version=version)
    connect(home).client.set_registered_model_alias("macrec-demo", "shop", "1")
    limits = Retention(versions=1, previous_champions=2, mlflow_runs=1)
    prune(tracker, limits, pinned=[7])
    kept = {1, 3, 4, 5, 7, 9}  # alias, former champions, champion, pinned, challenger
    assert versions(home) == kept
    assert pipeline_runs(home) == {f"week-{version - 1}" for version in kept}
    for version in kept:
        assert load_model(f"models:/macrec-demo/{version}", home) is not None
    assert [tracker.rollback("demo").champion.version for _ in range(2)] == [4, 3]


def test_a_plan_changes_nothing_and_gives_sizes_and_reasons(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """A dry run lists each removal; the sizes are those of the files that are then removed."""
    for number in range(4):
        cycle(tracker, bundle_folder, number)
    limits, before = Retention(versions=1, mlflow_runs=1), tree_size(home / "mlflow" / "artifacts")
    plan = plan_mlflow(connect(home), "demo", limits)
    assert tree_size(home / "mlflow" / "artifacts") == before
    assert versions(home) == {1, 2, 3, 4}
    removals = [step.removal for step in plan.steps]
    assert [removal.kind for removal in removals].count("model version") == 2
    assert [removal.kind for removal in removals].count("bundle") == 2
    assert [removal.kind for removal in removals].count("MLflow run") == 6
    assert all(removal.reason for removal in removals)
    assert prune(tracker, limits).steps != ()
    assert before - tree_size(home / "mlflow" / "artifacts") == sum(removal.num_bytes for removal in removals)
    assert prune(tracker, limits).steps == ()


def test_old_runs_go_and_their_artifacts_before_them(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """After `artifact_weeks` only the files of a run are removed, after `mlflow_weeks` the run itself."""
    with tracker.asset_run(
        dataset="demo", asset="predictions", dagster_run_id="alone", config=resolve_config("demo")
    ) as run:
        run.log_metrics({"loss": 0.5}, step=1)
    tracker.finish_pipeline("demo", "alone", "FINISHED")
    limits = Retention(artifact_weeks=2, mlflow_weeks=4)
    for weeks, kinds in ((1, []), (3, ["artifacts"]), (5, ["MLflow run", "MLflow run"])):
        plan = plan_mlflow(connect(home), "demo", limits, now=time.time() + weeks * WEEK_SECONDS)
        assert [step.removal.kind for step in plan.steps] == kinds
        for step in plan.steps:
            step.carry_out()
    assert pipeline_runs(home) == set()


def test_an_interrupted_prune_is_completed_by_the_next(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """Wherever it stops, what is kept can be loaded, and the next prune leaves nothing behind."""
    for number in range(5):
        cycle(tracker, bundle_folder, number)
    limits = Retention(versions=1, mlflow_runs=1)
    for stop in range(100):
        with tracker.retention_plan("demo", limits) as plan:
            for step in plan.steps[: 1 + stop % 2]:
                step.carry_out()
            if not plan.steps:
                break
        assert load_model("models:/macrec-demo@champion", home) is not None
        assert load_model("models:/macrec-demo@challenger", home) is not None
    folders = [path for path in (home / "mlflow" / "artifacts" / "demo").iterdir() if path.name != "models"]
    assert len(folders) <= 4
    assert len(list((home / "mlflow" / "artifacts" / "demo" / "models").iterdir())) == 2


def test_other_data_sets_and_running_runs_are_left_alone(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """A prune touches neither another data set's records, nor a run in progress, nor a run that a person made."""
    store = connect(home)
    own = store.client.create_run(store.experiment_id("demo"), run_name="by hand").info.run_id
    store.client.set_terminated(own)
    for number in range(3):
        cycle(tracker, bundle_folder, number, dataset="shop")
    cycle(tracker, bundle_folder, 0)
    with tracker.asset_run(
        dataset="demo", asset="recommender", dagster_run_id="now", config=resolve_config("demo")
    ) as running:
        cycle(tracker, bundle_folder, 1)
        plan = prune(tracker, Retention(versions=1, mlflow_runs=1))
        names = " ".join(step.removal.name for step in plan.steps)
        assert running.run_id not in names
        assert own not in names
    assert len(connect(home).client.search_model_versions("name = 'macrec-shop'")) == 3


def test_unsent_data_is_removed_after_its_weeks(tracker: Tracker, home: Path) -> None:
    """What could not be sent is kept for `unsent_weeks`."""
    for name, weeks in (("refused-old", 9), ("new", 1)):
        folder = home / "mlflow" / "unsent" / name
        folder.mkdir(parents=True)
        (folder / "messages.jsonl").write_text("{}\n")
        then = time.time() - weeks * WEEK_SECONDS
        os.utime(folder / "messages.jsonl", (then, then))
        os.utime(folder, (then, then))
    plan = prune(tracker, Retention(unsent_weeks=8))
    assert [(step.removal.kind, step.removal.name) for step in plan.steps] == [("unsent data", "refused-old")]
    assert [path.name for path in (home / "mlflow" / "unsent").iterdir()] == ["new"]


def test_another_database_is_only_marked(
    tmp_path: Path, tracker: Tracker, home: Path, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files and rows of a store outside the home stay, and the plan says what its owner has to run."""
    for number in range(3):
        cycle(tracker, bundle_folder, number)
    other = tmp_path / "other home"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    store = connect(other)
    before = tree_size(home / "mlflow" / "artifacts")
    plan = plan_mlflow(store, "demo", Retention(versions=1, mlflow_runs=1))
    for step in plan.steps:
        step.carry_out()
    assert plan.gc_hint is not None
    assert "mlflow gc" in plan.gc_hint
    assert tree_size(home / "mlflow" / "artifacts") == before
    assert pipeline_runs(home, ViewType.ACTIVE_ONLY) == {"week-0", "week-2"}
    assert pipeline_runs(home) == {"week-0", "week-1", "week-2"}


def test_free_pages_are_given_back(tmp_path: Path) -> None:
    """A database with many free pages becomes smaller; one that is in use, or nearly full, is left as it is."""
    import sqlite3
    from contextlib import closing

    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE rows (text TEXT)")
        connection.executemany("INSERT INTO rows VALUES (?)", [("x" * 1000,)] * 5000)
        connection.commit()
        assert compact_sqlite(path) == 0
        connection.execute("DELETE FROM rows")
        connection.commit()
    before = path.stat().st_size
    freed = compact_sqlite(path)
    assert freed == before - path.stat().st_size > 4_000_000
    assert compact_sqlite(tmp_path / "none.db") == 0
