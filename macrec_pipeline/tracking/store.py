"""The MLflow store of a home: where it is, how it is made, and how it is kept quiet.

In: the home folder (`MACREC_HOME`) and MLflow's own environment variables. Out: a `TrackingStore`, which holds the
one MLflow client that the rest of this folder uses. Importing this module does not import MLflow, which takes seconds;
nothing here touches MLflow's process-wide settings (active run, tracking URI), so that two homes, or two threads, do
not disturb each other.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from macrec_pipeline.errors import StoreAwayError, TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_UI_PORT = 5000
"""Where the MLflow UI of a home is expected on loopback, for links; `MACREC_MLFLOW_UI_URL` overrides it."""

# A dead server would otherwise block each call for minutes; nobody is told about runs; nothing is printed.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_REFUSALS = (400, 404, 409)  # of HTTP; anything else may pass: a server that restarts, a token that has run out
_DATASET_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_USER_AND_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
_SQLITE = "sqlite:///"
_LOCK_SECONDS = 300.0


@dataclass(frozen=True)
class TrackingStore:
    """An open MLflow store.

    Attributes:
        home: the absolute home folder.
        uri: the tracking URI, also of the model registry.
        client: a client of both.
    """

    home: Path
    uri: str
    client: MlflowClient

    @property
    def shown_uri(self) -> str:
        """The tracking URI as it may be told: without a user and a password."""
        return without_password(self.uri)

    @property
    def ui_url(self) -> str:
        """The address under which the UI shows this store, without a slash at the end."""
        configured = os.environ.get("MACREC_MLFLOW_UI_URL")
        if configured:
            return configured.rstrip("/")
        return self.uri.rstrip("/") if is_server(self.uri) else f"http://127.0.0.1:{DEFAULT_UI_PORT}"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock `name` of this home, against other processes too.

        Raises:
            TrackingError: another process held it for minutes.
        """
        with _locked(mlflow_folder(self.home) / f"{name}.lock"):
            yield

    def experiment_id(self, dataset: str) -> str:
        """The id of the experiment `macrec/<dataset>`, made at the first use."""
        if not _DATASET_NAME.fullmatch(dataset):
            raise TrackingError(f"{dataset!r} cannot be a data set: its name holds only a-z, 0-9 and '-'.")
        name = f"macrec/{dataset}"
        with one_line_errors(f"experiment {name}"), self.lock("experiments"):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                # A server knows best where its artifacts go.
                location = None if is_server(self.uri) else (artifact_folder(self.home) / dataset).as_uri()
                return self.client.create_experiment(name, artifact_location=location)
            if experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)


def connect(home: Path, *, create: bool = True) -> TrackingStore:
    """Open the MLflow store of a home.

    Args:
        home: the folder of all state.
        create: make the database if it is not there yet.

    Raises:
        TrackingError: the store cannot be reached, is of another MLflow version, or is not there and not to be made.
    """
    home = Path(home).absolute()
    uri = tracking_uri(home)
    database = Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None
    if database is not None and not create and not database.exists():
        raise TrackingError(f"There is no MLflow store in {home} yet: run `macrec run DATASET`, or set MACREC_HOME.")
    prepare_environment()
    try:
        mlflow_folder(home).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(f"{error.filename} cannot be made for the MLflow store: {error.strerror}.") from error
    with one_line_errors(f"MLflow store {uri}"), _locked(mlflow_folder(home) / "store.lock"), own_warnings_ignored():
        from mlflow import MlflowClient

        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            logging.getLogger("mlflow").setLevel(logging.WARNING)
        if database is not None:
            _prepare_database(database, artifact_folder(home))
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        # The first calls open the tracking store and the registry, and check their schema.
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return TrackingStore(home, uri, client)


def tracking_uri(home: Path) -> str:
    """`MLFLOW_TRACKING_URI`, else the sqlite database of the home.

    Raises:
        TrackingError: it is a server's with a password in it, which links, logs and MLflow's own errors would show.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{mlflow_folder(home) / 'mlflow.db'}"
    if is_server(uri) and uri != without_password(uri):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI holds a user or a password for {without_password(uri)}. Take them out: they belong "
            "into MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."
        )
    return uri


def without_password(text: str) -> str:
    """A URI, or a text with some, that may stand in a log, in metadata or in a link."""
    return _USER_AND_PASSWORD.sub("", text)


def is_server(uri: str) -> bool:
    """Whether a tracking URI names a server rather than a database."""
    return uri.startswith(("http://", "https://"))


def mlflow_folder(home: Path) -> Path:
    """Where MLflow's state of a home lives."""
    return Path(home).absolute() / "mlflow"


def artifact_folder(home: Path) -> Path:
    """Where the artifacts of a home's runs live."""
    return mlflow_folder(home) / "artifacts"


def prepare_environment() -> None:
    """Give MLflow's environment variables this package's defaults, where they are not set."""
    for name, value in _ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Turn MLflow's own errors into `TrackingError`, one line that begins with `what`.

    Raises:
        StoreAwayError: the store does not answer, or has no room.
        TrackingError: the store will not have it.
    """
    # What comes out of the block was raised by MLflow, so importing its exceptions costs nothing.
    try:
        yield
    except Exception as error:
        from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if not isinstance(error, MlflowException | SQLAlchemyError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        refused = isinstance(error, MlflowException) and ERROR_CODE_TO_HTTP_STATUS.get(error.error_code) in _REFUSALS
        kind = TrackingError if refused else StoreAwayError
        raise kind(without_password(f"{what}: {lines[0] if lines else type(error).__name__}")) from error


@contextmanager
def own_warnings_ignored() -> Iterator[None]:
    """For parts of MLflow that warn about their own code, at import or at work: no news to a user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(f"{path} has been held by another process for {_LOCK_SECONDS:.0f} seconds.") from None
    except OSError as error:
        raise TrackingError(f"{path} cannot be locked: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


def _prepare_database(database: Path, artifacts: Path) -> None:
    if not database.exists():
        _create_database(database, artifacts)
        return
    try:  # MLflow would retry for minutes to open a file that is no database
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{database} cannot be opened as MLflow's database: {error}. Move it away.") from None


def _create_database(database: Path, artifacts: Path) -> None:
    """Make MLflow's tables in a file beside the database and put it in place whole.

    A process that dies in the middle of MLflow's migrations would leave a database that no later one can open, and
    two processes that run them at once break each other: the caller holds the lock.
    """
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def without_flushing(connection: Any, _record: Any) -> None:
        # Some sixty migrations, each flushed, take eight seconds; the file is flushed once before it is used.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    database.parent.mkdir(parents=True, exist_ok=True)
    unfinished = database.with_name(f".{database.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", without_flushing)
    try:
        store = SqlAlchemyStore(f"{_SQLITE}{unfinished}", artifacts.as_uri())  # type: ignore[no-untyped-call]
        store.engine.dispose()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", without_flushing)
        with suppress(KeyError):
            del SqlAlchemyStore._engine_map[f"{_SQLITE}{unfinished}"]
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(database)
