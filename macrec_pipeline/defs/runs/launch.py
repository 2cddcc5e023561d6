"""Runs of the pipeline started from the command line, in this process, on the Dagster instance that the UI shows.

In: a data set, folders, overrides, which assets. Out: the run's id; or one `MacrecError` that says what went wrong.
"""

import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
from dagster._core.instance.ref import InstanceRef
from filelock import FileLock
from sqlalchemy.exc import DBAPIError

from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.defs.jobs import FULL_PIPELINE
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.runs.abandoned import release, sign_of_life, turn_of, who_computes
from macrec_pipeline.defs.runs.failures import failed_checks
from macrec_pipeline.defs.runs.resume import CONFIG_DIGEST, unfinished_run
from macrec_pipeline.errors import ConfigError, DataError, MacrecError, StorageError, TrackingError

logger = logging.getLogger(__name__)

# The UI files a run under a job of a code location by this tag; a run that the UI itself launches gets it from Dagster.
CODE_LOCATION = {".dagster/repository": "__repository__@macrec_pipeline.definitions"}
_CHECKOUT = Path(__file__).resolve().parents[2]
_PLAIN_INSTANCE = b"telemetry: {enabled: false}\nnux: {enabled: false}\n"


@dataclass(frozen=True)
class LaunchRequest:
    """What a person asks for.

    Attributes:
        home, data: absolute folders of the state and of the data set's files.
        url: where the assets are published; None: in the home.
        overrides: `section.field=value`, already known to be valid.
        job: the job that the run is filed under, and whose assets it makes.
        until: run this asset and all that it needs; None: every asset of the job.
        only: run this asset alone on what is there; None: see `until`.
        resume: go on from the data set's last run, which failed or was killed, with its settings and its assets;
            the fields between are then left at their defaults.
    """

    dataset: str
    home: Path
    data: Path
    overrides: tuple[str, ...] = ()
    job: str = FULL_PIPELINE
    until: str | None = None
    only: str | None = None
    resume: bool = False
    url: str | None = None


