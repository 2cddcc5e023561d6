"""Files below the data folder: found and opened, or reported in one line that says what to do."""

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from macrec_pipeline.errors import DataError, MissingFileError

_GZIP_MAGIC = b"\x1f\x8b"


def require_file(data_dir: Path, relative: str, *, what: str) -> Path:
    """The path of a file of the data folder.

    Args:
        data_dir: the data folder (`MACREC_DATA`).
        relative: path below it, as the data set's YAML file says.
        what: the setting that names the file, for the message.

    Raises:
        MissingFileError: there is nothing, or a folder.
    """
    path = data_dir / relative
    if path.is_file():
        return path
    found = "is a folder, not a file" if path.is_dir() else "is not there"
    raise MissingFileError(
        f"{path} {found} ({what}). Put the file there, or set MACREC_DATA to the folder that holds {relative} "
        f"(now {data_dir})."
    )


def require_file_or_gz(data_dir: Path, relative: str, *, what: str) -> tuple[Path, str]:
    """The path of a file or of the same name with `.gz`, and its path below the data folder.

    Raises:
        MissingFileError: neither is there.
    """
    for name in (relative, f"{relative}.gz"):
        if (data_dir / name).is_file():
            return data_dir / name, name
    return require_file(data_dir, relative, what=f"{what}; {relative}.gz would do as well"), relative


@contextmanager
def open_unpacked(path: Path) -> Iterator[IO[bytes]]:
    """The unpacked bytes of a plain or gzip file; whoever reads them meets only errors of this package."""
    try:
        with path.open("rb") as raw:
            packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        with gzip.open(path, "rb") if packed else path.open("rb") as stream:
            yield cast(IO[bytes], stream)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}. Copy it again, or check its permissions.") from None
