"""Files at a URL: S3 through the client that pyarrow brings along, other places through what pyarrow knows of them.

In: `s3://bucket/prefix` and the usual variables, `AWS_ACCESS_KEY_ID` and the like, `AWS_ENDPOINT_URL` for another
server than Amazon's. Out: an `ObjectFolder` with what publishing needs. A file is there as a whole or not at all, and
is replaced as a whole: that is all that is asked of the place.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from macrec_pipeline.errors import MacrecError, StorageError

_PIECE = 8 * 2**20  # bytes
_AT_ONCE = 8  # files
_CONNECT_SECONDS, _SILENT_SECONDS = 5.0, 30.0  # of each of three attempts
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_AWAY = re.compile(r"NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|TIMEOUT|status 5\d\d")
_NOT_ALLOWED = re.compile(r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIALS|UNRECOGNIZED_CLIENT|status 40[13]")


class ObjectFolder:
    """The files below a URL.

    Args:
        url: the folder, `scheme://bucket/prefix`.
        go_on: the sentence that says what to run once an error is put right.
    """

    def __init__(self, url: str, *, go_on: str) -> None:
        self.url = url
        self._go_on = go_on
        scheme, self._path = url.split("://")
        if scheme == "s3":
            # The C++ client reads its keys from the environment by itself, but not the server's address.
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            self._bucket, self._system = self._path.split("/")[0], _s3(endpoint or None)
        else:
            self._bucket, (self._system, self._path) = "", _other(url)

    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            FileNotFoundError: there is none.
            StorageError: it cannot be read.
        """
        return b"".join(self._pieces(name))

    def write(self, name: str, content: bytes) -> None:
        """Put a small file in place, or in the place of the one before, in one request. Raises `StorageError`."""
        with self._errors_are_told("written", name), self._system.open_output_stream(f"{self._path}/{name}") as stream:
            stream.write(content)

    def upload(self, folder: Path, names: Iterable[str], *, to: str) -> None:
        """Copy files of a folder of this machine to below `to`. Raises `StorageError`."""

        def copy(name: str) -> None:
            with (
                (folder / name).open("rb") as source,
                self._errors_are_told("written", f"{to}/{name}"),
                self._system.open_output_stream(f"{self._path}/{to}/{name}") as stream,
            ):
                while piece := source.read(_PIECE):
                    stream.write(piece)

        _each(copy, names)

    def download(self, names: Iterable[str], folder: Path, *, of: str) -> None:
        """Copy files from below `of` into a folder of this machine.

        Raises:
            FileNotFoundError: one is not there.
            StorageError: one cannot be read, or its name leads out of the folder.
        """

        def copy(name: str) -> None:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise StorageError(f"{self.url}/{of} lists a file {name!r}, which leads out of its folder.")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for piece in self._pieces(f"{of}/{name}"):
                    file.write(piece)

        _each(copy, names)

    def written_at(self) -> dict[str, datetime]:
        """Every file -> when it was written, by the server's clock; now, where the place does not say."""
        with self._errors_are_told("listed"):
            below = fs.FileSelector(self._path, recursive=True, allow_not_found=True)
            found = [info for info in self._system.get_file_info(below) if info.is_file]
        return {info.path.removeprefix(f"{self._path}/"): info.mtime or datetime.now(UTC) for info in found}

    def remove(self, name: str) -> None:
        """Remove the folder `name` with its files, if it is there. Raises `StorageError`."""
        with suppress(FileNotFoundError), self._errors_are_told("removed", name):
            self._system.delete_dir(f"{self._path}/{name}")

    def _pieces(self, name: str) -> Iterator[bytes]:
        try:
            with self._errors_are_told("read", name), self._system.open_input_stream(f"{self._path}/{name}") as stream:
                while piece := stream.read(_PIECE):
                    yield piece
        except FileNotFoundError:
            self._require_bucket()
            raise

    def _require_bucket(self) -> None:
        """S3 answers alike for a file and for a bucket that is not there."""
        if self._bucket:
            with self._errors_are_told("read"):
                if self._system.get_file_info(self._bucket).type is fs.FileType.NotFound:
                    raise OSError("AWS Error NO_SUCH_BUCKET")

    @contextmanager
    def _errors_are_told(self, done: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except MacrecError:
            raise
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError) and not _AWS_ERROR.search(str(error)):
                raise
            place = f"{self.url}/{name}".rstrip("/")
            why, what_to_do, cause = self._explained(error)
            raise StorageError(f"{place} cannot be {done}: {why}. {what_to_do} {self._go_on}") from cause

    def _explained(self, error: Exception) -> tuple[str, str, Exception]:
        """Why, what to do, and the cause: one that may pass by itself is a `ConnectionError` (defs/retries)."""
        found = _AWS_ERROR.search(str(error))
        code = found[0].removeprefix("AWS Error ") if found else type(error).__name__
        if "NO_SUCH_BUCKET" in code:
            return f"there is no bucket {self._bucket}", "Make it, or correct MACREC_HOME.", error
        if _AWAY.search(code):
            return f"the server does not answer ({code})", "See whether it runs, and AWS_ENDPOINT_URL.", _away(error)
        if _NOT_ALLOWED.search(code):
            who = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to those of one who may."
            return f"the server does not allow it ({code})", who, error
        return code if found else str(error), "See whether MACREC_HOME and AWS_ENDPOINT_URL are right.", error


def _each(copy: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        list(pool.map(copy, names))


def _away(error: Exception) -> ConnectionError:
    away = ConnectionError(str(error))
    away.__cause__ = error
    return away


@lru_cache
def _s3(endpoint: str | None) -> fs.FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        allow_delayed_open=True,  # a small file is then one request
        connect_timeout=_CONNECT_SECONDS,
        request_timeout=_SILENT_SECONDS,
    )


def _other(url: str) -> tuple[fs.FileSystem, str]:
    try:
        system, path = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, ValueError, ImportError, OSError) as error:
        raise StorageError(f"{url} cannot be used: {error}. Set MACREC_HOME to one like s3://bucket/prefix.") from None
    return system, path
