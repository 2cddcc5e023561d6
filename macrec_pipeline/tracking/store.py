"""Locate, create and open the MLflow store of a home folder, and keep MLflow quiet.

The input is the home folder (`MACREC_HOME`) and MLflow's environment variables. The output is a `TrackingStore`, which
holds the only MLflow client that this package uses. Importing this module does not import MLflow, which takes seconds.
This module does not change MLflow's process-wide settings (active run, tracking URI), so that several homes or threads
do not interfere with each other.
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
from urllib.parse import quote, unquote

from filelock import FileLock, Timeout

from macrec_pipeline.errors import StoreUnavailableError, TrackingError
from macrec_pipeline.home import restrict_access
from macrec_pipeline.runtime.secret_addresses import without_secrets
from macrec_pipeline.tracking.relocation import update_locations

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_UI_PORT = 5000
"""Port of the MLflow UI on loopback that links point to, if no `macrec ui` of the home has had another one."""

# Without these, an unreachable server would block each call for minutes, and MLflow would send telemetry and print.
_ENVIRONMENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
# HTTP status codes of permanent errors. All others can be transient: a restarting server, an expired token.
_PERMANENT_ERRORS = (400, 404, 409)
_DATASET_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_SQLITE, _QUOTED_SQLITE = "sqlite:///", "sqlite+pysqlite:///"
_LOCK_SECONDS = 300.0
_UI_PORT_FILE = "ui-port"
# How the lines begin that SQLAlchemy puts around the cause of an error.
_HINTS = ("(raised as a result of Query-invoked autoflush", "(Background on this error")


@dataclass(frozen=True)
class TrackingStore:
    """An open MLflow store.

    Attributes:
        home: the absolute home folder.
        uri: the URI of the tracking store and of the model registry.
        client: an MLflow client for both.
    """

    home: Path
    uri: str
    client: MlflowClient

    @property
    def printable_uri(self) -> str:
        """The tracking URI without a user name or password."""
        return without_password(self.uri)

    @property
    def ui_url(self) -> str:
        """The address of the UI for this store, without a trailing slash."""
        configured = os.environ.get("MACREC_MLFLOW_UI_URL")
        if configured:
            return configured.rstrip("/")
        return self.uri.rstrip("/") if is_server(self.uri) else f"http://127.0.0.1:{_ui_port(self.home)}"

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock `name` of this home, which excludes other threads and processes.

        Raises:
            TrackingError: another process held the lock for minutes.
        """
        with _locked(mlflow_folder(self.home) / f"{name}.lock"):
            yield

    def experiment_id(self, dataset: str) -> str:
        """Return the id of the experiment `macrec/<dataset>`; create the experiment on first use."""
        if not _DATASET_NAME.fullmatch(dataset):
            raise TrackingError(
                f"{dataset!r} is not a valid name of a data set. Use a-z, 0-9 and '-'; the first character must not be "
                "'-'."
            )
        name = f"macrec/{dataset}"
        with one_line_errors(f"experiment {name}"), self.lock("experiments"):
            experiment = self.client.get_experiment_by_name(name)
            if experiment is None:
                # A server decides itself where its artifacts are stored.
                location = None if is_server(self.uri) else (artifact_folder(self.home) / dataset).as_uri()
                return self.client.create_experiment(name, artifact_location=location)
            if experiment.lifecycle_stage == "deleted":
                self.client.restore_experiment(experiment.experiment_id)
            return str(experiment.experiment_id)


def remember_ui_port(home: Path, port: int) -> None:
    """Record the port of the home's MLflow UI, to which the links of later runs point."""
    (mlflow_folder(home) / _UI_PORT_FILE).write_text(f"{port}\n", encoding="utf-8")


