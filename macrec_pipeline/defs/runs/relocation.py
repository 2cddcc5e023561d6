"""Keep the configuration of recorded Dagster runs true after their home was moved or copied.

A run from the command line records the folder of its home in its configuration. In a copy of the home, a person who
executes such a run again in the UI would otherwise write into the original, and closing an interrupted run would change
the original's MLflow records. The file `home-folder` beside `dagster.yaml` says for which folder the records are true.
"""

import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY

logger = logging.getLogger(__name__)

_RECORD = "home-folder"
_BUSY_SECONDS = 60.0


def update_home_of_runs(folder: Path, home: Path) -> None:
    """Make the recorded runs of a home refer to the folder that the home is in now.

    The caller must hold the lock under which the instance is opened. Runs that are not kept in SQLite stay as they are.

    Args:
        folder: Dagster's folder, which lies in the home.
        home: the absolute folder of the home.
    """
    record, database = folder / _RECORD, folder / "history" / "runs.db"
    if record.is_file() and record.read_text(encoding="utf-8") == str(home):
        return
    if database.is_file():
        with closing(sqlite3.connect(database, timeout=_BUSY_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            former = _update_runs(connection, str(home))
            connection.execute("COMMIT")
        if former:
            logger.info("The Dagster runs of %s now refer to this folder instead of %s.", home, ", ".join(former))
    part = folder / f".{_RECORD}"
    part.write_text(str(home), encoding="utf-8")
    part.replace(record)


def _update_runs(connection: sqlite3.Connection, home: str) -> list[str]:
    rows = connection.execute("SELECT run_id, run_body FROM runs").fetchall()
    bodies = {run_id: json.loads(body) for run_id, body in rows}
    # Only a run from the command line certainly had its home around this folder. The UI repeats such configurations.
    former = {
        configured
        for body in bodies.values()
        if (body.get("tags") or {}).get(LAUNCHED_BY) == COMMAND_LINE
        and (configured := _settings(body).get("home"))
        and Path(configured).is_absolute()  # not a URL, which stays where it is
        and configured != home
    }
    for run_id, body in bodies.items():
        settings = _settings(body)
        if settings.get("home") in former:
            settings["home"] = home
            connection.execute("UPDATE runs SET run_body = ? WHERE run_id = ?", (json.dumps(body), run_id))
    return sorted(former)


def _settings(body: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of the resource `settings` of a run, as a part of the run's record."""
    part: Any = body.get("run_config")
    for name in ("resources", "settings", "config"):
        part = part.get(name) if isinstance(part, dict) else None
    return part if isinstance(part, dict) else {}
