"""Dagster's SQLite storage for a folder whose path has characters that mean something in a URL, such as `%` or `?`.

Dagster puts the path into a database URL as it is, and SQLAlchemy then reads another path. The dagster.yaml of such a
folder names the class here as its storage: every process of Dagster's UI reads that file and opens the databases.
"""

import re
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

from macrec_pipeline.defs import dagster_private

_STORAGE_LINE = re.compile(r"^(run_|event_log_|schedule_)?storage:", re.MULTILINE)
_STORAGE = """
# The path of this folder has characters that Dagster's own storage would read as a part of a URL.
storage:
  custom:
    module: macrec_pipeline.defs.dagster_sqlite
    class: QuotedSqliteStorage
    config:
      base_dir: {env: DAGSTER_HOME}
"""


def _quoted_url(base_dir: str, db_name: str) -> str:
    return f"sqlite:///{quote(str(Path(base_dir).absolute() / f'{db_name}.db'))}"


for _module in dagster_private.SQLITE_MODULES:
    vars(_module)["create_db_conn_string"] = _quoted_url


class QuotedSqliteStorage(dagster_private.DagsterSqliteStorage):
    """The storage that Dagster uses by default, with the paths of its databases quoted."""


def use_quoted_storage(folder: Path) -> dict[str, Any] | None:
    """Add the storage to the dagster.yaml of a folder if its path needs it and the file names no storage yet.

    Returns:
        The same storage for a process that has no DAGSTER_HOME; None if the folder has another storage.
    """
    file = folder / "dagster.yaml"
    settings = file.read_text(encoding="utf-8")
    if any(character in str(folder) for character in "%?") and not _STORAGE_LINE.search(settings):
        part = folder / f".dagster.yaml-{uuid.uuid4().hex}"
        part.write_text(settings + _STORAGE, encoding="utf-8")
        part.replace(file)
    elif __name__ not in settings:
        return None
    return {"module": __name__, "class": QuotedSqliteStorage.__name__, "config": {"base_dir": str(folder)}}
