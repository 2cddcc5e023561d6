"""Remove what a data set no longer needs from MLflow: old model versions, runs, artifacts and unsent data.

The input is the data set's `retention` settings. `plan_mlflow` lists what would be removed and why, without changing
anything; each step of the plan removes one thing. Versions with an alias, the newest versions, the champions that a
rollback may need, and the runs, artifacts and bundles of all of these are never part of a plan.

MLflow's client only marks runs and models as deleted. Their files and rows stay until `mlflow gc`, which also empties
the trash of all other experiments. So this module removes the files and rows itself, but only from the database and the
artifact folder of the home. In a server or another database, runs are only marked; `gc_hint` says what its owner has to
run.

Each step can be interrupted: files are removed before the records that name them, so the next plan finds the rest.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macrec_pipeline.datasets import Retention
from macrec_pipeline.tracking.promotion import champion_history
from macrec_pipeline.tracking.registry import model_name
from macrec_pipeline.tracking.store import TrackingStore, artifact_folder, is_server, mlflow_folder, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

WEEK_SECONDS = 7 * 24 * 3600
_PAGE = 1000
_UNUSED = "no kept version uses it"
# A database is rewritten without its free pages once they are this large and this share of it.
_MIN_FREE_BYTES, _MIN_FREE_SHARE = 1 << 20, 0.2
_BUSY_SECONDS = 10.0


@dataclass(frozen=True)
class Removal:
    """Something that retention removes.

    Attributes:
        kind: what it is, for a person.
        name: its number, id or path.
        reason: which limit it exceeds.
        num_bytes: size of its files; 0 for rows of a database, whose space is freed or used again later.
    """

    kind: str
    name: str
    reason: str
    num_bytes: int


@dataclass(frozen=True)
class PlannedRemoval:
    """A removal, and the function that carries it out."""

    removal: Removal
    carry_out: Callable[[], None]


@dataclass(frozen=True)
class MlflowPlan:
    """What is removed from MLflow.

    Attributes:
        steps: in the order in which they are carried out.
        kept_runs: ids of the Dagster runs that made versions which are kept.
        gc_hint: what the owner of the MLflow server has to run to free its space; None for the store of the home.
    """

    steps: tuple[PlannedRemoval, ...]
    kept_runs: frozenset[str]
    gc_hint: str | None


def plan_mlflow(
    store: TrackingStore,
    dataset: str,
    limits: Retention,
    *,
    pinned: Collection[int] = (),
    now: float | None = None,
) -> MlflowPlan:
    """List what the limits no longer allow to be kept.

    To carry the plan out, hold the lock `aliases` from before the planning, so that no version is promoted meanwhile.

    Args:
        store: the MLflow store of the home.
        dataset: name of the data set.
        limits: the data set's settings.
        pinned: versions that settings name, which are kept.
        now: seconds since the epoch; None: the present.

    Raises:
        TrackingError: the store rejects a request.
    """
    now = time.time() if now is None else now
    eraser = _Eraser(store, dataset)
    with one_line_errors(f"MLflow records of {dataset}"):
        every_version = _versions(store)
        versions = [version for version in every_version if version.name == model_name(dataset)]
        kept = _kept_versions(store, dataset, versions, limits, pinned)
        kept_runs = frozenset(version.tags["dagster.run_id"] for version in kept if "dagster.run_id" in version.tags)
        steps = _plan_versions(versions, kept, limits, eraser)
        experiment = store.client.get_experiment_by_name(f"macrec/{dataset}")
        if experiment is not None:
            runs = _runs(store, experiment.experiment_id)
            models = eraser.logged_models(experiment.experiment_id)
            # A person may have registered a bundle under another name too.
            in_use = [*kept, *(version for version in every_version if version.name != model_name(dataset))]
            kept_ids = {version.run_id for version in in_use}
            removed_runs, run_steps = _plan_runs(runs, kept_runs, kept_ids, limits, now, eraser)
            running = {run.info.run_id for run in runs if run.info.status == "RUNNING"}
            steps += _plan_models(models, in_use, running - removed_runs, eraser)
            steps += run_steps
        steps += _plan_unsent(store.home, limits, now)
    hint = None
    if not eraser.is_local:
        hint = (
            f"{store.printable_uri} keeps the files and rows of what is removed. To free their space, its owner runs "
            "`mlflow gc --backend-store-uri DATABASE` on the server, with the address of the server in "
            "MLFLOW_TRACKING_URI."
        )
    return MlflowPlan(tuple(steps), kept_runs, hint)


def compact_mlflow(store: TrackingStore) -> int:
    """Give the free pages of the home's database back to the file system; return the number of bytes."""
    database = _local_database(store)
    return compact_sqlite(database) if database else 0