def dagster_folder(home: Path) -> Path:
    """`DAGSTER_HOME`, else `<home>/dagster`, created and furnished with the checkout's dagster.yaml where it has none.

    Raises:
        ConfigError: DAGSTER_HOME is relative (Dagster refuses that), or the folder cannot be written.
    """
    configured = os.environ.get("DAGSTER_HOME")
    folder = Path(configured) if configured else home / "dagster"
    if not folder.is_absolute():
        raise ConfigError(f"DAGSTER_HOME is {configured!r}; Dagster needs an absolute path.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        settings, ours = folder / "dagster.yaml", _CHECKOUT / "dagster_home" / "dagster.yaml"
        if not settings.exists():
            part = folder / f".dagster.yaml-{uuid.uuid4().hex}"
            part.write_bytes(ours.read_bytes() if ours.is_file() else _PLAIN_INSTANCE)
            # as a whole: a process that read half of it would have no pools, and take the others' out of the records
            part.replace(settings)
    except OSError as error:
        raise ConfigError(
            f"The Dagster folder {folder} cannot be written: {error.strerror}. Set DAGSTER_HOME."
        ) from None
    return folder


def asset_names(defs: dg.Definitions, job: str = FULL_PIPELINE) -> list[str]:
    """The names of a job's assets, upstream before downstream."""
    made = defs.resolve_job_def(job).asset_layer.executable_asset_keys
    levels = defs.resolve_asset_graph().toposorted_asset_keys_by_level
    return [key.to_user_string() for level in levels for key in sorted(level) if key in made]


def launch(request: LaunchRequest, *, defs: dg.Definitions) -> str:
    """Materialize the assets asked for and return the Dagster run's id; of the run before, if it left nothing to make.

    Args:
        request: what to run.
        defs: the definitions, with the job asked for.

    Raises:
        ConfigError: no such asset, no run to go on from, or a folder that cannot be written.
        DataError: a blocking check failed; says which and why.
        StorageError: Dagster's records cannot be written, as on a full disk.
        MacrecError: whatever a stage raised on purpose.
        KeyboardInterrupt: the run was interrupted; it is closed as canceled.
    """
    with (
        _database_errors_are_told(request),
        open_instance(request.home) as instance,
        turn_of(instance, request.home, request.dataset),
    ):
        if not request.resume:
            return _execute(request, instance, defs, selection=_selection(defs, request), tags={})
        before = unfinished_run(instance, request.dataset, settings=_settings(request), defs=defs)
        logger.info("Going on from the run %s. Assets left to make: %d.", before.run_id, len(before.left))
        if not before.left:
            return before.run_id
        request = replace(request, overrides=before.overrides, job=before.job)
        with _tracking_errors_are_told():  # the MLflow store may have been away when that run ended
            release(instance, before.run_id, _settings(request))
        return _execute(request, instance, defs, selection=before.left, tags=before.tags)


def _execute(
    request: LaunchRequest,
    instance: dg.DagsterInstance,
    defs: dg.Definitions,
    *,
    selection: Sequence[dg.AssetKey] | None,
    tags: Mapping[str, str],
) -> str:
    settings = _settings(request)
    digest = settings.config(request.dataset).digest()
    run_id = str(uuid.uuid4())
    with sign_of_life(request.home, run_id):
        for other in who_computes(instance):
            logger.info("The run %s computes on this machine. This one waits for it before it does so too.", other)
        try:
            defs.resolve_job_def(request.job).execute_in_process(
                instance=instance,
                run_id=run_id,
                partition_key=request.dataset,
                asset_selection=selection,
                tags={**CODE_LOCATION, LAUNCHED_BY: COMMAND_LINE, CONFIG_DIGEST: digest, **tags},
                run_config=_run_config(request),
            )
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        except dg.DagsterError as error:
            raise _plain_error(error, instance, run_id) from error
        finally:
            with _tracking_errors_are_told():
                release(instance, run_id, settings)
        for warning in failed_checks(instance, run_id, blocking=False):
            logger.warning("Warning: %s", warning)
    return run_id


def _settings(request: LaunchRequest) -> Settings:
    return Settings(home=request.url or str(request.home), data=str(request.data), overrides=list(request.overrides))


def _run_config(request: LaunchRequest) -> dict[str, object]:
    home = request.url or str(request.home)
    folders = {"home": home, "data": str(request.data), "overrides": list(request.overrides)}
    # Only the terminal is quiet: the event log keeps every line.
    quiet = {"console": {"config": {"log_level": "CRITICAL"}}}
    return {"resources": {"settings": {"config": folders}}, "loggers": quiet}


def _selection(defs: dg.Definitions, request: LaunchRequest) -> Sequence[dg.AssetKey] | None:
    name = request.only or request.until
    if name is None:
        return None
    names = asset_names(defs, request.job)
    if name not in names:
        raise ConfigError(f"There is no asset {name!r}. Use one of: {', '.join(names)}.")
    chosen: dg.AssetSelection = dg.AssetSelection.assets(name)
    if request.until:
        chosen = chosen.upstream()
    # Assets that one function makes together can only run together.
    return sorted(chosen.required_multi_asset_neighbors().resolve(defs.resolve_asset_graph()))


@contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance of a home, for as long as the block lasts. Raises `ConfigError`."""
    folder = dagster_folder(home)
    # Standard output is not captured into files: this process has a terminal, and a progress bar needs it.
    captured = {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
    with FileLock(folder / "opening.lock"):  # two processes that make the tables of a new folder break each other
        instance = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(folder), overrides={"compute_logs": captured}))
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage  # opened when first asked for
    with instance:
        yield instance


@contextmanager
def _database_errors_are_told(request: LaunchRequest) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise StorageError(
            f"Dagster's records in {dagster_folder(request.home)} cannot be read or written: {error.orig}. Is the disk "
            f"full? Put that right, then go on: run `macrec run {request.dataset} --resume`."
        ) from error


@contextmanager
def _tracking_errors_are_told() -> Iterator[None]:
    """For what may wait: how the run itself ended is what a person must see."""
    try:
        yield
    except TrackingError as error:
        logger.warning("Warning: %s", error)


def _plain_error(error: BaseException, instance: dg.DagsterInstance, run_id: str) -> BaseException:
    """The error of this package behind one of Dagster's, or a failed check told in a line; else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MacrecError):
            return cause
        cause = cause.__cause__
    failed = failed_checks(instance, run_id, blocking=True)
    return DataError(f"Stopped by a check. {' '.join(failed)}") if failed else error
