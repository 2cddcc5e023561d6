"""Keep the locations in a home's MLflow database true after the home was moved or copied.

The input is the SQLite database and the folder that the home is in now. MLflow stores absolute addresses of artifacts.
Without this module, a copied home would look for its models in the original and write new artifacts there. Only
addresses below the artifact folder of a home are changed; a person may have given an experiment any other address.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.runtime.process_locks import ProcessState, process_state

_logger = logging.getLogger(__name__)

_ARTIFACTS = "/mlflow/artifacts"
_COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_BUSY_SECONDS = 60.0


def update_locations(database: Path, home: Path) -> list[Path]:
    """Make the artifact addresses in a database refer to the home that the database is in now.

    All addresses change in one transaction. The caller must hold the lock of the store.

    Args:
        database: MLflow's SQLite database, which exists.
        home: the resolved folder that the database belongs to.

    Returns:
        The former folders of the home that the addresses referred to; empty if there was nothing to change.

    Raises:
        TrackingError: a process works in this home under its former path, or the database cannot be changed.
    """
    present = f"{home.as_uri()}{_ARTIFACTS}"
    with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
        former = _other_prefixes(connection, present)
        if not former:
            return []
        folders = [_home_of(prefix) for prefix in former]
        for folder in folders:
            _require_not_in_use(database, home, folder)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for prefix in former:
                _replace_prefix(connection, prefix, present)
            connection.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise TrackingError(
                f"The home {home} was moved or copied from {folders[0]}, but its MLflow database {database} cannot be "
                f"updated: {error}. Make the file and its folder writable, then try again."
            ) from error
    _logger.info(
        "The home %s was moved or copied from %s. Its MLflow records now refer to the present folder.",
        home,
        ", ".join(map(str, folders)),
    )
    return folders


def _other_prefixes(connection: sqlite3.Connection, present: str) -> list[str]:
    """Return the addresses of artifact folders that experiments use, other than the present one, sorted."""
    if not _has_column(connection, "experiments", "artifact_location"):
        return []
    rows = connection.execute("SELECT artifact_location FROM experiments WHERE artifact_location IS NOT NULL")
    prefixes = {str(location).rpartition("/")[0] for (location,) in rows}
    return sorted(
        prefix
        for prefix in prefixes
        if prefix.startswith("file://") and prefix.endswith(_ARTIFACTS) and prefix != present
    )


def _replace_prefix(connection: sqlite3.Connection, former: str, present: str) -> None:
    for table, column in _COLUMNS:
        if _has_column(connection, table, column):
            connection.execute(
                f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",  # noqa: S608  # fixed names
                (present, len(former) + 1, len(former) + 1, f"{former}/"),
            )


def _has_column(connection: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in connection.execute(f"PRAGMA table_info({table})"))


def _home_of(prefix: str) -> Path:
    return Path(unquote(urlsplit(prefix).path).removesuffix(_ARTIFACTS))


def _require_not_in_use(database: Path, home: Path, former: Path) -> None:
    """Refuse to change the addresses under a process that still works in this very home, under its former path.

    The locks of a copy are its own, so a process that works in the original does not count.
    """
    try:
        if former.samefile(home):  # two paths of one folder: both addresses are valid
            return
    except OSError:
        pass  # the former folder is gone, or belongs to somebody else
    running = database.parent / "running"
    if any(process_state(lock) is ProcessState.ALIVE for lock in running.glob("*.lock")):
        raise TrackingError(
            f"A run is in progress in {home} under its former path {former}. Wait until it has ended, then try again."
        )
