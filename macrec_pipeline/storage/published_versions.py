"""The versions of one asset at a URL, each of them copied into a folder of this machine before it is read.

    <url>/<dataset>/<asset>/current                      "<version> <version before>": which version is served
    <url>/<dataset>/<asset>/<version>/                   its files and manifest.json; never changed once it is named

A writer fills a local folder, as ever, and copies it to a new `<digest16>-<id>/`; then it puts `current` in place, in
one request. So `current` names a complete version at every moment, and what a killed writer had copied is seen by
nobody. `current` always has the same length: a reader asks for that first and for the bytes then, and must not be given
half of two. What is read are copies in `versions`' layout, so that libraries which map or seek in files find some.
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
from macrec_pipeline.storage.manifest import MANIFEST_FILE, Manifest, parsed_manifest, seal
from macrec_pipeline.storage.object_storage import ObjectFolder
from macrec_pipeline.storage.scratch import kept_at
from macrec_pipeline.storage.versions import AssetVersions

logger = logging.getLogger(__name__)

CURRENT = "current"
_NONE = "-" * 49  # as long as a version's name
_VERSION = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}")
_NAMES = re.compile(rf"({_VERSION.pattern}) ({_VERSION.pattern}|{_NONE})\n")
# A version that nobody names may be one that another machine is still copying.
ABANDONED_AFTER = timedelta(days=1)

Read = TypeVar("Read")


class PublishedVersions(AssetVersions):
    """The versions of one asset of one data set at a URL, with a copy of those that were read or written here.

    Args:
        dataset_folder: the folder of the data set on this machine.
        asset: the asset's name, already checked.
        url: of all data sets' assets.
    """

    def __init__(self, dataset_folder: Path, asset: str, *, url: str) -> None:
        super().__init__(dataset_folder, asset)
        self._dataset_url = f"{url}/{dataset_folder.name}"
        self._objects = ObjectFolder(f"{self._dataset_url}/{asset}", go_on=self._go_on)

    @property
    def address(self) -> str:
        return self._objects.url

    @property
    def damage_remedy(self) -> str:
        return f"It is a copy of what is at {self.address}: remove its folder, and it is copied again."

    def exist(self) -> bool:
        return self._served() is not None

    def manifest(self) -> Manifest | None:
        return self._read_from_current(self._manifest)

    def current(self) -> Path | None:
        """The copy of the version that is served, made now if it is not there; None if there is no version yet.

        Raises:
            StorageError: the place does not answer or not as it should, or a file there is not what was written.
        """
        return self._read_from_current(self._copy)

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Serve a sealed folder from now on; keep the version before it, and remove the others.

        Raises:
            StorageError: the place or the disk refused.
        """
        version = f"{manifest.digest[:16]}-{uuid.uuid4().hex}"
        try:
            with self._os_errors_are_told():
                self._objects.upload(folder, [*manifest.files, MANIFEST_FILE], to=version)
        except BaseException:
            with suppress(StorageError):
                self._objects.remove(version)
            raise
        with self._alone("publishing"):
            before = _NAMES.fullmatch(self._content() or "")
            served, previous = before.groups() if before else (_NONE, _NONE)
            if served[:16] != version[:16]:  # else the one before stays the one with other content
                previous = served
            self._objects.write(CURRENT, f"{version} {previous}\n".encode())
            super().publish(folder, manifest)
            self._sweep(kept={version, previous}, out_of_date=set(before.groups() if before else ()))

    def work_kept(self, folder: Path) -> AbstractContextManager[None]:
        """Around work that keeps files in a folder of this machine for another attempt, on another one too."""
        return kept_at(ObjectFolder(f"{self._dataset_url}/.scratch/{self._asset}", go_on=self._go_on), folder)

    def _read_from_current(self, read: Callable[[str], Read]) -> Read | None:
        """What `read` makes of the version that is served; begun anew if that was removed under it for newer ones."""
        while (version := self._served()) is not None:
            try:
                return read(version)
            except FileNotFoundError as error:
                if self._served() == version:
                    missing = f"{self.address}/{version} lacks a file that was written: {error}"
                    raise StorageError(f"{missing}. {self.remedy}") from None
        return None

    def _served(self) -> str | None:
        if (content := self._content()) is None:
            return None
        if (names := _NAMES.fullmatch(content)) is None:
            problem = f"{self.address}/{CURRENT} does not name a version, so it was not written by this store."
            raise StorageError(f"{problem} {self.remedy}")
        return names[1]

    def _content(self) -> str | None:
        try:
            return self._objects.read(CURRENT).decode("latin-1")
        except FileNotFoundError:
            return None

    def _manifest(self, version: str) -> Manifest:
        place = f"{version}/{MANIFEST_FILE}"
        content, where = self._objects.read(place), f"{self.address}/{place}"
        manifest = parsed_manifest(content, self._asset, place=where, remedy=self.remedy)
        if not manifest.digest.startswith(version[:16]):
            raise StorageError(f"{where} does not hold what its folder's name says. {self.remedy}")
        return manifest

    def _copy(self, version: str) -> Path:
        name = version[:16]
        if (folder := self.serve(name)) is not None:
            return folder
        with self._alone("copying"):
            if (folder := self.serve(name)) is not None:  # another process has copied it meanwhile
                return folder
            manifest = self._manifest(version)
            with self.writing() as folder:
                self._objects.download(manifest.files, folder, of=version)
                copied = seal(folder, self._asset, manifest.details)
                for file, digest in manifest.files.items():
                    if copied.files[file] != digest:
                        raise StorageError(
                            f"{self.address}/{version}/{file} was changed after it was written: its SHA-256 is "
                            f"{copied.files[file][:16]}..., not {digest[:16]}... {self.remedy}"
                        )
                super().publish(folder, copied)
        return self._folder / name

    def _sweep(self, *, kept: set[str], out_of_date: set[str]) -> None:
        """Remove the versions that nobody reads any more; what cannot be removed now stays for the next write."""
        try:
            times = self._objects.written_at()
            newest: dict[str, datetime] = {}
            for file, time in times.items():
                version = file.split("/")[0]
                if _VERSION.fullmatch(version) and version not in kept:
                    newest[version] = max(time, newest.get(version, time))
            for version, time in sorted(newest.items()):
                age = max(times.values()) - time  # by the clock that stamped both
                if version in out_of_date or age > ABANDONED_AFTER:
                    self._objects.remove(version)
        except StorageError as error:
            logger.warning("Versions of %s that nobody reads are left: %s", self._asset, error)

    @contextmanager
    def _alone(self, work: str) -> Iterator[None]:
        """The only process of this machine at this work; the kernel frees the lock of one that dies."""
        with self._os_errors_are_told():
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self._folder / f"{work}.lock")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()
