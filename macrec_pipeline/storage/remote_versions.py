"""The versions of one asset at a URL, each of which is copied to this machine before it is read.

    <url>/<dataset>/<asset>/current       "<version> <previous version>": names the current version
    <url>/<dataset>/<asset>/<version>/    the version's files and manifest.json; never changed once `current` names it

A writer fills a local folder as usual, uploads it as a new `<digest16>-<id>/`, and then replaces `current` with a
single request. So `current` names a complete version at every moment, and what a killed writer had uploaded is never
read. `current` always has the same length: a client reads the length and the bytes with separate requests, and must not
get half of an old and half of a new text. Readers use local copies in the layout of `versions`, because some libraries
map files into memory or seek in them.
"""

import logging
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage.manifest import MANIFEST_FILE, Manifest, parse_manifest, seal
from macrec_pipeline.storage.object_storage import ObjectFolder
from macrec_pipeline.storage.scratch_mirror import mirror_scratch
from macrec_pipeline.storage.versions import AssetVersions

logger = logging.getLogger(__name__)

CURRENT_FILE = "current"
_NO_VERSION = "-" * 49  # as long as the name of a version
_VERSION = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")
_CURRENT_CONTENT = re.compile(rf"({_VERSION.pattern}) ({_VERSION.pattern}|{_NO_VERSION})\n")
ABANDONED_AFTER = timedelta(days=1)
"""The age at which a version that `current` never named is removed; a younger one may still be uploading."""

Result = TypeVar("Result")


class RemoteVersions(AssetVersions):
    """The versions of one asset of one data set at a URL, with local copies of those that were read or written here.

    Args:
        dataset_folder: the folder of the data set on this machine.
        asset: the asset's name; the caller has checked that it is a known one.
        url: where the assets of all data sets are stored.
    """

    def __init__(self, dataset_folder: Path, asset: str, *, url: str) -> None:
        super().__init__(dataset_folder, asset)
        self._dataset_url = f"{url}/{dataset_folder.name}"
        self._objects = ObjectFolder(f"{self._dataset_url}/{asset}", resume_hint=self._resume_hint)

    @property
    def address(self) -> str:
        return self._objects.url

    @property
    def damage_hint(self) -> str:
        return f"It belongs to a copy of {self.address}: remove the copy's folder, and it is downloaded again."

    def exist(self) -> bool:
        return self._current_version() is not None

    def manifest(self) -> Manifest | None:
        return self._read_current(self._read_remote_manifest)

    def current_folder(self) -> Path | None:
        """Return the local copy of the current version, downloaded if necessary; None if there is no version yet.

        Raises:
            StorageError: the storage does not answer as it should, or a file there is not what was written.
        """
        return self._read_current(self._download_version)

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Make a sealed folder the current version, keep the version before it, and remove older ones.

        Raises:
            StorageError: the storage or the disk failed.
        """
        version = f"{manifest.digest[:16]}-{uuid.uuid4().hex}"
        try:
            with self._os_errors_as_storage_errors():
                self._objects.upload(folder, [*manifest.files, MANIFEST_FILE], to=version)
        except BaseException:
            with suppress(StorageError):
                self._objects.remove(version)
            raise
        with self._exclusive("publishing"):
            before = _CURRENT_CONTENT.fullmatch(self._read_current_file() or "")
            current, previous = before.groups() if before else (_NO_VERSION, _NO_VERSION)
            if current[:16] != version[:16]:  # with the same content, the previous version stays as it is
                previous = current
            self._objects.write(CURRENT_FILE, f"{version} {previous}\n".encode())
            super().publish(folder, manifest)
            self._remove_old_versions(retained={version, previous}, superseded=set(before.groups() if before else ()))

    def mirror_scratch(self, folder: Path) -> AbstractContextManager[None]:
        """Return a context that mirrors a scratch folder to the URL, so that another machine can continue the work."""
        objects = ObjectFolder(f"{self._dataset_url}/.scratch/{self._asset}", resume_hint=self._resume_hint)
        return mirror_scratch(objects, folder)

    def _read_current(self, read: Callable[[str], Result]) -> Result | None:
        """Apply `read` to the current version, again if a newer one replaced and removed it meanwhile."""
        while (version := self._current_version()) is not None:
            try:
                return read(version)
            except FileNotFoundError as error:
                if self._current_version() == version:
                    raise StorageError(
                        f"{self.address}/{version} lacks a file of the version: {error}. {self.rebuild_hint}"
                    ) from None
        return None

    def _current_version(self) -> str | None:
        if (content := self._read_current_file()) is None:
            return None
        if (names := _CURRENT_CONTENT.fullmatch(content)) is None:
            raise StorageError(
                f"{self.address}/{CURRENT_FILE} does not name a version, so it was not written by this store. "
                f"{self.rebuild_hint}"
            )
        return names[1]

    def _read_current_file(self) -> str | None:
        try:
            return self._objects.read(CURRENT_FILE).decode("latin-1")
        except FileNotFoundError:
            return None

    def _read_remote_manifest(self, version: str) -> Manifest:
        name = f"{version}/{MANIFEST_FILE}"
        content, location = self._objects.read(name), f"{self.address}/{name}"
        manifest = parse_manifest(content, self._asset, location=location, remedy=self.rebuild_hint)
        if not manifest.digest.startswith(version[:16]):
            raise StorageError(
                f"{location} describes the version {manifest.digest[:16]}, which is not the one that its folder's name "
                f"says. {self.rebuild_hint}"
            )
        return manifest

    def _download_version(self, version: str) -> Path:
        """Return the local copy of a version, downloaded and verified if it does not exist yet."""
        name = version[:16]
        if (folder := self.switch_to(name)) is not None:
            return folder
        with self._exclusive("copying"):
            if (folder := self.switch_to(name)) is not None:  # another process has downloaded it meanwhile
                return folder
            manifest = self._read_remote_manifest(version)
            with self.writing() as folder:
                self._objects.download(manifest.files, folder, source=version)
                copied = seal(folder, self._asset, manifest.details)
                for file, digest in manifest.files.items():
                    if copied.files[file] != digest:
                        raise StorageError(
                            f"{self.address}/{version}/{file} was changed after it was written: its SHA-256 is "
                            f"{copied.files[file][:16]}..., not {digest[:16]}... {self.rebuild_hint}"
                        )
                super().publish(folder, copied)
        return self._folder / name

    def _remove_old_versions(self, *, retained: set[str], superseded: set[str]) -> None:
        """Remove the versions that are no longer read; what cannot be removed now is left for the next write.

        Args:
            retained: the versions to keep.
            superseded: the versions that `current` named until now; others are removed only if they look abandoned.
        """
        try:
            times = self._objects.modification_times()
            last_written: dict[str, datetime] = {}
            for file, time in times.items():
                version = file.split("/")[0]
                if _VERSION.fullmatch(version) and version not in retained:
                    last_written[version] = max(time, last_written.get(version, time))
            for version, time in sorted(last_written.items()):
                age = max(times.values()) - time  # both times are from the server's clock
                if version in superseded or age > ABANDONED_AFTER:
                    self._objects.remove(version)
        except StorageError as error:
            logger.warning("Old versions of %s were not removed: %s", self._asset, error)

    @contextmanager
    def _exclusive(self, activity: str) -> Iterator[None]:
        """Let only one process of this machine do something at a time; the kernel releases a dead process's lock."""
        with self._os_errors_as_storage_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / f"{activity}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
