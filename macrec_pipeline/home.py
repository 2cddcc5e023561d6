"""The home: where everything that runs produce is stored.

A home is either one folder with all of it, or a URL for tables and model folders together with a folder for the rest.
Databases, locks and checkpoints need a file system, so a URL alone is not enough. This module turns the text of
`MACREC_HOME` or `--home`, together with `MACREC_STATE`, into a `Home`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from macrec_pipeline.errors import ConfigError

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
