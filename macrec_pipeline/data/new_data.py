"""Detect new content in source files, once the files are complete.

A sensor calls `find_changed_files` again and again with the result of the previous call. The content of the files is
read only when a size, a modification time or an inode has changed, and only after two calls in a row saw the same
state, so that a file that is still being copied is not used.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FileStates = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class KnownFiles:
    """What previous calls found out about some files.

    Attributes:
        seen: path, size, modification time in nanoseconds and inode of each file at the last call.
        read: the same when the content was last read.
        digest: SHA-256 of that content, in hexadecimal; empty before the content is first read.
        arrivals: how many times new content was found.
    """

    seen: FileStates = ()
    read: FileStates = ()
    digest: str = ""
    arrivals: int = 0

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> "KnownFiles":
        """Return what `to_json` wrote, or an empty state for None."""
        if not text:
            return cls()
        fields = json.loads(text)
        states = {name: tuple(tuple(file) for file in fields[name]) for name in ("seen", "read")}
        return cls(**{**fields, **states})


def find_changed_files(files: Sequence[Path], known: KnownFiles) -> tuple[KnownFiles, bool]:
    """Check files for new content.

    Args:
        files: the files, which must exist.
        known: the result of the previous call.

    Returns:
        The new state, and whether its digest is that of new content. Content is new if it differs from the last content
        that was read, and the files have not changed since the previous call.

    Raises:
        OSError: a file no longer exists, or cannot be read.
    """
    states = _file_states(files)
    if states == known.read or states != known.seen:
        return replace(known, seen=states), False
    digest = _digest(files)
    if _file_states(files) != states:
        return replace(known, seen=()), False
    if digest == known.digest:
        return replace(known, read=states), False
    return KnownFiles(states, states, digest, known.arrivals + 1), True


def _file_states(files: Sequence[Path]) -> FileStates:
    stats = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)


def _digest(files: Sequence[Path]) -> str:
    hashes = []
    for path in files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
