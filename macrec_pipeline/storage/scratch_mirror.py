"""Mirror a scratch folder to a URL, so that another machine can continue where this one died.

The input is a folder in which a stage keeps checkpoints or finished shards, and replaces files as a whole. Copies of
those files appear at the URL some seconds later. The stage does not wait for the copies, and does not fail if they
cannot be made.
"""

import logging
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage.object_storage import ObjectFolder

logger = logging.getLogger(__name__)

UPLOAD_INTERVAL_SECONDS = 15.0
"""The time between two uploads. If a machine is killed, at most this much of what it had stored is lost."""
_FILES = "files"

FileStamps = dict[str, tuple[int, int]]
"""File name -> time of modification in nanoseconds, and inode; both change if the file is replaced."""


@contextmanager
def mirror_scratch(objects: ObjectFolder, folder: Path) -> Iterator[None]:
    """Mirror a scratch folder while the block runs.

    If the folder does not exist on this machine, it is first filled with what another machine left at the URL. The
    copies are removed when the block ends without an error, and stay otherwise.

    Args:
        objects: where the copies are kept.
        folder: the scratch folder; it need not exist.

    Raises:
        StorageError: what another machine left cannot be downloaded. Starting from scratch would lose it.
    """
    uploaded = {} if folder.exists() else _download(objects, folder)
    uploader, finished = _Uploader(objects, folder, uploaded), threading.Event()

    def upload_until_finished() -> None:
        while not finished.wait(UPLOAD_INTERVAL_SECONDS):
            uploader.upload_changes()

    thread = threading.Thread(target=upload_until_finished, daemon=True)
    thread.start()
    try:
        yield
    except BaseException:
        finished.set()
        thread.join()
        uploader.upload_changes()
        raise
    finished.set()
    thread.join()
    try:
        objects.remove(_FILES)
    except StorageError as error:
        logger.warning("The copies of scratch files were not removed: %s", error)


class _Uploader:
    """Uploads each file that has changed since its last upload."""

    def __init__(self, objects: ObjectFolder, folder: Path, uploaded: FileStamps) -> None:
        self._objects, self._folder, self._uploaded = objects, folder, uploaded
        self._has_warned = False

    def upload_changes(self) -> None:
        stamps = _stamp_files(self._folder)
        for name in sorted(stamps):
            if self._uploaded.get(name) == stamps[name]:
                continue
            try:
                self._objects.upload(self._folder, [name], to=_FILES)
                self._uploaded[name], self._has_warned = stamps[name], False
            except FileNotFoundError:
                continue  # the stage has replaced or removed it meanwhile; a new file is uploaded the next time
            except (StorageError, OSError) as error:
                if not self._has_warned:
                    logger.warning("%s exists on this machine only, because it cannot be uploaded. %s", name, error)
                self._has_warned = True
                return


def _stamp_files(folder: Path) -> FileStamps:
    """Stamp the complete files of a folder. Hidden files, and files in hidden folders, are not mirrored."""
    stamps = {}
    with suppress(FileNotFoundError):  # the stage may remove files meanwhile; the rest is found the next time
        for path in folder.rglob("*"):
            name = path.relative_to(folder)
            is_hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not is_hidden and path.suffix != ".partial":
                status = path.stat()
                stamps[name.as_posix()] = (status.st_mtime_ns, status.st_ino)
    return stamps


def _download(objects: ObjectFolder, folder: Path) -> FileStamps:
    """Fill the folder with what another machine left, and return the stamps of those files."""
    names = [name.removeprefix(f"{_FILES}/") for name in objects.modification_times()]
    if not names:
        return {}
    # The folder must not exist before it is complete: if it did, the rest would never be downloaded.
    incomplete = folder.with_name(f".{folder.name}.arriving")
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir(parents=True)
    objects.download(names, incomplete, source=_FILES)
    incomplete.rename(folder)
    return _stamp_files(folder)
