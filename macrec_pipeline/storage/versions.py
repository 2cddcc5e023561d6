"""The versions of one asset on disk, and how one takes the place of another.

    <home>/<dataset>/<asset>                             link to the version that is served
    <home>/<dataset>/.versions/<asset>/<digest16>/       a version: its files and manifest.json
    <home>/<dataset>/.versions/<asset>/previous          link to the version that was served before
    <home>/<dataset>/.versions/<asset>/writing-<id>/     a version that is being written, beside writing-<id>.lock

A writer fills a `writing-` folder, flushes it, renames it to its digest and swaps the link with one rename: at every
moment, also after a power cut or a kill, the link names a complete version. A writer holds the lock of its folder
while it lives, so that the next one can tell an abandoned folder from one that is still being filled: the kernel
frees the lock of a dead process, while a process id may be another process's by then.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage.disk import refusals_are_told
from macrec_pipeline.storage.manifest import MANIFEST_FILE, Manifest, flush, read_manifest, verify

_VERSION = re.compile(r"[0-9a-f]{16}")
_LOCK_SECONDS = 120.0


class AssetVersions:
    """The versions of one asset of one data set.

    Args:
        dataset_folder: the folder of the data set below the home.
        asset: the asset's name, already checked.
    """

    def __init__(self, dataset_folder: Path, asset: str) -> None:
        self.link = dataset_folder / asset
        self._asset = asset
        self._folder = dataset_folder / ".versions" / asset
        self._remedy = f"Make {asset} again: run `macrec run {dataset_folder.name}`."
        self._go_on = f"Put that right, then go on: run `macrec run {dataset_folder.name} --resume`."

    @property
    def remedy(self) -> str:
        """What a person does when this asset is not what it should be."""
        return self._remedy

    @property
    def damage_remedy(self) -> str:
        """What a person does when a file of the folder that is served is damaged."""
        return self._remedy

    @property
    def address(self) -> str:
        """Where the current version is found, by whoever looks for it."""
        return str(self.link)

    def exist(self) -> bool:
        """Whether a version is there; says nothing about its state. Raises `StorageError` as `current`."""
        return self.current() is not None

    def manifest(self) -> Manifest | None:
        """The manifest of the version that is served, whose files are not read; None if there is none yet.

        Raises:
            StorageError: as `current`, or the manifest is damaged.
        """
        folder = self.current()
        return None if folder is None else self.read(folder)

    def work_kept(self, folder: Path) -> AbstractContextManager[None]:
        """Around work that keeps files in a folder of this machine for another attempt: they are safe there."""
        return nullcontext()

    def read(self, folder: Path) -> Manifest:
        """The manifest of a folder of `current`. Raises `StorageError`: it is damaged."""
        manifest = read_manifest(folder, self._asset, remedy=self.damage_remedy)
        if not manifest.digest.startswith(folder.name):
            raise StorageError(f"{folder} does not hold what its name says. {self.damage_remedy}")
        return manifest

    def current(self) -> Path | None:
        """The folder of the version that is served; None if there is none yet.

        Raises:
            StorageError: the link is not one that this store made, or names a version that is gone.
        """
        if not os.path.lexists(self.link):
            return None
        version = self._version_of(self.link)
        if version is None:
            raise StorageError(
                f"{self.link} is not a link to a version of {self._asset}, so it was not made by this store. "
                f"Move it away. {self._remedy}"
            )
        folder = self._folder / version
        if not folder.is_dir():
            raise StorageError(f"{folder}, which {self.link} names, is gone. {self._remedy}")
        return folder

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """A new, empty folder to fill; it is removed at the end unless `publish` took it.

        Left-overs of writers that died are removed first.

        Raises:
            StorageError: the disk refused, also what the block writes.
        """
        with self._os_errors_are_told():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._remove_left_overs()
                folder = self._folder / f"writing-{uuid.uuid4().hex}"
                alive = FileLock(f"{folder}.lock")
                alive.acquire(timeout=0)
                folder.mkdir()
        try:
            with refusals_are_told(self._asset, folder, remedy=self._go_on):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(alive.lock_file).unlink(missing_ok=True)
            alive.release()

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Serve a sealed folder from now on; keep the version before it, and remove the others.

        Raises:
            StorageError: the disk refused, or something else stands where the link belongs.
        """
        version = manifest.digest[:16]
        with self._os_errors_are_told(), self._lock():
            if os.path.lexists(self.link) and not self.link.is_symlink():
                raise StorageError(f"{self.link} is in the way: it was not made by this store. Move it away.")
            self._install(folder, version)
            self._serve(version)

    def serve(self, version: str) -> Path | None:
        """Serve a version of before again and return its folder; None if it is gone. Raises `StorageError`."""
        folder = self._folder / version
        with self._os_errors_are_told():
            if self._version_of(self.link) != version and folder.is_dir():
                with self._lock():
                    if folder.is_dir():
                        self._serve(version)
            return folder if folder.is_dir() else None

    def _serve(self, version: str) -> None:
        before = self._version_of(self.link)
        self._point(self.link, f".versions/{self._asset}/{version}")
        if before not in (None, version):
            self._point(self._folder / "previous", str(before))
        kept = {version, self._version_of(self._folder / "previous")}
        for path in self._folder.iterdir():
            if _VERSION.fullmatch(path.name) and path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def _install(self, folder: Path, version: str) -> None:
        target = self._folder / version
        if target.exists() and self._is_intact(target):
            # The same bytes are there already: only what is said about them may differ.
            (folder / MANIFEST_FILE).replace(target / MANIFEST_FILE)
            flush(target)
            return
        if target.exists():
            target.rename(self._folder / f"damaged-{uuid.uuid4().hex}")
        folder.rename(target)
        flush(self._folder)

    def _is_intact(self, target: Path) -> bool:
        try:
            verify(target, read_manifest(target, self._asset, remedy=""), remedy="")
        except StorageError:
            return False
        return True

    def _point(self, link: Path, target: str) -> None:
        fresh = self._folder / f"link-{uuid.uuid4().hex}"
        fresh.symlink_to(target)
        fresh.replace(link)
        flush(link.parent)

    def _version_of(self, link: Path) -> str | None:
        if not link.is_symlink():
            return None
        target = link.readlink()
        expected_parent = Path() if link.parent == self._folder else Path(".versions", self._asset)
        is_version = target.parent == expected_parent and _VERSION.fullmatch(target.name)
        return target.name if is_version else None

    def _remove_left_overs(self) -> None:
        for path in self._folder.glob("writing-*.lock"):
            abandoned = FileLock(path)
            try:
                abandoned.acquire(timeout=0)
            except Timeout:
                continue
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            abandoned.release()
        for path in self._folder.glob("link-*"):
            path.unlink()
        for path in self._folder.glob("damaged-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _lock(self) -> FileLock:
        return FileLock(self._folder / "store.lock", timeout=_LOCK_SECONDS)

    @contextmanager
    def _os_errors_are_told(self) -> Iterator[None]:
        try:
            yield
        except Timeout as error:
            raise StorageError(
                f"{error.lock_file} has been held by another process for {_LOCK_SECONDS:.0f} seconds. "
                "Wait for the other run to end, or end it."
            ) from None
        except OSError as error:
            place = error.filename or self._folder
            raise StorageError(
                f"{self._asset} cannot be stored: {place}: {error.strerror or error}. {self._go_on}"
            ) from error
