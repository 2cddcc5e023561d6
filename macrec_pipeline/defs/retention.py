"""Remove what a data set no longer needs: old versions and runs in MLflow, runs and ticks in Dagster, old backtests.

`plan` lists what the data set's `retention` settings no longer allow to be kept, with sizes and reasons, and changes
nothing. `prune` removes it and writes the list to `<home>/<dataset>/.pruned.json`. Tables and asset folders need no
limit, because the store keeps only the present version of an asset and the one before it.

Never removed are unfinished runs, the runs that made the present version of an asset, those that made a kept model
version, and the runs that any of these continue. Whatever an interrupted `prune` leaves, records without files or files
without a record, the next one removes.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import dagster as dg
from filelock import FileLock, Timeout

from macrec_pipeline.datasets import Retention, dataset_names
from macrec_pipeline.defs.dagster_private import (
    PARENT_RUN_ID_TAG,
    PARTITION_TAG,
    ROOT_RUN_ID_TAG,
    delete_check_results,
    event_files,
    open_instance_without_output_capture,
    runs_with_event_files,
)
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.tracking import PlannedRemoval, Removal, open_tracking
from macrec_pipeline.tracking.retention import (
    WEEK_SECONDS,
    compact_sqlite,
    newest_change,
    plural,
    remove_tree,
    tree_size,
)
from macrec_pipeline.tracking.store import mlflow_folder

PRUNE = "prune"
"""Name of the job."""
REPORT = ".pruned.json"
_DATABASES = ("history/runs.db", "history/runs/index.db", "schedules/schedules.db")


@dataclass(frozen=True)
class PruneReport:
    """What was removed, or would be.

    Attributes:
        removals: in the order in which they are carried out.
        compacted_bytes: free pages of databases that were given back to the file system.
        notes: what a person has to know or do.
    """

    removals: tuple[Removal, ...]
    compacted_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def freed_bytes(self) -> int:
        """The bytes that the removals and the compaction freed."""
        return sum(removal.num_bytes for removal in self.removals) + self.compacted_bytes


def plan(instance: dg.DagsterInstance, settings: Settings, dataset: str) -> PruneReport:
    """List what `prune` would remove.

    Raises:
        ConfigError: the data set's file is invalid.
        TrackingError: the MLflow store rejects a request.
    """
    with _planned(instance, settings, dataset) as (steps, notes):
        return PruneReport(tuple(step.removal for step in steps), notes=tuple(notes))


def prune(instance: dg.DagsterInstance, settings: Settings, dataset: str) -> PruneReport:
    """Remove what the data set no longer needs. No other run of the data set may be in progress.

    Raises:
        ConfigError: the data set's file is invalid.
        TrackingError: the MLflow store rejects a request.
    """
    home = settings.home_folder()
    with _planned(instance, settings, dataset) as (steps, notes):
        for step in steps:
            step.carry_out()
    compacted = sum(compact_sqlite(database) for database in _dagster_databases(instance))
    if _has_mlflow_store(home):
        compacted += open_tracking(home).compact()
    report = PruneReport(tuple(step.removal for step in steps), compacted, tuple(notes))
    _write(report, home / dataset / REPORT)
    return report


def read_report(home: Path, dataset: str) -> PruneReport:
    """Read what the last `prune` of a data set removed."""
    content = json.loads((home / dataset / REPORT).read_text(encoding="utf-8"))
    removals = tuple(Removal(**removal) for removal in content["removals"])
    return PruneReport(removals, content["compacted_bytes"], tuple(content["notes"]))


@contextmanager
def _planned(
    instance: dg.DagsterInstance, settings: Settings, dataset: str
) -> Iterator[tuple[list[PlannedRemoval], list[str]]]:
    """Yield the removals and the notes, and hold the locks that keep both valid."""
    limits, home = settings.spec(dataset).retention, settings.home_folder()
    steps: list[PlannedRemoval] = []
    notes: list[str] = []
    with ExitStack() as stack:
        kept_runs: frozenset[str] = frozenset()
        if _has_mlflow_store(home):
            pinned = _pinned_version(settings.config(dataset).recommendations.model, dataset)
            records = stack.enter_context(open_tracking(home).retention_plan(dataset, limits, pinned=pinned))
            steps += records.steps
            kept_runs = records.kept_runs
            notes += [records.gc_hint] if records.gc_hint and records.steps else []
        steps += _plan_runs(instance, dataset, limits, kept_runs)
        steps += _plan_leftover_files(instance)
        steps += _plan_ticks(instance, dataset, limits)
        steps += _plan_backtest(stack, home / "backtest", home / "backtest-results" / dataset, dataset, limits)
        yield steps, notes


def _has_mlflow_store(home: Path) -> bool:
    return bool(os.environ.get("MLFLOW_TRACKING_URI")) or (mlflow_folder(home) / "mlflow.db").exists()


def _pinned_version(model: str, dataset: str) -> list[int]:
    """The version that `recommendations.model` names by number: `3` or `models:/macrec-demo/3`."""
    number = model.removeprefix(f"models:/macrec-{dataset}/")
    return [int(number)] if number.isdecimal() else []


def _plan_runs(
    instance: dg.DagsterInstance, dataset: str, limits: Retention, kept_runs: frozenset[str]
) -> list[PlannedRemoval]:
    records = instance.get_run_records(filters=dg.RunsFilter(tags={PARTITION_TAG: dataset}))
    records = sorted(records, key=lambda record: (record.create_timestamp, record.storage_id), reverse=True)
    runs = {record.dagster_run.run_id: record.dagster_run for record in records}
    too_old = time.time() - limits.dagster_weeks * WEEK_SECONDS
    needed = {run_id for run_id, run in runs.items() if not run.is_finished} | _materializing_runs(instance, dataset)
    needed |= kept_runs
    # The newest run of each job, which `--resume` may continue.
    needed |= set({run.job_name: run_id for run_id, run in reversed(runs.items()) if run.job_name != PRUNE}.values())
    reasons: dict[str, str] = {}
    for rank, record in enumerate(records):
        run_id = record.dagster_run.run_id
        if rank >= limits.dagster_runs:
            reasons[run_id] = f"older than the newest {plural(limits.dagster_runs, 'run')} (dagster_runs)"
        elif record.create_timestamp.timestamp() < too_old:
            reasons[run_id] = f"older than {plural(limits.dagster_weeks, 'week')} (dagster_weeks)"
        else:
            needed.add(run_id)
    # A resumed run is understood together with those that it continues.
    waiting = [runs[run_id] for run_id in sorted(needed) if run_id in runs]
    while waiting:
        tags = waiting.pop().tags
        for before in (tags.get(PARENT_RUN_ID_TAG), tags.get(ROOT_RUN_ID_TAG)):
            if before in runs and before not in needed:
                needed.add(before)
                waiting.append(runs[before])
    return [
        PlannedRemoval(
            Removal("Dagster run", f"{run_id} ({runs[run_id].job_name})", reasons[run_id], _run_size(instance, run_id)),
            partial(_remove_run, instance, run_id),
        )
        for run_id in runs
        if run_id not in needed
    ]


def _materializing_runs(instance: dg.DagsterInstance, dataset: str) -> set[str]:
    """The runs that made the present version of each asset, which resuming and the UI look up."""
    found = set()
    for key in instance.get_asset_keys():
        newest = instance.fetch_materializations(dg.AssetRecordsFilter(key, asset_partitions=[dataset]), limit=1)
        found |= {record.run_id for record in newest.records}
    return found


def _run_size(instance: dg.DagsterInstance, run_id: str) -> int:
    files = sum(path.stat().st_size for path in event_files(instance, run_id))
    return files + tree_size(Path(instance.storage_directory(), run_id))


def _remove_run(instance: dg.DagsterInstance, run_id: str) -> None:
    instance.event_log_storage.delete_events(run_id)
    delete_check_results(instance, run_id)
    instance.run_storage.delete_run(run_id)
    # Last, because Dagster cannot delete the events of a run without their file. If this is interrupted, the next plan
    # finds files without a run.
    _remove_files_of_run(instance, run_id)


def _remove_files_of_run(instance: dg.DagsterInstance, run_id: str) -> None:
    """Remove the events of a run, and the captured output of its processes."""
    remove_tree(Path(instance.storage_directory(), run_id))
    for path in event_files(instance, run_id):
        path.unlink(missing_ok=True)


def _plan_leftover_files(instance: dg.DagsterInstance) -> list[PlannedRemoval]:
    """Plan to remove the files of runs that were deleted in the UI, or by a prune that was interrupted."""
    # The files are listed first: a run exists before its file does.
    leftover = runs_with_event_files(instance)
    leftover -= set(instance.get_run_ids())
    return [
        PlannedRemoval(
            Removal("files of a Dagster run", run_id, "the run was deleted", _run_size(instance, run_id)),
            partial(_remove_files_of_run, instance, run_id),
        )
        for run_id in sorted(leftover)
    ]


def _plan_ticks(instance: dg.DagsterInstance, dataset: str, limits: Retention) -> list[PlannedRemoval]:
    """Plan to remove the old ticks of schedules and sensors, except those of other data sets."""
    if instance.schedule_storage is None:
        return []
    others = tuple(f"_{name.replace('-', '_')}" for name in dataset_names() if name != dataset)
    own = f"_{dataset.replace('-', '_')}"
    before = time.time() - limits.dagster_weeks * WEEK_SECONDS
    steps = []
    for state in instance.all_instigator_state():
        name, origin, selector = state.instigator_name, state.instigator_origin_id, state.selector_id
        if name.endswith(others) and not name.endswith(own):
            continue
        number = len(instance.get_ticks(origin, selector, before=before))
        if number:
            reason = f"older than {plural(limits.dagster_weeks, 'week')} (dagster_weeks)"
            purge = partial(instance.purge_ticks, origin, selector, before)
            steps.append(PlannedRemoval(Removal("ticks", f"{name}: {number:,}", reason, 0), purge))
    return steps


def _plan_backtest(
    stack: ExitStack, home: Path, results: Path, dataset: str, limits: Retention
) -> list[PlannedRemoval]:
    """Plan to remove the last backtest if it is old, and old records of its own home, unless one is in progress."""
    if not home.is_dir():
        return []
    turn = FileLock(home / ".turns" / f"{dataset}.lock")
    Path(turn.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(turn.acquire(timeout=0))
    except Timeout:
        return []
    steps: list[PlannedRemoval] = []
    if not os.environ.get("MLFLOW_TRACKING_URI") and _has_mlflow_store(home):
        steps += stack.enter_context(open_tracking(home).retention_plan(dataset, limits)).steps
    if not os.environ.get("DAGSTER_HOME") and (home / "dagster").is_dir():
        instance = stack.enter_context(open_instance_without_output_capture(home / "dagster"))
        steps += _plan_runs(instance, dataset, limits, frozenset())
        steps += _plan_leftover_files(instance)
    folders = [folder for folder in (home / dataset, results) if folder.is_dir()]
    too_old = time.time() - limits.backtest_weeks * WEEK_SECONDS
    if folders and max(newest_change(folder) for folder in folders) < too_old:
        reason = f"older than {plural(limits.backtest_weeks, 'week')} (backtest_weeks)"
        steps += [
            PlannedRemoval(
                Removal("backtest", folder.relative_to(home.parent).as_posix(), reason, tree_size(folder)),
                partial(remove_tree, folder),
            )
            for folder in folders
        ]
    return steps


def _dagster_databases(instance: dg.DagsterInstance) -> list[Path]:
    """The SQLite files that all runs share; none if Dagster keeps its records elsewhere."""
    folder = Path(instance.root_directory)
    return [folder / name for name in _DATABASES if (folder / name).is_file()]


def _write(report: PruneReport, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    part.replace(path)
