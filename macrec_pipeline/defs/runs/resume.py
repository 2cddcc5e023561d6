"""Finds the run that a person names, or the last one of a job, if it failed or was killed, and what is left to do.

An asset is finished if all of this holds: the run, or a run that it resumed, materialized it with today's code; its
blocking checks passed; the stored files are complete and are the ones that were materialized; and they were made from
the present version of every input. Nothing downstream of an asset starts before its checks have passed, so
materializing the asset again repeats no further work.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import dagster as dg

from macrec_pipeline.defs.dagster_private import (
    CODE_VERSION_TAG,
    DATA_VERSION_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_TAG,
    ROOT_RUN_ID_TAG,
    AssetGraph,
)
from macrec_pipeline.defs.manifest_keys import INPUTS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, CONFIG_DIGEST, LAUNCHED_BY
from macrec_pipeline.defs.runs.failures import COMMAND_OF_JOB
from macrec_pipeline.defs.runs.run_sensors import settings_from_run_config
from macrec_pipeline.errors import ConfigError, StorageError
from macrec_pipeline.storage import AssetStore, Manifest

_MIN_ID_LENGTH = 8
_STOPPED = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


@dataclass(frozen=True)
class ResumableRun:
    """A run that did not finish.

    Attributes:
        run_id: its ID.
        job: its job.
        overrides: the settings that it was launched with, each `section.field=value`.
        remaining: the assets that are still to be materialized, sorted; empty if the run died after its last asset.
        tags: tell Dagster which run the next one continues.
    """

    run_id: str
    job: str
    overrides: tuple[str, ...]
    remaining: tuple[dg.AssetKey, ...]
    tags: dict[str, str]


@dataclass
class _Progress:
    """What a chain of resumed runs has achieved.

    Attributes:
        materializations: the newest materialization of each asset, with the ID of its run.
        passed: the checks that passed, with the ID of their run.
    """

    materializations: dict[dg.AssetKey, tuple[str, dg.AssetMaterialization]] = field(default_factory=dict)
    passed: set[tuple[dg.AssetCheckKey, str]] = field(default_factory=set)


@dataclass(frozen=True)
class UnfinishedRun:
    """A command-line run that failed or was stopped, for a person who chooses which one to resume.

    Attributes:
        run_id: its ID.
        job: its job.
        started: when it was started, in this machine's time zone, as `YYYY-MM-DD HH:MM`.
        stopped_at: the step at which it failed, or the last one that it started; None if there was no step.
    """

    run_id: str
    job: str
    started: str
    stopped_at: str | None

    def __str__(self) -> str:
        return f"{self.run_id} ({self.job}, {self.started}, stopped at {self.stopped_at or 'its start'})"


def resumable_runs(instance: dg.DagsterInstance, dataset: str) -> list[UnfinishedRun]:
    """The newest command-line run of each job of a data set, newest first, if it failed or was stopped."""
    newest: dict[str, dg.RunRecord] = {}
    tags = {PARTITION_TAG: dataset, LAUNCHED_BY: COMMAND_LINE}
    for record in instance.get_run_records(filters=dg.RunsFilter(tags=tags)):
        newest.setdefault(record.dagster_run.job_name, record)
    return [_describe(instance, record) for record in newest.values() if record.dagster_run.status in _STOPPED]


def _describe(instance: dg.DagsterInstance, record: dg.RunRecord) -> UnfinishedRun:
    run = record.dagster_run
    stopped_at = None
    for kind in (dg.DagsterEventType.STEP_FAILURE, dg.DagsterEventType.STEP_START):
        steps = [entry.get_dagster_event().step_key for entry in instance.all_logs(run.run_id, of_type=kind)]
        stopped_at = stopped_at or (steps[-1] if steps else None)
    started = record.create_timestamp.astimezone().strftime("%Y-%m-%d %H:%M")
    return UnfinishedRun(run.run_id, run.job_name, started, stopped_at)


def find_resumable_run(
    instance: dg.DagsterInstance,
    dataset: str,
    *,
    job: str,
    settings: Settings,
    defs: dg.Definitions,
    run_id: str | None = None,
) -> ResumableRun:
    """Find a command-line run of a data set, which must have failed or have been killed.

    Args:
        instance: the Dagster instance; dead runs in it must be closed already.
        dataset: the data set's name.
        job: the job whose newest run is taken; without an effect if `run_id` is given.
        run_id: the ID of the run, or at least its first eight characters; None for the newest run of the job.
        settings: the folders of the new run; its overrides are not used.
        defs: the definitions.

    Raises:
        ConfigError: there is no such run, it succeeded or is still in progress, or the settings have changed since.
    """
    start_new = f"Start a new one: `{COMMAND_OF_JOB[job]} {dataset}`."
    run = _newest_run(instance, dataset, job) if run_id is None else _named_run(instance, dataset, run_id)
    if run.status not in _STOPPED:
        which = "last run" if run_id is None else "run"
        state = "has finished" if run.is_success else "is still in progress"
        raise ConfigError(f"The {which} of {dataset}, {run.run_id}, {state}. {start_new}")
    overrides = tuple(settings_from_run_config(run.run_config).overrides)
    config = Settings(home=settings.home, data=settings.data, overrides=list(overrides)).config(dataset)
    if config.digest() != run.tags.get(CONFIG_DIGEST):
        raise ConfigError(f"The settings of {dataset} have changed since its run {run.run_id}. {start_new}")
    chain, graph = _resumed_chain(instance, run), defs.resolve_asset_graph()
    progress, selection = _read_progress(instance, chain), chain[0].asset_selection or _assets_of_job(run, defs)
    unfinished = [key for key in selection if not _is_finished(key, progress, graph, settings.store(dataset))]
    # The assets of one `multi_asset` can only be materialized together, and what is downstream of them follows.
    affected = dg.AssetSelection.assets(*unfinished).required_multi_asset_neighbors().downstream()
    remaining = (affected & dg.AssetSelection.assets(*selection)).resolve(graph) if unfinished else ()
    lineage = {PARENT_RUN_ID_TAG: run.run_id, ROOT_RUN_ID_TAG: run.tags.get(ROOT_RUN_ID_TAG, run.run_id)}
    return ResumableRun(run.run_id, run.job_name, overrides, tuple(sorted(remaining)), lineage)


def _newest_run(instance: dg.DagsterInstance, dataset: str, job: str) -> dg.DagsterRun:
    tags = {PARTITION_TAG: dataset, LAUNCHED_BY: COMMAND_LINE}
    newest = instance.get_runs(filters=dg.RunsFilter(tags=tags, job_name=job), limit=1)
    if newest:
        return newest[0]
    others = "; ".join(map(str, resumable_runs(instance, dataset)))
    hint = f" Runs of other jobs that can be resumed: {others}." if others else ""
    raise ConfigError(
        f"There is no run of {dataset} by `{COMMAND_OF_JOB[job]}` to resume.{hint} Start a new one: "
        f"`{COMMAND_OF_JOB[job]} {dataset}`."
    )


def _named_run(instance: dg.DagsterInstance, dataset: str, run_id: str) -> dg.DagsterRun:
    if len(run_id) < _MIN_ID_LENGTH:
        raise ConfigError(
            f"{run_id!r} is too short for the ID of a run: give at least its first {_MIN_ID_LENGTH} characters."
        )
    runs = instance.get_runs(filters=dg.RunsFilter(tags={PARTITION_TAG: dataset, LAUNCHED_BY: COMMAND_LINE}))
    matches = [run for run in runs if run.run_id.startswith(run_id)]
    if len(matches) != 1:
        found = f"{len(matches)} runs" if matches else "no run"
        could = "; ".join(map(str, resumable_runs(instance, dataset))) or "none"
        raise ConfigError(
            f"There is {found} of {dataset} with an ID that begins with {run_id!r} among those of the command line. "
            f"Runs that can be resumed: {could}."
        )
    return matches[0]


def _assets_of_job(run: dg.DagsterRun, defs: dg.Definitions) -> AbstractSet[dg.AssetKey]:
    return set(defs.resolve_job_def(run.job_name).asset_layer.executable_asset_keys)


def _resumed_chain(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Sequence[dg.DagsterRun]:
    """Return the run and the runs that it resumed, oldest first."""
    chain = [run]
    while (parent_id := chain[0].tags.get(PARENT_RUN_ID_TAG)) and (parent := instance.get_run_by_id(parent_id)):
        chain.insert(0, parent)
    return chain


def _read_progress(instance: dg.DagsterInstance, chain: Sequence[dg.DagsterRun]) -> _Progress:
    progress = _Progress()
    for run in chain:
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            materialization = entry.get_dagster_event().step_materialization_data.materialization
            progress.materializations[materialization.asset_key] = (run.run_id, materialization)
        for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
            evaluation = entry.get_dagster_event().asset_check_evaluation_data
            if evaluation.passed:
                progress.passed.add((evaluation.asset_check_key, run.run_id))
    return progress


def _is_finished(key: dg.AssetKey, progress: _Progress, graph: AssetGraph, store: AssetStore) -> bool:
    if key not in progress.materializations:
        return False
    run_id, materialization = progress.materializations[key]
    name, tags, node = key.to_user_string(), materialization.tags or {}, graph.get(key)
    checks_passed = all((check, run_id) in progress.passed for check in node.check_keys if graph.get(check).blocking)
    if not checks_passed or tags.get(CODE_VERSION_TAG) != node.code_version:
        return False
    try:
        store.folder(name)  # reads every file, so that a damaged asset is materialized again
        manifest = store.manifest(name)
        inputs = {parent.to_user_string() for parent in node.parent_keys}
        return manifest.digest == tags.get(DATA_VERSION_TAG) and _has_present_inputs(manifest, inputs, store)
    except StorageError:
        return False


def _has_present_inputs(manifest: Manifest, inputs: set[str], store: AssetStore) -> bool:
    return manifest.details.get(INPUTS) == {name: store.manifest(name).digest for name in inputs}
