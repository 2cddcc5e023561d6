"""A disk that refuses, told in one line, whichever library was writing.

In: what polars, pyarrow, safetensors or Python raise when a disk is full, read-only or broken. Out: a `StorageError`
that names the file and what to run.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from macrec_pipeline.errors import MacrecError, StorageError

_REFUSALS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
# Libraries in Rust and C++ leave the number in the message alone.
_IN_WORDS = re.compile(r"\b(?:os error|errno) (\d+)", re.IGNORECASE)


@contextmanager
def refusals_are_told(asset: str, place: Path, *, remedy: str) -> Iterator[None]:
    """Around a block that writes.

    Args:
        asset: what is written.
        place: named if the error itself names no file.
        remedy: the sentence at the end.

    Raises:
        StorageError: the disk refused.
    """
    try:
        yield
    except MacrecError:
        raise
    except Exception as error:
        number = _number(error)
        if number not in _REFUSALS:
            raise
        file = getattr(error, "filename", None) or place
        raise StorageError(f"{asset} cannot be stored: {file}: {os.strerror(number)}. {remedy}") from error


def _number(error: Exception) -> int:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = _IN_WORDS.search(str(error))
    return int(found[1]) if found else 0
