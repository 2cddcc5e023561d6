"""Finds out whether another process on the same machine is still alive, by means of file locks.

A process holds the lock of a file while it works. The kernel releases the lock when the process ends for any reason,
but only a process that ends normally deletes the file. So a file with a free lock belongs to a process that died.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from pathlib import Path

from filelock import FileLock, Timeout


class ProcessState(Enum):
    """What a lock file says about the process that holds, or held, its lock."""

    ALIVE = auto()
    """Some process holds the lock."""
    DEAD = auto()
    """The file exists, but no process holds its lock: the process died before it could delete the file."""
    UNKNOWN = auto()
    """There is no file: the process ended normally, has not started, or runs on another machine."""


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock at `path` while the block runs, then delete the file. Raise `OSError` if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock(path)
    lock.acquire()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def process_state(path: Path) -> ProcessState:
    """Return the state of the process that holds, or held, the lock at `path`."""
    if not path.exists():
        return ProcessState.UNKNOWN
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return ProcessState.ALIVE
    lock.release()
    return ProcessState.DEAD


def _lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False)  # the holder may be another thread of this process
