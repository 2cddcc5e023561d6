"""Runs that are started from the command line, in this process, on the same Dagster instance that the UI shows.

`launch` takes a `LaunchRequest` (data set, folders, overrides, which assets) and returns the run's ID. If the run fails
for a reason that a person can act on, it raises a single `MacrecError` that says what went wrong.
"""

import difflib
import logging
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import dagster as dg
from filelock import FileLock
from sqlalchemy.exc import DBAPIError

from macrec_pipeline.defs.dagster_private import REPOSITORY_TAG, open_instance_without_output_capture
from macrec_pipeline.defs.dagster_sqlite import use_quoted_storage
from macrec_pipeline.defs.jobs import FULL_PIPELINE
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.defs.run_tags import COMMAND_LINE, CONFIG_DIGEST, LAUNCHED_BY, WAITED_FOR
from macrec_pipeline.defs.runs.failures import failed_checks
from macrec_pipeline.defs.runs.liveness import hold_run_lock, release_run, runs_holding_gpu_pool, wait_for_turn
from macrec_pipeline.defs.runs.relocation import update_home_of_runs
from macrec_pipeline.defs.runs.resume import find_resumable_run, resumable_runs
from macrec_pipeline.errors import ConfigError, DataError, MacrecError, StorageError, TrackingError
from macrec_pipeline.home import restrict_access, use_private_umask

logger = logging.getLogger(__name__)

# With this tag the UI lists a run under its job in the code location. Dagster adds it to the runs that the UI launches.
CODE_LOCATION = {REPOSITORY_TAG: "__repository__@macrec_pipeline.definitions"}
_CHECKOUT = Path(__file__).resolve().parents[3]
_MINIMAL_INSTANCE = b"telemetry: {enabled: false}\nnux: {enabled: false}\n"


@dataclass(frozen=True)
class LaunchRequest:
    """Which assets of a data set to materialize, and where.

    Attributes:
        dataset: the data set's name.
        home: the absolute folder of the state.
        data: the absolute folder of the data set's files.
        overrides: settings as `section.field=value`; they must be valid.
        job: the job that the run belongs to, and whose assets it materializes.
        until: materialize this asset and everything upstream of it; None: all assets of the job.
        only: materialize this asset alone from its stored inputs; None: see `until`.
        resume: continue the last run of the job, which failed or was killed, with its settings and assets. The fields
            `overrides`, `until` and `only` must then have their defaults.
        resumed_run: with `resume`, the ID of the run to continue, or its beginning; None: the last run of the job.
        url: where the assets are published; None: in the home.
    """

    dataset: str
    home: Path
    data: Path
    overrides: tuple[str, ...] = ()
    job: str = FULL_PIPELINE
    until: str | None = None
    only: str | None = None
    resume: bool = False
    resumed_run: str | None = None
    url: str | None = None


def dagster_folder(home: Path) -> Path:
    """Return Dagster's folder: `DAGSTER_HOME`, or else `<home>/dagster`. It is created if it does not exist.

    A folder without a dagster.yaml gets a copy of the checkout's.

    Raises:
        ConfigError: DAGSTER_HOME is relative, which Dagster refuses, or the folder cannot be written.
    """
    configured = os.environ.get("DAGSTER_HOME")
    folder = Path(configured) if configured else home / "dagster"
    if not folder.is_absolute():
        raise ConfigError(f"DAGSTER_HOME is {configured!r}, but Dagster needs an absolute path.")
    try:
        restrict_access(home)
        folder.mkdir(parents=True, exist_ok=True)
        settings, template = folder / "dagster.yaml", _CHECKOUT / "dagster_home" / "dagster.yaml"
        if not settings.exists():
            part = folder / f".dagster.yaml-{uuid.uuid4().hex}"
            part.write_bytes(template.read_bytes() if template.is_file() else _MINIMAL_INSTANCE)
            # The file must appear complete: a process that read half of it would have no pools, and would delete the
            # recorded pool limits of the others.
            part.replace(settings)
    except OSError as error:
        raise ConfigError(
            f"The Dagster folder {folder} cannot be written: {error.strerror}. Set DAGSTER_HOME to another folder."
        ) from None
    return folder


def asset_names(defs: dg.Definitions, job: str = FULL_PIPELINE) -> list[str]:
    """Return the names of a job's assets, upstream before downstream."""
    in_job = defs.resolve_job_def(job).asset_layer.executable_asset_keys
    levels = defs.resolve_asset_graph().toposorted_asset_keys_by_level
    return [key.to_user_string() for level in levels for key in sorted(level) if key in in_job]


