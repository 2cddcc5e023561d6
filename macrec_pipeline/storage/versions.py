"""The versions of one asset on disk, and how a new one replaces the current one.

    <home>/<dataset>/<asset>                             link to the current version
    <home>/<dataset>/.versions/<asset>/<digest16>/       a version: its files and manifest.json
    <home>/<dataset>/.versions/<asset>/previous          link to the version before it
    <home>/<dataset>/.versions/<asset>/writing-<id>/     a version that is being written, beside writing-<id>.lock

A writer fills a `writing-` folder, flushes it, renames it to its digest, and swaps the link with a single rename. So
the link names a complete version at every moment, even after a power failure or a kill. While a writer lives, it holds
the lock of its folder, which tells the next writer whether a folder is abandoned or still being filled. A lock is more
reliable than a process ID for this: the kernel releases the lock of a dead process, whereas its ID may be reused.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from filelock import FileLock, Timeout

from macrec_pipeline.errors import MacrecError, StorageError
from macrec_pipeline.storage.manifest import MANIFEST_FILE, Manifest, flush, read_manifest, verify

_VERSION = re.compile(r"[0-9a-f]{16}")
_LOCK_TIMEOUT_SECONDS = 120.0
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
# Libraries in Rust and C++ give the error number in the message only.
_ERRNO_IN_MESSAGE = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)


class AssetVersions:
    """The versions of one asset of one data set.

    Args:
        dataset_folder: the folder of the data set below the home.
        asset: the asset's name; the caller has checked that it is a known one.
    """

    def __init__(self, dataset_folder: Path, asset: str) -> None:
        self.link = dataset_folder / asset
        self._asset = asset
        self._folder = dataset_folder / ".versions" / asset
        self._rebuild_hint = f"To rebuild {asset}, run `macrec run {dataset_folder.name}`."
        self._resume_hint = f"To continue, fix this and run `macrec run {dataset_folder.name} --resume`."

    @property
    def rebuild_hint(self) -> str:
        """What to do if the asset is missing or not what it should be, for error messages."""
        return self._rebuild_hint

    @property
    def damage_hint(self) -> str:
        """What to do if a file in the current version's folder is damaged, for error messages."""
        return self._rebuild_hint

    @property
    def address(self) -> str:
        """Where a person finds the current version."""
        return str(self.link)

    def exist(self) -> bool:
        """Return whether there is a version; its files are not checked. For errors, see `current_folder`."""
        return self.current_folder() is not None

    def manifest(self) -> Manifest | None:
        """Return the manifest of the current version without reading its files; None if there is no version.

        Raises:
            StorageError: as for `current_folder`, or the manifest is damaged.
        """
        folder = self.current_folder()
        return None if folder is None else self.manifest_of(folder)

    def mirror_scratch(self, folder: Path) -> AbstractContextManager[None]:
        """Return a context for work in a scratch folder. Here it does nothing: every attempt uses the same folder."""
        return nullcontext()

    def manifest_of(self, folder: Path) -> Manifest:
        """Read the manifest in a folder that `current_folder` returned.

        Raises:
            StorageError: the manifest is damaged, or does not belong to the folder.
        """
        manifest = read_manifest(folder, self._asset, remedy=self.damage_hint)
        if not manifest.digest.startswith(folder.name):
            raise StorageError(
                f"{folder} holds the version {manifest.digest[:16]}, which is not the one that its name says. "
                f"{self.damage_hint}"
            )
        return manifest

    def current_folder(self) -> Path | None:
        """Return the folder of the current version; None if there is no version yet.

        Raises:
            StorageError: the link was not made by this store, or names a version that no longer exists.
        """
        if not os.path.lexists(self.link):
            return None
        version = self._version_of(self.link)
        if version is None:
            raise StorageError(
                f"{self.link} is not a link to a version of {self._asset}, so it was not made by this store. "
                f"Move it away. {self._rebuild_hint}"
            )
        folder = self._folder / version
        if not folder.is_dir():
            raise StorageError(f"{folder}, to which {self.link} links, no longer exists. {self._rebuild_hint}")
        return folder

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Provide a new, empty folder to fill, which is removed at the end unless `publish` took it.

        Folders that dead writers left behind are removed first.

        Raises:
            StorageError: the disk failed, here or in the block.
        """
        with self._os_errors_as_storage_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._remove_leftovers()
                folder = self._folder / f"writing-{uuid.uuid4().hex}"
                writer_lock = FileLock(f"{folder}.lock")
                writer_lock.acquire(timeout=0)
                folder.mkdir()
        try:
            with disk_errors_as_storage_errors(self._asset, folder, remedy=self._resume_hint):
                yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            Path(writer_lock.lock_file).unlink(missing_ok=True)
            writer_lock.release()

    def publish(self, folder: Path, manifest: Manifest) -> None:
        """Make a sealed folder the current version, keep the version before it, and remove older ones.

        Raises:
            StorageError: the disk failed, or something that is not the store's link is in the link's place.
        """
        version = manifest.digest[:16]
        with self._os_errors_as_storage_errors(), self._lock():
            if os.path.lexists(self.link) and not self.link.is_symlink():
                raise StorageError(
                    f"{self.link} was not made by this store, but it is in the place of {self._asset}. Move it away."
                )
            self._install(folder, version)
            self._make_current(version)

    def switch_to(self, version: str) -> Path | None:
        """Make a stored version the current one and return its folder; None if it is not stored.

        Raises:
            StorageError: the disk failed.
        """
        folder = self._folder / version
        with self._os_errors_as_storage_errors():
            if self._version_of(self.link) != version and folder.is_dir():
                with self._lock():
                    if folder.is_dir():
                        self._make_current(version)
            return folder if folder.is_dir() else None

    def _make_current(self, version: str) -> None:
        before = self._version_of(self.link)
        self._point(self.link, f".versions/{self._asset}/{version}")
        if before not in (None, version):
            self._point(self._folder / "previous", str(before))
        retained = {version, self._version_of(self._folder / "previous")}
        for path in self._folder.iterdir():
            if _VERSION.fullmatch(path.name) and path.name not in retained:
                shutil.rmtree(path, ignore_errors=True)

    def _install(self, folder: Path, version: str) -> None:
        target = self._folder / version
        if target.exists() and self._is_intact(target):
            # The same files are already there, so only the manifest's details can differ.
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
        """Replace a link in one step."""
        new_link = self._folder / f"link-{uuid.uuid4().hex}"
        new_link.symlink_to(target)
        new_link.replace(link)
        flush(link.parent)

    def _version_of(self, link: Path) -> str | None:
        """Return the version that a link names; None if it is not a link of this store."""
        if not link.is_symlink():
            return None
        target = link.readlink()
        expected_parent = Path() if link.parent == self._folder else Path(".versions", self._asset)
        is_version = target.parent == expected_parent and _VERSION.fullmatch(target.name)
        return target.name if is_version else None

    def _remove_leftovers(self) -> None:
        for path in self._folder.glob("writing-*.lock"):
            writer_lock = FileLock(path)
            try:
                writer_lock.acquire(timeout=0)
            except Timeout:  # its writer is alive
                continue
            shutil.rmtree(path.with_suffix(""), ignore_errors=True)
            path.unlink(missing_ok=True)
            writer_lock.release()
        for path in self._folder.glob("link-*"):
            path.unlink()
        for path in self._folder.glob("damaged-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _lock(self) -> FileLock:
        return FileLock(self._folder / "store.lock", timeout=_LOCK_TIMEOUT_SECONDS)

    @contextmanager
    def _os_errors_as_storage_errors(self) -> Iterator[None]:
        """Turn any `OSError` of the store's own file operations into a `StorageError`."""
        try:
            yield
        except Timeout as error:
            raise StorageError(
                f"Another process has held {error.lock_file} for {_LOCK_TIMEOUT_SECONDS:.0f} seconds. Wait for the "
                "other run to finish, or stop it."
            ) from None
        except OSError as error:
            path = error.filename or self._folder
            raise StorageError(
                f"{self._asset} cannot be stored: {path}: {error.strerror or error}. {self._resume_hint}"
            ) from error


@contextmanager
def disk_errors_as_storage_errors(asset: str, path: Path, *, remedy: str) -> Iterator[None]:
    """Turn errors of a full, read-only or broken disk into a `StorageError`, whichever library was writing.

    Other errors pass through unchanged, because they are the fault of the code that writes.

    Args:
        asset: what is being written.
        path: the file or folder to name if the error itself names none.
        remedy: what to do about an error, as the last sentence of its message.

    Raises:
        StorageError: the disk failed.
    """
    try:
        yield
    except MacrecError:
        raise
    except Exception as error:
        error_number = _errno_of(error)
        if error_number not in _DISK_ERRORS:
            raise
        file = getattr(error, "filename", None) or path
        raise StorageError(f"{asset} cannot be stored: {file}: {os.strerror(error_number)}. {remedy}") from error


def _errno_of(error: Exception) -> int:
    """Return the error number of the operating system; 0 if there is none."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _ERRNO_IN_MESSAGE.search(str(error))
    return int(found[1]) if found else 0
