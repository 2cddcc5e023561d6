"""An S3 server for tests: moto, running on this machine. Each test uses a folder of its own in one bucket."""

import logging
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
from pyarrow import fs

KEYS = {
    "AWS_ACCESS_KEY_ID": "key-of-the-tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-the-tests",
    "AWS_REGION": "us-east-1",
}


@dataclass(frozen=True)
class S3Server:
    """A server that listens on loopback.

    Attributes:
        endpoint: the server's address.
        bucket: the bucket that exists on it.
    """

    endpoint: str
    bucket: str = "macrec"

    @property
    def environment(self) -> Mapping[str, str]:
        """The environment variables that a process needs to use the server."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint, "AWS_EC2_METADATA_DISABLED": "true"}

    @property
    def files(self) -> fs.FileSystem:
        """The server's content, bypassing the store."""
        return fs.S3FileSystem(
            access_key=KEYS["AWS_ACCESS_KEY_ID"],
            secret_key=KEYS["AWS_SECRET_ACCESS_KEY"],
            region="us-east-1",
            endpoint_override=self.endpoint,
            allow_bucket_creation=True,
        )

    def new_url(self) -> str:
        """Return the URL of a new, empty folder."""
        return f"s3://{self.bucket}/{uuid.uuid4().hex}/home"

    def names(self, url: str) -> set[str]:
        """Return the names of all files below a URL."""
        path = url.removeprefix("s3://")
        found = self.files.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
        return {info.path.removeprefix(f"{path}/") for info in found if info.is_file}

    def content(self, url: str) -> bytes:
        with self.files.open_input_stream(url.removeprefix("s3://")) as stream:
            return stream.read()

    def replace(self, url: str, content: bytes) -> None:
        with self.files.open_output_stream(url.removeprefix("s3://")) as stream:
            stream.write(content)

    def reject_all_keys(self) -> None:
        """From now on, treat every key as wrong."""
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()

    def accept_all_keys(self) -> None:
        request = urllib.request.Request(f"{self.endpoint}/moto-api/reset-auth", b"inf", {"Content-Type": "text/plain"})
        urllib.request.urlopen(request, timeout=10).close()


@contextmanager
def serving() -> Iterator[S3Server]:
    """Run a server with an empty bucket in threads of this process."""
    moto = pytest.importorskip("moto.server", reason="moto is not installed")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    thread = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    thread.start()
    try:
        host, port = thread.get_host_and_port()
        server = S3Server(f"http://{host}:{port}")
        server.files.create_dir(server.bucket)
        yield server
    finally:
        thread.stop()