def launch(request: LaunchRequest, *, defs: dg.Definitions) -> str:
    """Materialize the requested assets and return the Dagster run's ID.

    With `resume`, if the last run left nothing to materialize, its own ID is returned.

    Args:
        request: what to run.
        defs: the definitions, with the requested job.

    Raises:
        ConfigError: an unknown asset, no run to resume, or a folder that cannot be written.
        DataError: a blocking check failed; the message names the check and what it found.
        StorageError: Dagster's database cannot be written, for example because the disk is full.
        MacrecError: an error that a stage raised on purpose.
        KeyboardInterrupt: the run was interrupted; it is closed as canceled.
    """
    with (
        _database_errors_reported(request),
        open_instance(request.home) as instance,
        wait_for_turn(instance, request.home, request.dataset) as waited_for,
    ):
        tags = {WAITED_FOR: " ".join(waited_for)} if waited_for else {}
        if not request.resume:
            return _execute(request, instance, defs, selection=_selected_assets(defs, request), tags=tags)
        for run in resumable_runs(instance, request.dataset):
            logger.info("This run can be resumed: %s.", run)
        previous = find_resumable_run(
            instance,
            request.dataset,
            job=request.job,
            settings=_settings(request),
            defs=defs,
            run_id=request.resumed_run,
        )
        logger.info("Resuming run %s. Assets left to materialize: %d.", previous.run_id, len(previous.remaining))
        if not previous.remaining:
            return previous.run_id
        request = replace(request, overrides=previous.overrides, job=previous.job)
        with _tracking_errors_logged():  # the MLflow store may have been away when the previous run ended
            release_run(instance, previous.run_id, _settings(request))
        return _execute(request, instance, defs, selection=previous.remaining, tags={**previous.tags, **tags})


@contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of a home for the duration of the block.

    If the home was moved or copied, the records of its runs are made to refer to its present folder first.

    Raises:
        ConfigError: Dagster's folder cannot be written.
    """
    use_private_umask()
    folder = dagster_folder(home)
    with FileLock(folder / "opening.lock"):  # two processes must not create the tables of a new folder at once
        # Standard output is not captured into files: this process has a terminal, and a progress bar needs it.
        instance = open_instance_without_output_capture(folder, storage=use_quoted_storage(folder))
        _ = instance.run_storage, instance.event_log_storage, instance.schedule_storage  # each is created on first use
        if folder == home / "dagster":
            update_home_of_runs(folder, home)
    with instance:
        yield instance


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
    with hold_run_lock(request.home, run_id):
        for other in runs_holding_gpu_pool(instance):
            logger.info("Run %s uses the GPU pool of this machine. Assets that need it wait until it is free.", other)
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
            raise _underlying_error(error, instance, run_id) from error
        finally:
            with _tracking_errors_logged():
                release_run(instance, run_id, settings)
        for warning in failed_checks(instance, run_id, blocking=False):
            logger.warning("Warning: %s", warning)
    return run_id


def _settings(request: LaunchRequest) -> Settings:
    return Settings(home=request.url or str(request.home), data=str(request.data), overrides=list(request.overrides))


def _run_config(request: LaunchRequest) -> dict[str, object]:
    home = request.url or str(request.home)
    settings = {"home": home, "data": str(request.data), "overrides": list(request.overrides)}
    # This silences Dagster's log in the terminal only. Its event log keeps every line.
    loggers = {"console": {"config": {"log_level": "CRITICAL"}}}
    return {"resources": {"settings": {"config": settings}}, "loggers": loggers}


def _selected_assets(defs: dg.Definitions, request: LaunchRequest) -> Sequence[dg.AssetKey] | None:
    name = request.only or request.until
    if name is None:
        return None
    names = asset_names(defs, request.job)
    if name not in names:
        similar = difflib.get_close_matches(name, names, n=1)
        suggestion = f" Did you mean `{similar[0]}`?" if similar else ""
        raise ConfigError(f"Unknown asset `{name}`.{suggestion} The assets of {request.job} are: {', '.join(names)}.")
    selection: dg.AssetSelection = dg.AssetSelection.assets(name)
    if request.until:
        selection = selection.upstream()
    # The assets of one `multi_asset` can only be materialized together.
    return sorted(selection.required_multi_asset_neighbors().resolve(defs.resolve_asset_graph()))


@contextmanager
def _database_errors_reported(request: LaunchRequest) -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        raise StorageError(
            f"Dagster's database in {dagster_folder(request.home)} cannot be read or written: {error.orig}. Check that "
            f"the disk has free space, then run `macrec run {request.dataset} --resume`."
        ) from error


@contextmanager
def _tracking_errors_logged() -> Iterator[None]:
    """Log tracking errors instead of raising them, so that they do not hide how the run itself ended."""
    try:
        yield
    except TrackingError as error:
        logger.warning("Warning: %s", error)


def _underlying_error(error: BaseException, instance: dg.DagsterInstance, run_id: str) -> BaseException:
    """Return the error of this package behind one of Dagster's, or else the failed checks, or else the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MacrecError):
            return cause
        cause = cause.__cause__
    checks = failed_checks(instance, run_id, blocking=True)
    return DataError(" ".join(checks)) if checks else error
