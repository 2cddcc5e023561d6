"""Files below a URL: on S3 through pyarrow's own client, elsewhere through the file systems that pyarrow knows.

The input is a URL such as `s3://bucket/prefix`. S3 reads the usual variables: `AWS_ACCESS_KEY_ID` and the like, and
`AWS_ENDPOINT_URL` for a server other than Amazon's. The output is an `ObjectFolder` with the operations that publishing
needs. All it asks of the storage is that a file is written and replaced as a whole.
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

_PIECE_BYTES = 8 * 2**20
_PARALLEL_FILES = 8
# For each of three attempts.
_CONNECT_TIMEOUT_SECONDS, _REQUEST_TIMEOUT_SECONDS = 5.0, 30.0
_AWS_ERROR = re.compile(r"AWS Error (\w+)(?: \(HTTP status (\d+)\))?")
_UNAVAILABLE = re.compile(
    r"NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|TIMEOUT|status 5\d\d"
)
_FORBIDDEN = re.compile(r"ACCESS_DENIED|ACCESS_KEY|SIGNATURE|TOKEN|CREDENTIALS|UNRECOGNIZED_CLIENT|status 40[13]")


class ObjectFolder:
    """The files below a URL.

    Args:
        url: the folder, `scheme://bucket/prefix`.
        resume_hint: how to continue once an error is fixed, as the last sentence of error messages.
    """

    def __init__(self, url: str, *, resume_hint: str) -> None:
        self.url = url
        self._resume_hint = resume_hint
        scheme, self._path = url.split("://")
        if scheme == "s3":
            # The C++ client reads its keys from the environment, but not the server's address.
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
            self._bucket, self._file_system = self._path.split("/")[0], _s3_file_system(endpoint or None)
        else:
            self._bucket, (self._file_system, self._path) = "", _other_file_system(url)

    def read(self, name: str) -> bytes:
        """Return the content of a small file.

        Raises:
            FileNotFoundError: there is no such file.
            StorageError: the file cannot be read.
        """
        return b"".join(self._read_pieces(name))

    def write(self, name: str, content: bytes) -> None:
        """Write or replace a small file with a single request.

        Raises:
            StorageError: the file cannot be written.
        """
        path = f"{self._path}/{name}"
        with self._errors_as_storage_errors("written", name), self._file_system.open_output_stream(path) as stream:
            stream.write(content)

    def upload(self, folder: Path, names: Iterable[str], *, to: str) -> None:
        """Copy files from a folder of this machine into the subfolder `to`.

        Raises:
            FileNotFoundError: a file does not exist on this machine.
            StorageError: a file cannot be written.
        """

        def copy(name: str) -> None:
            with (
                (folder / name).open("rb") as source,
                self._errors_as_storage_errors("written", f"{to}/{name}"),
                self._file_system.open_output_stream(f"{self._path}/{to}/{name}") as stream,
            ):
                while piece := source.read(_PIECE_BYTES):
                    stream.write(piece)

        _copy_in_parallel(copy, names)

    def download(self, names: Iterable[str], folder: Path, *, source: str) -> None:
        """Copy files from the subfolder `source` into a folder of this machine.

        Raises:
            FileNotFoundError: a file does not exist.
            StorageError: a file cannot be read, or its name leads out of the folder.
        """

        def copy(name: str) -> None:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts:
                raise StorageError(f"{self.url}/{source} lists a file {name!r}, which leads out of its folder.")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                for piece in self._read_pieces(f"{source}/{name}"):
                    file.write(piece)

        _copy_in_parallel(copy, names)

    def modification_times(self) -> dict[str, datetime]:
        """Return file name -> when it was last written, by the server's clock; now, if the storage does not say."""
        with self._errors_as_storage_errors("listed"):
            selector = fs.FileSelector(self._path, recursive=True, allow_not_found=True)
            files = [info for info in self._file_system.get_file_info(selector) if info.is_file]
        return {info.path.removeprefix(f"{self._path}/"): info.mtime or datetime.now(UTC) for info in files}

    def remove(self, name: str) -> None:
        """Remove the subfolder `name` with its files, if it exists.

        Raises:
            StorageError: the subfolder cannot be removed.
        """
        with suppress(FileNotFoundError), self._errors_as_storage_errors("removed", name):
            self._file_system.delete_dir(f"{self._path}/{name}")

    def _read_pieces(self, name: str) -> Iterator[bytes]:
        path = f"{self._path}/{name}"
        try:
            with self._errors_as_storage_errors("read", name), self._file_system.open_input_stream(path) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    yield piece
        except FileNotFoundError:
            self._require_bucket()
            raise

    def _require_bucket(self) -> None:
        """Raise if the bucket does not exist: S3 gives the same answer for a missing file and a missing bucket."""
        if self._bucket:
            with self._errors_as_storage_errors("read"):
                if self._file_system.get_file_info(self._bucket).type is fs.FileType.NotFound:
                    raise OSError("AWS Error NO_SUCH_BUCKET")

    @contextmanager
    def _errors_as_storage_errors(self, action: str, name: str = "") -> Iterator[None]:
        try:
            yield
        except MacrecError:
            raise
        except (OSError, pa.ArrowException) as error:
            if isinstance(error, FileNotFoundError) and not _AWS_ERROR.search(str(error)):
                raise
            address = f"{self.url}/{name}".rstrip("/")
            problem, remedy, cause = self._explain(error)
            raise StorageError(f"{address} cannot be {action}: {problem}. {remedy} {self._resume_hint}") from cause

    def _explain(self, error: Exception) -> tuple[str, str, Exception]:
        """Return the problem, what to do about it, and the cause.

        The cause of an error that may be temporary is a `ConnectionError`, by which `defs.retries` recognizes it. The
        server's own message is left out, since it may repeat a key.
        """
        found = _AWS_ERROR.search(str(error))
        code = found[0].removeprefix("AWS Error ") if found else type(error).__name__
        if "NO_SUCH_BUCKET" in code:
            return f"there is no bucket {self._bucket}", "Create it, or correct MACREC_HOME.", error
        if _UNAVAILABLE.search(code):
            remedy = "Check that the server is running and that AWS_ENDPOINT_URL is correct."
            return f"the server does not answer ({code})", remedy, _as_connection_error(error)
        if _FORBIDDEN.search(code):
            remedy = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to an account with access."
            return f"the server denies access ({code})", remedy, error
        return code if found else str(error), "Check that MACREC_HOME and AWS_ENDPOINT_URL are correct.", error


def _copy_in_parallel(copy: Callable[[str], None], names: Iterable[str]) -> None:
    with ThreadPoolExecutor(max_workers=_PARALLEL_FILES) as pool:
        list(pool.map(copy, names))


def _as_connection_error(error: Exception) -> ConnectionError:
    connection_error = ConnectionError(str(error))
    connection_error.__cause__ = error
    return connection_error


@lru_cache
def _s3_file_system(endpoint: str | None) -> fs.FileSystem:
    return fs.S3FileSystem(
        endpoint_override=endpoint,
        allow_delayed_open=True,  # so that a small file takes a single request
        connect_timeout=_CONNECT_TIMEOUT_SECONDS,
        request_timeout=_REQUEST_TIMEOUT_SECONDS,
    )


def _other_file_system(url: str) -> tuple[fs.FileSystem, str]:
    try:
        file_system, path = fs.FileSystem.from_uri(url)
    except (pa.ArrowException, ValueError, ImportError, OSError) as error:
        raise StorageError(
            f"{url} cannot be used: {error}. Set MACREC_HOME to a URL such as s3://bucket/prefix."
        ) from None
    return file_system, path
