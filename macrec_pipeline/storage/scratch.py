"""What a stage keeps while it works, sent to a URL behind it, so that another machine can go on where this one died.

In: a folder of this machine in which files are replaced as a whole: checkpoints, finished shards. Out: the same files
at the URL, some seconds later. The stage never waits for that, and does not fail for it.
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

SECONDS = 15.0
"""Between two looks at the folder: about what a killed machine loses beside what it had not written itself."""
_FILES = "files"

Stamps = dict[str, tuple[int, int]]
"""File -> when it was written, in ns, and its inode."""


@contextmanager
def kept_at(objects: ObjectFolder, folder: Path) -> Iterator[None]:
    """Around the work: begin with what another machine has left, if this one has nothing; send what changes.

    What was sent goes when the block ends without an error, and stays otherwise.

    Args:
        objects: where it is kept.
        folder: that the work fills; it need not be there.

    Raises:
        StorageError: what was left cannot be fetched. To begin anew would be to lose it.
    """
    sent = {} if folder.exists() else _fetched(objects, folder)
    changes, done = _Changes(objects, folder, sent), threading.Event()

    def send_until_done() -> None:
        while not done.wait(SECONDS):
            changes.send()

    sender = threading.Thread(target=send_until_done, daemon=True)
    sender.start()
    try:
        yield
    except BaseException:
        done.set()
        sender.join()
        changes.send()
        raise
    done.set()
    sender.join()
    try:
        objects.remove(_FILES)
    except StorageError as error:
        logger.warning("What was kept for another attempt is left: %s", error)


class _Changes:
    """Sends each file that is not the one that was sent last."""

    def __init__(self, objects: ObjectFolder, folder: Path, sent: Stamps) -> None:
        self._objects, self._folder, self._sent = objects, folder, sent
        self._told = False

    def send(self) -> None:
        stamps = _stamps(self._folder)
        for name in sorted(stamps):
            if self._sent.get(name) == stamps[name]:
                continue
            try:
                self._objects.upload(self._folder, [name], to=_FILES)
                self._sent[name], self._told = stamps[name], False
            except FileNotFoundError:
                continue  # the work has replaced or removed it: what came after is sent the next time
            except (StorageError, OSError) as error:
                if not self._told:
                    logger.warning("%s is kept on this machine alone. %s", name, error)
                self._told = True
                return


def _stamps(folder: Path) -> Stamps:
    """Those of a folder's files that are no longer being written; what is hidden, or in a hidden folder, stays here."""
    stamps = {}
    with suppress(FileNotFoundError):  # the work removes some meanwhile: the others are seen the next time
        for path in folder.rglob("*"):
            name = path.relative_to(folder)
            hidden = any(part.startswith(".") for part in name.parts)
            if path.is_file() and not hidden and path.suffix != ".partial":
                status = path.stat()
                stamps[name.as_posix()] = (status.st_mtime_ns, status.st_ino)
    return stamps


def _fetched(objects: ObjectFolder, folder: Path) -> Stamps:
    """The stamps of what another machine has left, which now is in the folder."""
    names = [name.removeprefix(f"{_FILES}/") for name in objects.written_at()]
    if not names:
        return {}
    # Complete, or not there: half of it would keep the rest from being fetched again.
    arriving = folder.with_name(f".{folder.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    arriving.mkdir(parents=True)
    objects.download(names, arriving, of=_FILES)
    arriving.rename(folder)
    return _stamps(folder)
