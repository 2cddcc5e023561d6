"""Whether files hold something new, and are whole: asked again and again by whoever waits for new raw data.

In: files, and what was known at the last look. Out: what is known now, and the digest of new content once nobody has
touched the files from one look to the next. Content is read only when a size, a time or an inode has changed.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

State = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class KnownFiles:
    """What is known of some files.

    Attributes:
        seen: (path, size, time of the last write in nanoseconds, inode) a file at the last look.
        read: the same when their content was read last.
        digest: SHA-256 of that content, in hexadecimal; empty before the first time.
        arrivals: how often there was something new.
    """

    seen: State = ()
    read: State = ()
    digest: str = ""
    arrivals: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | None) -> "KnownFiles":
        """What `to_json` wrote; nothing is known of None."""
        if not text:
            return cls()
        fields = json.loads(text)
        states = {name: tuple(tuple(file) for file in fields[name]) for name in ("seen", "read")}
        return cls(**{**fields, **states})


def find_changed_files(files: Sequence[Path], known: KnownFiles) -> tuple[KnownFiles, bool]:
    """Look at some files again.

    Args:
        files: each must be there.
        known: what the look before gave.

    Returns:
        What is known now, and whether its digest is of content that is new: other than before, and the same files as at
        the look before, so that a copy that is under way is not taken.

    Raises:
        OSError: a file has gone, or cannot be read.
    """
    state = _state(files)
    if state == known.read or state != known.seen:
        return replace(known, seen=state), False
    digest = _digest(files)
    if _state(files) != state:
        return replace(known, seen=()), False
    if digest == known.digest:
        return replace(known, read=state), False
    return KnownFiles(state, state, digest, known.arrivals + 1), True


def _state(files: Sequence[Path]) -> State:
    stats = [(path, path.stat()) for path in files]
    return tuple((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ino) for path, stat in stats)


def _digest(files: Sequence[Path]) -> str:
    hashes = []
    for path in files:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(json.dumps(hashes).encode()).hexdigest()
