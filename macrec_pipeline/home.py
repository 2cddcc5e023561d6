"""Where the state is: all of it in one folder, or tables and model folders at a URL and the rest in a folder.

In: the text of `MACREC_HOME` or of what stands in its place, and `MACREC_STATE`. Out: a `Home`. Databases, locks and
checkpoints need a file system, so a URL alone does not say where they go.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from macrec_pipeline.errors import ConfigError

_URL = re.compile(r"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Home:
    """Where the state is.

    Attributes:
        folder: absolute; Dagster's and MLflow's records, locks, checkpoints, and the assets or copies of them.
        url: where the assets are published, without a '/' at its end; None: the folder is where they are.
    """

    folder: Path
    url: str | None = None

    def __str__(self) -> str:
        return self.url or str(self.folder)


def home_of(text: str) -> Home:
    """The home that a path or a URL names.

    Raises:
        ConfigError: the URL names no bucket, carries what is no part of a place, or `MACREC_STATE` is not set.
    """
    found = _URL.fullmatch(text)
    if found is None:
        return Home(Path(text).absolute())
    place = found["rest"].rstrip("/")
    if any(mark in place for mark in "@?#"):  # not quoted: a key may be in it
        raise ConfigError(
            f"The {found['scheme']} URL in MACREC_HOME holds more than bucket and prefix. Keys belong into "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server's address into AWS_ENDPOINT_URL."
        )
    if not place or "" in place.split("/"):
        raise ConfigError(f"{text!r} names no place for tables and models. Use one like s3://bucket/prefix.")
    state = os.environ.get("MACREC_STATE")
    if not state:
        raise ConfigError(
            f"Tables and models go to {text}, but Dagster's and MLflow's records, locks and checkpoints need a folder "
            "of this machine: set MACREC_STATE to one."
        )
    if _URL.fullmatch(state):
        raise ConfigError(f"MACREC_STATE is {state!r}; it must be a folder of this machine.")
    return Home(Path(state).absolute(), f"{found['scheme'].lower()}://{place}")
