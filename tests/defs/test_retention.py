"""Retention in Dagster, the command and the schedule: what goes, what stays, and that runs take turns with it."""

import os
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import pytest

from macrec_pipeline import cli
from macrec_pipeline.datasets import DatasetSpec, Retention, load_dataset
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.automation import automated_datasets, build_prune_schedule
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.retention import PRUNE, plan, prune, read_report
from macrec_pipeline.defs.runs.launch import LaunchRequest, launch, open_instance
from macrec_pipeline.errors import MacrecError
from macrec_pipeline.tracking.retention import WEEK_SECONDS, tree_size
from tests.defs.conftest import add_run


def limit(settings: Settings, dataset: str, **limits: int) -> None:
    """Write limits into the data set's file."""
    path = Path(settings.data or "").parent / "datasets" / f"{dataset}.yaml"
    lines = "".join(f"  {name}: {value}\n" for name, value in limits.items())
    path.write_text(path.read_text(encoding="utf-8") + f"retention:\n{lines}", encoding="utf-8")


def prepare(settings: Settings, dataset: str) -> str:
    """Run the quick first asset of the pipeline."""
    return launch(LaunchRequest(dataset, settings.home_folder(), settings.data_folder(), until="raw_items"), defs=defs)


def run_ids(settings: Settings) -> list[str]:
    with open_instance(settings.home_folder()) as instance:
        return [run.run_id for run in instance.get_runs()]


def test_dagster_stops_growing(settings: Settings, partition: str) -> None:
    """With a limit of three runs, the home is as large after twelve real runs with prunes as it was after six."""
    limit(settings, partition, dagster_runs=3, mlflow_runs=3)
    home, sizes = settings.home_folder(), []
    for _ in range(12):
        prepare(settings, partition)
        with open_instance(home) as instance:
            prune(instance, settings, partition)
        sizes.append(tree_size(home))
    assert len(run_ids(settings)) == 3
    assert max(sizes[6:]) < 1.02 * sizes[5], sizes
    assert len(list((home / "dagster" / "history" / "runs").glob("*-*.db"))) == 3


def test_what_later_runs_need_stays(settings: Settings, partition: str) -> None:
    """Unfinished runs, runs of present assets, runs that a kept run continues, and other data sets' runs stay."""
    limit(settings, partition, dagster_runs=1)
    made = prepare(settings, partition)
    tags = {"dagster/partition": partition}
    with open_instance(settings.home_folder()) as instance:
        ids = [str(uuid.UUID(int=number)) for number in range(1, 6)]
        other, root, unfinished, plain, newest = ids
        done = dg.DagsterRunStatus.FAILURE
        add_run(instance, run_id=other, status=done, tags={"dagster/partition": "other"})
        add_run(instance, run_id=root, status=done, tags=tags)
        add_run(instance, run_id=unfinished, tags=tags)
        add_run(instance, run_id=plain, status=done, tags=tags)
        add_run(instance, run_id=newest, status=done, tags={**tags, "dagster/parent_run_id": root})
        report = plan(instance, settings, partition)
        assert [removal.name.split()[0] for removal in report.removals] == [plain]
        assert "newest 1 run" in report.removals[0].reason
        prune(instance, settings, partition)
        assert {run.run_id for run in instance.get_runs()} == {made, other, root, unfinished, newest}
        assert plan(instance, settings, partition).removals == ()
        key = dg.AssetKey("raw_items")
        assert instance.get_latest_materialization_event(key) is not None
    assert read_report(settings.home_folder(), partition).removals == report.removals


