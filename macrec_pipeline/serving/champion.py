"""Follows the alias of a registered model: loads each new version next to the old one, and then takes its place.

A version that does not load or does not answer its canary request leaves the old one in service. The failure is
reported, and the version is tried again when the alias moves or after some time.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from macrec_pipeline.errors import MacrecError, TrackingError
from macrec_pipeline.serving.served_version import ServedVersion

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class RegisteredModel:
    """The version that an alias names at one moment.

    Attributes:
        name: of the registered model.
        version: its number.
        digest: SHA-256 of its bundle, hexadecimal.
    """

    name: str
    version: int
    digest: str


@dataclass(frozen=True)
class Failure:
    """Why a version is not served."""

    version: int | None
    reason: str
    at: float


class Champion:
    """The version in service.

    Args:
        find: returns the version that the alias names now.
        load: downloads and starts a version.
    """

    def __init__(
        self, find: Callable[[], RegisteredModel], load: Callable[[RegisteredModel, Path], ServedVersion], scratch: Path
    ) -> None:
        self._find, self._load, self._scratch = find, load, scratch
        self._lock = threading.Lock()  # held while a version is loaded or replaced
        self.current: ServedVersion | None = None
        self.loaded_at = 0.0
        self.failure: Failure | None = None
        self.num_swaps = self.num_failures = 0

    def follow(self) -> None:
        """Look once at the alias, and load the version that it names if it is not in service."""
        with self._lock:
            try:
                wanted = self._find()
            except MacrecError as error:
                self._report(None, f"The registry cannot be read: {error}")
                return
            current = self.current
            if current is not None and current.facts.version == wanted.version and current.is_running():
                self.failure = None
                return
            if self._failed_recently(wanted.version):
                return
            folder = self._scratch / f"version-{wanted.version}"
            try:
                loaded = self._load(wanted, folder)
            except (MacrecError, OSError) as error:
                shutil.rmtree(folder, ignore_errors=True)
                self._report(wanted.version, str(error))
                return
            self.current, self.loaded_at, self.failure = loaded, time.time(), None
            self.num_swaps += current is not None
            _log.info("version %d is in service", wanted.version)
        if current is not None:
            current.stop()
            if (
                current.facts.version != wanted.version
            ):  # otherwise its process had ended, and the new one needs the files
                shutil.rmtree(self._scratch / f"version-{current.facts.version}", ignore_errors=True)

    def close(self) -> None:
        """End the process of the version in service."""
        with self._lock:
            if self.current is not None:
                self.current.stop()
                self.current = None

    def require(self) -> ServedVersion:
        """Return the version in service.

        Raises:
            TrackingError: there is none.
        """
        current = self.current
        if current is None:
            reason = self.failure.reason if self.failure else "It is being loaded."
            raise TrackingError(f"No version is in service. {reason}")
        return current

    def _failed_recently(self, version: int) -> bool:
        failure = self.failure
        return failure is not None and failure.version == version and time.monotonic() - failure.at < _RETRY_SECONDS

    def _report(self, version: int | None, reason: str) -> None:
        self.num_failures += 1
        if self.failure is None or self.failure.reason != reason:
            _log.error("%s", reason)
        self.failure = Failure(version, reason, time.monotonic())