def _ui_port(home: Path) -> int:
    try:
        return int((mlflow_folder(home) / _UI_PORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return DEFAULT_UI_PORT


def connect(home: Path, *, create: bool = True) -> TrackingStore:
    """Open the MLflow store of a home.

    Args:
        home: the folder with all state.
        create: whether to create the database if it does not exist.

    Raises:
        TrackingError: the store cannot be reached, belongs to another MLflow version, or does not exist and `create` is
            false.
    """
    home = Path(home).resolve()  # a home has one address, however it is reached
    uri = tracking_uri(home)
    database = _database_file(uri)
    if database is not None and not create and not database.exists():
        raise TrackingError(
            f"There is no MLflow store in {home}. Run `macrec run DATASET` to create it, or set MACREC_HOME to another "
            "folder."
        )
    prepare_environment()
    try:
        restrict_access(home)
        mlflow_folder(home).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"The folder {error.filename} for the MLflow store cannot be created: {error.strerror}."
        ) from error
    with one_line_errors(f"MLflow store {uri}"), _locked(mlflow_folder(home) / "store.lock"), mlflow_warnings_ignored():
        from mlflow import MlflowClient
        from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

        # MLflow remembers in each process where a run has its artifacts, which is wrong for a copy of the run's home.
        _artifact_repos_cache.clear()
        if "MLFLOW_LOGGING_LEVEL" not in os.environ:
            logging.getLogger("mlflow").setLevel(logging.WARNING)
        if database is not None:
            _prepare_database(database, artifact_folder(home))
            if database.parent == mlflow_folder(
                home
            ):  # a database that MLFLOW_TRACKING_URI names is not ours to change
                update_locations(database, home)
        client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        # These calls open the tracking store and the registry, and check their schema.
        client.search_experiments(max_results=1)
        client.search_registered_models(max_results=1)
    return TrackingStore(home, uri, client)


def tracking_uri(home: Path) -> str:
    """Return `MLFLOW_TRACKING_URI` or, if it is not set, the URI of the home's SQLite database.

    Raises:
        TrackingError: the URI of a server contains a password, which links, logs and MLflow's own errors would reveal.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or _sqlite_uri(mlflow_folder(home) / "mlflow.db")
    if is_server(uri) and uri != without_password(uri):
        raise TrackingError(
            f"MLFLOW_TRACKING_URI contains a user name, password or token for {without_password(uri)}. Remove them "
            "from the URI and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    return uri


def _sqlite_uri(database: Path) -> str:
    """Return the URI of a database, with those characters of its path quoted that mean something in a URI."""
    path = str(database)
    # MLflow creates the folder in a URI of the first kind without unquoting it, so a quoted path needs the second.
    return f"{_QUOTED_SQLITE}{quote(path)}" if any(character in path for character in "%?#") else f"{_SQLITE}{path}"


def _database_file(uri: str) -> Path | None:
    if uri.startswith(_QUOTED_SQLITE):
        return Path(unquote(uri.removeprefix(_QUOTED_SQLITE)))
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def without_password(text: str) -> str:
    """Remove user names, passwords and tokens from all URIs in a text, so that logs, metadata and links may show it."""
    return without_secrets(text)


def is_server(uri: str) -> bool:
    """Tell whether a tracking URI refers to a server rather than a database."""
    return uri.startswith(("http://", "https://"))


def mlflow_folder(home: Path) -> Path:
    """Return the folder of a home's MLflow state."""
    return Path(home).absolute() / "mlflow"


def artifact_folder(home: Path) -> Path:
    """Return the folder with the artifacts of a home's runs."""
    return mlflow_folder(home) / "artifacts"


def prepare_environment() -> None:
    """Set MLflow's environment variables to this package's defaults unless they are already set."""
    for name, value in _ENVIRONMENT_DEFAULTS.items():
        os.environ.setdefault(name, value)


@contextmanager
def one_line_errors(what: str) -> Iterator[None]:
    """Convert MLflow's exceptions inside the block to a `TrackingError` of one line that starts with `what`.

    Raises:
        StoreUnavailableError: the store does not respond or is out of space; the same call may succeed later.
        TrackingError: the store rejected the call permanently.
    """
    try:
        yield
    except Exception as error:
        # Imported here because MLflow is slow to load; an exception of MLflow means that it is loaded already.
        from mlflow.exceptions import ERROR_CODE_TO_HTTP_STATUS, MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        if not isinstance(error, MlflowException | SQLAlchemyError):
            raise
        lines = [line.strip() for line in str(error).splitlines()]
        lines = [line for line in lines if line and not line.startswith(_HINTS)]
        status = ERROR_CODE_TO_HTTP_STATUS.get(error.error_code) if isinstance(error, MlflowException) else None
        kind = TrackingError if status in _PERMANENT_ERRORS else StoreUnavailableError
        raise kind(without_password(f"{what}: {lines[0] if lines else type(error).__name__}")) from error


@contextmanager
def mlflow_warnings_ignored() -> Iterator[None]:
    """Suppress warnings inside the block: parts of MLflow warn about their own code, which users cannot change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    try:
        lock.acquire()
    except Timeout:
        raise TrackingError(
            f"Another process has held the lock {path} for {_LOCK_SECONDS:.0f} seconds. Wait for that process or stop "
            "it, then try again."
        ) from None
    except OSError as error:
        raise TrackingError(f"The lock {path} cannot be acquired: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()


def _prepare_database(database: Path, artifacts: Path) -> None:
    if not database.exists():
        _create_database(database, artifacts)
        return
    try:  # MLflow itself would try for minutes to open a file that is not a database
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        raise TrackingError(f"{database} cannot be opened as MLflow's database: {error}. Move it away.") from None


def _create_database(database: Path, artifacts: Path) -> None:
    """Create MLflow's tables in a temporary file next to the database, then rename it to the database.

    If a process died during MLflow's migrations, no later process could open the database. Two processes that run the
    migrations at the same time break each other, so the caller must hold the lock.
    """
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def disable_flushing(connection: Any, _record: Any) -> None:
        # Flushing the file after each migration takes seconds. It is flushed once, before it is renamed.
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA journal_mode=MEMORY")

    database.parent.mkdir(parents=True, exist_ok=True)
    unfinished = database.with_name(f".{database.name}.unfinished")
    unfinished.unlink(missing_ok=True)
    sqlalchemy.event.listen(sqlalchemy.Engine, "connect", disable_flushing)
    try:
        store = SqlAlchemyStore(_sqlite_uri(unfinished), artifacts.as_uri())  # type: ignore[no-untyped-call]
        store.engine.dispose()
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "connect", disable_flushing)
        with suppress(KeyError):
            del SqlAlchemyStore._engine_map[_sqlite_uri(unfinished)]
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    unfinished.replace(database)
