"""The home: where everything that runs produce is stored.

A home is either one folder with all of it, or a URL for tables and model folders together with a folder for the rest.
Databases, locks and checkpoints need a file system, so a URL alone is not enough. This module turns the text of
`MACREC_HOME` or `--home`, together with `MACREC_STATE`, into a `Home`.
"""

import os
import re
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from macrec_pipeline.errors import ConfigError

GROUP_ACCESS = "MACREC_HOME_GROUP"
"""Environment variable: what the group of a home's files may do. One of `_GROUP_BITS`; `none` by default."""
_GROUP_BITS = {"none": 0, "read": 5, "write": 7}
# Everything else in the folder of a home is a data set's folder, which has `.versions`, or belongs to somebody else.
_PARTS = ("mlflow", "dagster", "logs", ".running", ".turns", "backtest", "backtest-results")

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Home:
    """Where everything that runs produce is stored.

    Attributes:
        folder: absolute path with the records of Dagster and MLflow, locks, checkpoints, and the assets or, with a
            URL, local copies of them.
        url: URL at which the assets are published, without a trailing slash; None if they are only in the folder.
    """

    folder: Path
    url: str | None = None

    def __str__(self) -> str:
        return self.url or str(self.folder)


def home_of(text: str) -> Home:
    """Return the home that a path or URL stands for.

    Args:
        text: a path, or a URL such as s3://bucket/prefix, which also needs the environment variable `MACREC_STATE`.

    Raises:
        ConfigError: the URL has no bucket or more than bucket and prefix, or `MACREC_STATE` is not set to a folder.
    """
    match = _URL.fullmatch(text)
    if match is None:
        return Home(Path(text).absolute())
    location = match["rest"].rstrip("/")
    if any(character in location for character in "@?#"):  # the message does not quote the URL: it may hold a key
        raise ConfigError(
            f"The {match['scheme']} URL in MACREC_HOME has more than a bucket and a prefix. Put keys in "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the address of the server in AWS_ENDPOINT_URL."
        )
    if not location or "" in location.split("/"):
        raise ConfigError(f"{text!r} has no bucket or an empty part. Write it as s3://bucket/prefix.")
    state = os.environ.get("MACREC_STATE")
    if not state:
        raise ConfigError(
            f"Tables and models go to {text}, but the records of Dagster and MLflow, locks and checkpoints need a "
            "folder on this machine: set MACREC_STATE to one."
        )
    if _URL.fullmatch(state):
        raise ConfigError(f"MACREC_STATE is {state!r}, but it must be a folder on this machine.")
    return Home(Path(state).absolute(), f"{match['scheme'].lower()}://{location}")


def use_private_umask() -> None:
    """Make this process and its children create files that other users cannot read. Raises `ConfigError`."""
    os.umask(0o077 & ~(_group_bits() << 3))


def restrict_access(folder: Path) -> None:
    """Make a home inaccessible to other users, also one that an earlier version created.

    The group gets the access that `MACREC_HOME_GROUP` allows. Only files that runs produce are changed, and the home
    itself if it holds nothing else. Files of another owner stay as they are.

    Args:
        folder: the folder of the home; it is created if it does not exist.

    Raises:
        ConfigError: `MACREC_HOME_GROUP` has an unknown value.
        OSError: the folder cannot be created.
    """
    group = _group_bits()
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _restrict(folder, group)
        return
    entries = [entry for entry in folder.iterdir() if not entry.is_symlink()]
    parts = [entry for entry in entries if entry.is_dir() and (entry.name in _PARTS or (entry / ".versions").is_dir())]
    for part in parts:
        if _has_other_access(part, group):
            # From the bottom up, so that after an interruption the next process starts again.
            for parent, _, files in os.walk(part, topdown=False):
                for name in files:
                    _restrict(Path(parent, name), group)
                _restrict(Path(parent), group)
    if parts and len(parts) == len(entries):
        _restrict(folder, group)


def _group_bits() -> int:
    value = os.environ.get(GROUP_ACCESS) or "none"
    if value not in _GROUP_BITS:
        raise ConfigError(f"{GROUP_ACCESS} is {value!r}. Set it to one of: {', '.join(_GROUP_BITS)}.")
    return _GROUP_BITS[value]


def _allowed(mode: int, group: int) -> int:
    """The permissions that a file should have: the group's are at most the owner's, and others have none."""
    owner = mode >> 6 & 7
    return stat.S_IMODE(mode) & 0o7700 | (owner & group) << 3


def _has_other_access(path: Path, group: int) -> bool:
    mode = path.stat().st_mode
    return stat.S_IMODE(mode) != _allowed(mode, group)


def _restrict(path: Path, group: int) -> None:
    if path.is_symlink():
        return
    with suppress(FileNotFoundError, PermissionError):  # a temporary file of another process; a file of another owner
        if _has_other_access(path, group):
            path.chmod(_allowed(path.stat().st_mode, group))
