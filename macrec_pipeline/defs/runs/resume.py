"""What is left of a run that failed or was killed, so that the next one does not make again what is there.

In: the Dagster instance, and the store of the data set. Out: the assets that are still to be made.

An asset is finished when that run, or one that it went on from, materialized it by today's code and passed its blocking
checks, and what lies on disk is what was materialized, whole, and made from what its inputs are now. Nothing that
follows an asset had begun before its checks had passed, so to make that asset again costs nothing else.
"""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, PARTITION_NAME_TAG, ROOT_RUN_ID_TAG

from macrec_pipeline.defs.asset_context import COMMAND_LINE, INPUTS, LAUNCHED_BY
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.run_sensors import settings_of
from macrec_pipeline.errors import ConfigError, StorageError
from macrec_pipeline.storage import AssetStore, Manifest

CONFIG_DIGEST = "macrec/config_digest"
"""Tag of a run: the digest of its resolved settings."""

_CODE_VERSION, _DATA_VERSION = "dagster/code_version", "dagster/data_version"


@dataclass(frozen=True)
class Unfinished:
    """A run that broke off.

    Attributes:
        run_id: the run's.
        job: whose run it was.
        overrides: the settings that it was launched with, each `section.field=value`.
        left: what is still to be made, sorted; nothing if the run died after its last asset.
        tags: say to Dagster which run the next one goes on from.
    """

    run_id: str
    job: str
    overrides: tuple[str, ...]
    left: tuple[dg.AssetKey, ...]
    tags: dict[str, str]


@dataclass
class _Made:
    """What a run and those before it have made: the newest materialization, and the checks that passed on it."""

    assets: dict[dg.AssetKey, tuple[str, dg.AssetMaterialization]] = field(default_factory=dict)
    passed: set[tuple[dg.AssetCheckKey, str]] = field(default_factory=set)


def unfinished_run(
    instance: dg.DagsterInstance, dataset: str, *, settings: Settings, defs: dg.Definitions
) -> Unfinished:
    """The newest command-line run of a data set, if it failed or was killed.

    Args:
        instance: where runs are kept; abandoned ones are closed already.
        dataset: whose run.
        settings: the folders of this run; its overrides do not count.
        defs: the definitions.

    Raises:
        ConfigError: there is no such run, it succeeded, it is still at work, or the settings are no longer its own.
    """
    tags = {PARTITION_NAME_TAG: dataset, LAUNCHED_BY: COMMAND_LINE}
    newest = instance.get_runs(filters=dg.RunsFilter(tags=tags), limit=1)
    anew = f"`macrec run {dataset}`"
    if not newest:
        raise ConfigError(f"There is no run of {dataset} to go on from. Start one: {anew}.")
    (run,) = newest
    if run.status not in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
        state = "has finished" if run.is_success else "is still at work"
        raise ConfigError(f"The last run of {dataset}, {run.run_id}, {state}. Start another: {anew}.")
    overrides = tuple(settings_of(run.run_config).overrides)
    config = Settings(home=settings.home, data=settings.data, overrides=list(overrides)).config(dataset)
    if config.digest() != run.tags.get(CONFIG_DIGEST):
        raise ConfigError(f"The settings of {dataset} are no longer those of its run {run.run_id}. Start anew: {anew}.")
    chain, graph = _with_those_before(instance, run), defs.resolve_asset_graph()
    made, selection = _made(instance, chain), chain[0].asset_selection or _assets_of(run, defs)
    broken = [key for key in selection if not _is_finished(key, made, graph, settings.store(dataset))]
    # Assets that one function makes together can only be made together, and what follows them follows.
    again = dg.AssetSelection.assets(*broken).required_multi_asset_neighbors().downstream()
    left = (again & dg.AssetSelection.assets(*selection)).resolve(graph) if broken else ()
    lineage = {PARENT_RUN_ID_TAG: run.run_id, ROOT_RUN_ID_TAG: run.tags.get(ROOT_RUN_ID_TAG, run.run_id)}
    return Unfinished(run.run_id, run.job_name, overrides, tuple(sorted(left)), lineage)


def _assets_of(run: dg.DagsterRun, defs: dg.Definitions) -> AbstractSet[dg.AssetKey]:
    return set(defs.resolve_job_def(run.job_name).asset_layer.executable_asset_keys)


def _made(instance: dg.DagsterInstance, chain: Sequence[dg.DagsterRun]) -> _Made:
    made = _Made()
    for each in chain:
        for entry in instance.all_logs(each.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION):
            materialization = entry.get_dagster_event().step_materialization_data.materialization
            made.assets[materialization.asset_key] = (each.run_id, materialization)
        for entry in instance.all_logs(each.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
            verdict = entry.get_dagster_event().asset_check_evaluation_data
            if verdict.passed:
                made.passed.add((verdict.asset_check_key, each.run_id))
    return made


def _with_those_before(instance: dg.DagsterInstance, run: dg.DagsterRun) -> Sequence[dg.DagsterRun]:
    """A run and those that it went on from, oldest first."""
    chain = [run]
    while (parent := chain[0].tags.get(PARENT_RUN_ID_TAG)) and (before := instance.get_run_by_id(parent)):
        chain.insert(0, before)
    return chain


def _is_finished(key: dg.AssetKey, made: _Made, graph: AssetGraph, store: AssetStore) -> bool:
    if key not in made.assets:
        return False
    run_id, materialization = made.assets[key]
    name, tags, node = key.to_user_string(), materialization.tags or {}, graph.get(key)
    checked = all((check, run_id) in made.passed for check in node.check_keys if graph.get(check).blocking)
    if not checked or tags.get(_CODE_VERSION) != node.code_version:
        return False
    try:
        store.folder(name)  # every file is read: what was damaged is made again
        manifest = store.manifest(name)
        inputs = {parent.to_user_string() for parent in node.parent_keys}
        return manifest.digest == tags.get(_DATA_VERSION) and _made_from(manifest, inputs, store)
    except StorageError:
        return False


def _made_from(manifest: Manifest, inputs: set[str], store: AssetStore) -> bool:
    return manifest.details.get(INPUTS) == {name: store.manifest(name).digest for name in inputs}