def compact_sqlite(database: Path) -> int:
    """Rewrite a SQLite file if much of it is free pages, unless it is in use.

    Returns:
        The number of bytes by which the file has become smaller; 0 if it is in use or has few free pages.
    """
    if not database.is_file():
        return 0
    before = database.stat().st_size
    with suppress(sqlite3.OperationalError), closing(sqlite3.connect(database, timeout=_BUSY_SECONDS)) as connection:
        connection.isolation_level = None
        (page_size,) = connection.execute("PRAGMA page_size").fetchone()
        (free_pages,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free_pages * page_size >= max(_MIN_FREE_BYTES, _MIN_FREE_SHARE * before):
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return max(before - database.stat().st_size, 0)


def tree_size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes. Links are not followed."""
    if path.is_symlink() or not path.exists():
        return 0
    if path.is_file():
        return path.stat().st_size
    total = 0
    for file in path.rglob("*"):
        with suppress(FileNotFoundError):
            if file.is_file() and not file.is_symlink():
                total += file.stat().st_size
    return total


def newest_change(path: Path) -> float:
    """Return when a file, or anything in a folder, last changed, in seconds since the epoch."""
    return max(one.lstat().st_mtime for one in (path, *path.rglob("*")))


def remove_tree(path: Path) -> None:
    """Remove a file or folder if it exists. Raises `OSError` if it cannot be removed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 week`, `8 weeks`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


class _Eraser:
    """Removes records of one data set from MLflow; in the database of the home for good, elsewhere by marking them."""

    def __init__(self, store: TrackingStore, dataset: str) -> None:
        self._client, self._dataset = store.client, dataset
        self._artifacts = artifact_folder(store.home) / dataset
        self._database: Any = None
        self.is_local = _local_database(store) is not None
        if self.is_local:
            from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

            self._database = SqlAlchemyStore(store.uri, artifact_folder(store.home).as_uri())  # type: ignore[no-untyped-call]

    def run_folder(self, run_id: str) -> Path:
        return self._artifacts / run_id

    def model_folder(self, model_id: str) -> Path:
        return self._artifacts / "models" / model_id

    def size(self, folder: Path) -> int:
        return tree_size(folder) if self.is_local else 0

    def logged_models(self, experiment_id: str) -> list[LoggedModel]:
        """List the models of an experiment, including those that are marked as deleted but still take up space."""
        found: list[LoggedModel] = []
        token = None
        while True:
            page = self._client.search_logged_models([experiment_id], max_results=50, page_token=token)
            found += page
            token = page.token
            if not token:
                break
        if self.is_local:
            marked = [
                self._database.get_logged_model(model_id, allow_deleted=True)
                for model_id in self._database._get_deleted_logged_models()
            ]
            found += [model for model in marked if model.experiment_id == experiment_id]
        return found

    def remove_version(self, version: ModelVersion) -> None:
        # MLflow keeps the tags of a version that it deletes, and then refuses to delete them.
        for tag in version.tags:
            self._client.delete_model_version_tag(version.name, version.version, tag)
        self._client.delete_model_version(version.name, version.version)

    def remove_model(self, model: LoggedModel) -> None:
        if self.is_local:
            remove_tree(self.model_folder(model.model_id))
            self._database._hard_delete_logged_model(model.model_id)
        else:
            self._client.delete_logged_model(model.model_id)

    def remove_artifacts(self, run: Run) -> None:
        remove_tree(self.run_folder(run.info.run_id))

    def remove_run(self, run: Run) -> None:
        if run.info.lifecycle_stage != "deleted":
            self._client.delete_run(run.info.run_id)
        if self.is_local:
            remove_tree(self.run_folder(run.info.run_id))
            self._database._hard_delete_run(run.info.run_id)


def _plan_versions(
    versions: Sequence[ModelVersion], kept: Collection[ModelVersion], limits: Retention, eraser: _Eraser
) -> list[PlannedRemoval]:
    reason = f"not in use, and older than the newest {plural(limits.versions, 'version')} (versions)"
    return [
        PlannedRemoval(
            Removal("model version", f"{version.name}/{version.version}", reason, 0),
            partial(eraser.remove_version, version),
        )
        for version in versions
        if version not in kept
    ]


def _plan_models(
    models: Sequence[LoggedModel], in_use: Sequence[ModelVersion], running: Collection[str], eraser: _Eraser
) -> list[PlannedRemoval]:
    """Plan to remove the bundles of no remaining version, unless a run is just registering one."""
    # MLflow's database does not store which bundle a version has: the address of its files and its run tell.
    addresses = " ".join(version.source or "" for version in in_use)
    busy_runs = {version.run_id for version in in_use} | set(running)
    return [
        PlannedRemoval(
            Removal("bundle", model.model_id, _UNUSED, eraser.size(eraser.model_folder(model.model_id))),
            partial(eraser.remove_model, model),
        )
        for model in models
        if model.model_id not in addresses and model.source_run_id not in busy_runs
    ]


def _plan_runs(
    runs: Sequence[Run],
    kept_dagster_runs: Collection[str],
    kept_ids: Collection[str | None],
    limits: Retention,
    now: float,
    eraser: _Eraser,
) -> tuple[set[str], list[PlannedRemoval]]:
    """Plan to remove old pipeline runs with their child runs, and the artifacts of those that are kept."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        if "macrec.kind" not in run.data.tags:  # a person made it
            continue
        parent = run.data.tags.get("mlflow.parentRunId", run.info.run_id)
        groups.setdefault(run.data.tags.get("dagster.run_id", parent), []).append(run)
    newest_first = sorted(groups, key=lambda key: (-max(run.info.start_time for run in groups[key]), key))
    removed: set[str] = set()
    steps: list[PlannedRemoval] = []
    for rank, key in enumerate(newest_first):
        group = groups[key]
        is_kept = key in kept_dagster_runs or any(run.info.run_id in kept_ids for run in group)
        if is_kept or any(run.info.status == "RUNNING" for run in group):
            continue
        newest = max(run.info.end_time or run.info.start_time for run in group) / 1000
        age = (now - newest) / WEEK_SECONDS
        if rank >= limits.mlflow_runs:
            reason = f"older than the newest {plural(limits.mlflow_runs, 'pipeline run')} (mlflow_runs)"
        elif age > limits.mlflow_weeks:
            reason = f"older than {plural(limits.mlflow_weeks, 'week')} (mlflow_weeks)"
        else:
            if age > limits.artifact_weeks and eraser.is_local:
                steps += _plan_artifacts(group, limits, eraser)
            continue
        # Children first, so that an interruption leaves no child without its parent.
        for run in sorted(group, key=lambda run: "mlflow.parentRunId" not in run.data.tags):
            removed.add(run.info.run_id)
            size = eraser.size(eraser.run_folder(run.info.run_id))
            steps.append(
                PlannedRemoval(
                    Removal("MLflow run", f"{run.info.run_id} ({run.info.run_name})", reason, size),
                    partial(eraser.remove_run, run),
                )
            )
    return removed, steps


def _plan_artifacts(group: Sequence[Run], limits: Retention, eraser: _Eraser) -> list[PlannedRemoval]:
    reason = f"older than {plural(limits.artifact_weeks, 'week')} (artifact_weeks)"
    sizes = {run.info.run_id: eraser.size(eraser.run_folder(run.info.run_id)) for run in group}
    return [
        PlannedRemoval(
            Removal("artifacts", f"{run.info.run_id} ({run.info.run_name})", reason, sizes[run.info.run_id]),
            partial(eraser.remove_artifacts, run),
        )
        for run in group
        if sizes[run.info.run_id]
    ]


def _plan_unsent(home: Path, limits: Retention, now: float) -> list[PlannedRemoval]:
    """Plan to remove what waits in vain to be sent. It is shared by all data sets of a home."""
    folder = mlflow_folder(home) / "unsent"
    reason = f"older than {plural(limits.unsent_weeks, 'week')} (unsent_weeks)"
    return [
        PlannedRemoval(Removal("unsent data", path.name, reason, tree_size(path)), partial(remove_tree, path))
        for path in sorted(folder.iterdir() if folder.is_dir() else ())
        if now - newest_change(path) > limits.unsent_weeks * WEEK_SECONDS
    ]


def _kept_versions(
    store: TrackingStore,
    dataset: str,
    versions: Sequence[ModelVersion],
    limits: Retention,
    pinned: Collection[int],
) -> list[ModelVersion]:
    if not versions:
        return []
    model = store.client.get_registered_model(model_name(dataset))
    numbers = {int(version.version) for version in versions}
    aliased = {int(number) for number in model.aliases.values()}
    # The champion itself has an alias. A rollback passes over versions that no longer exist, and so does this.
    former = [number for number in reversed(champion_history(model)) if number in numbers - aliased]
    former = list(dict.fromkeys(former))[: limits.previous_champions]
    kept = {*aliased, *pinned, *former, *sorted(numbers)[-limits.versions :]}
    return [version for version in versions if int(version.version) in kept]


def _versions(store: TrackingStore) -> list[ModelVersion]:
    """List the versions of all registered models, oldest first."""
    found: list[ModelVersion] = []
    token = None
    while True:
        page = store.client.search_model_versions(max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return sorted(found, key=lambda version: (version.name, int(version.version)))


def _runs(store: TrackingStore, experiment_id: str) -> list[Run]:
    from mlflow.entities import ViewType

    found: list[Run] = []
    token = None
    while True:
        page = store.client.search_runs(
            [experiment_id], run_view_type=ViewType.ALL, max_results=_PAGE, page_token=token
        )
        found += page
        token = page.token
        if not token:
            return found


def _local_database(store: TrackingStore) -> Path | None:
    """Return the SQLite file of the home; None if the records are on a server or in another database."""
    database = mlflow_folder(store.home) / "mlflow.db"
    if is_server(store.uri) or not store.uri.startswith("sqlite:///"):
        return None
    used = Path(store.uri.removeprefix("sqlite:///"))
    return database if used.exists() and database.exists() and used.samefile(database) else None