@pytest.mark.parametrize("step", ["delete_events", "delete_run", "files"])
def test_an_interrupted_removal_is_completed(
    step: str, settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever a removal stops, the next prune removes the rest, including the files."""
    limit(settings, partition, dagster_runs=1)
    first, _second = prepare(settings, partition), prepare(settings, partition)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with open_instance(settings.home_folder()) as instance:
        with monkeypatch.context() as patch:
            if step == "files":
                patch.setattr("macrec_pipeline.defs.retention.remove_tree", die)
            else:
                owner = instance.event_log_storage if step == "delete_events" else instance.run_storage
                patch.setattr(type(owner), step, die)
            with pytest.raises(KeyboardInterrupt):
                prune(instance, settings, partition)
        report = prune(instance, settings, partition)
        assert [first in removal.name for removal in report.removals] == [True]
        assert instance.get_run_by_id(first) is None
        assert plan(instance, settings, partition).removals == ()
    assert not list((settings.home_folder() / "dagster" / "history" / "runs").glob(f"{first}*"))


def test_a_failed_run_can_be_resumed_after_a_prune(settings: Settings, partition: str) -> None:
    """However low the limit, a prune neither removes the run that `--resume` continues nor takes its place."""
    limit(settings, partition, dagster_runs=1)
    log = Path(settings.data or "") / "log.csv"
    log.rename(log.with_suffix(".away"))
    home, data = settings.home_folder(), settings.data_folder()
    with pytest.raises(MacrecError):
        launch(LaunchRequest(partition, home, data, until="interactions"), defs=defs)
    failed = run_ids(settings)[0]
    launch(LaunchRequest(partition, home, data, job=PRUNE), defs=defs)
    log.with_suffix(".away").rename(log)
    resumed = launch(LaunchRequest(partition, home, data, resume=True), defs=defs)
    with open_instance(home) as instance:
        run = instance.get_run_by_id(resumed)
        assert run is not None
        assert run.is_success
        assert run.tags["dagster/parent_run_id"] == failed


def test_the_command_lists_and_removes(
    settings: Settings, partition: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--dry-run` changes nothing; without it a run of the job `prune` removes what was listed, and says how much."""
    monkeypatch.setenv("COLUMNS", "200")
    limit(settings, partition, dagster_runs=2)
    ids = [prepare(settings, partition) for _ in range(4)]
    options = [partition, "--home", str(settings.home_folder()), "--data", str(settings.data_folder())]
    for arguments, beginning in ((["--dry-run"], "Would remove 2"), ([], "Removed ")):
        with pytest.raises(SystemExit) as ended:
            cli.main(["prune", *options, *arguments])
        assert ended.value.code == 0
        output = capsys.readouterr().out
        assert beginning in output
        assert ids[0] in output
        assert "(dagster_runs)" in output
        assert (ids[0] in run_ids(settings)) == bool(arguments)
    with open_instance(settings.home_folder()) as instance:
        (run,) = instance.get_runs(filters=dg.RunsFilter(job_name=PRUNE))
        assert (run.status, run.tags["dagster/partition"]) == (dg.DagsterRunStatus.SUCCESS, partition)


def test_an_old_backtest_is_removed(settings: Settings, partition: str, instance: dg.DagsterInstance) -> None:
    """Its reports and tables go together, once both are older than `backtest_weeks`."""
    limit(settings, partition, backtest_weeks=4)
    home = settings.home_folder()
    folders = [home / "backtest-results" / partition, home / "backtest" / partition]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "file").write_text("x" * 1000, encoding="utf-8")
    assert plan(instance, settings, partition).removals == ()
    then = time.time() - 5 * WEEK_SECONDS
    for folder in folders:
        os.utime(folder / "file", (then, then))
        os.utime(folder, (then, then))
    report = prune(instance, settings, partition)
    assert [(removal.kind, removal.num_bytes) for removal in report.removals] == [("backtest", 1000)] * 2
    assert not any(folder.exists() for folder in folders)


def test_who_is_pruned_without_a_person(settings: Settings, partition: str) -> None:
    """A data set that runs unattended is pruned weekly by default; any other only if its file has `retention`."""
    base = load_dataset(partition).model_dump(exclude_unset=True)

    def is_automatic(**sections: object) -> bool:
        return DatasetSpec.model_validate(base | sections).is_pruned_automatically

    assert not is_automatic()
    assert is_automatic(schedule={})
    assert is_automatic(on_new_data="refresh")
    assert is_automatic(retention={})
    assert not is_automatic(schedule={}, retention={"cron": None})
    limit(settings, partition, versions=4)
    assert [spec.name for spec in automated_datasets([partition])] == [partition]


def test_the_schedule_launches_the_job_for_its_data_set(settings: Settings, partition: str) -> None:
    """One run per tick, for this partition only, so that it waits for other runs of the data set."""
    spec = load_dataset(partition).model_copy(update={"retention": Retention(cron="0 5 * * 6")})
    schedule = build_prune_schedule(spec)
    due = datetime(2026, 3, 28, 5, tzinfo=UTC)
    context = dg.build_schedule_context(scheduled_execution_time=due, repository_def=defs.get_repository_def())
    (request,) = schedule.evaluate_tick(context).run_requests or []
    assert (schedule.job.name, schedule.cron_schedule, request.partition_key) == (PRUNE, "0 5 * * 6", partition)
    assert request.run_key is not None
    assert due.isoformat() in request.run_key
