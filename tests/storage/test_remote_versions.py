"""Assets at a URL: the files there, kills, concurrent readers and writers, and damage and errors."""

import errno
import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.defs.retries import is_transient
from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage import AssetStore, embedding_table, object_storage, remote_versions
from tests.s3_server import KEYS, S3Server

RESUME = r"run `macrec run demo --resume`\.$"
REBUILD = r"run `macrec run demo`\.$"


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.new_url()


@pytest.fixture
def writer(tmp_path: Path, url: str) -> AssetStore:
    return AssetStore(tmp_path / "writer", "demo", url=url)


@pytest.fixture
def reader(tmp_path: Path, url: str) -> AssetStore:
    """A store on another machine, which shares only the URL."""
    return AssetStore(tmp_path / "reader", "demo", url=url)


def write(store: AssetStore, text: str, **details: object) -> str:
    """Write an asset of two files and return its digest."""
    with store.new_folder("quantizer", details=details) as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "model.bin").write_text(text)
        (folder / "config.json").write_text("{}")
    return store.manifest("quantizer").digest


def read_text(store: AssetStore) -> str:
    return (store.folder("quantizer") / "weights" / "model.bin").read_text()


def stored_versions(s3: S3Server, url: str) -> set[str]:
    """Return the names of the asset's folders at the URL."""
    return {name.split("/")[0] for name in s3.names(f"{url}/demo/quantizer")} - {"current"}


def test_the_files_at_the_url(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str) -> None:
    """Files at the URL have the documented names and the written bytes; the URL is enough to read them elsewhere."""
    digest = write(writer, "one", epochs=3)
    (version,) = stored_versions(s3, url)
    assert version[:16] == digest[:16]
    assert s3.names(url) == {
        "demo/quantizer/current",
        *(f"demo/quantizer/{version}/{name}" for name in ("config.json", "manifest.json", "weights/model.bin")),
    }
    manifest = json.loads(s3.content(f"{url}/demo/quantizer/{version}/manifest.json"))
    assert manifest["files"]["weights/model.bin"] == hashlib.sha256(b"one").hexdigest()
    assert s3.content(f"{url}/demo/quantizer/{version}/weights/model.bin") == b"one"
    assert reader.manifest("quantizer").details == {"epochs": 3}
    assert read_text(reader) == "one"
    assert reader.address("quantizer") == f"{url}/demo/quantizer"
    assert reader.location("quantizer").resolve() == reader.folder("quantizer")


def test_the_versions_that_are_kept(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str) -> None:
    """The current and the previous version are kept; writing equal content changes the details only."""
    digests = [write(writer, "one")]
    length = len(s3.content(f"{url}/demo/quantizer/current"))
    digests += [write(writer, text) for text in ("two", "three")]
    assert len(s3.content(f"{url}/demo/quantizer/current")) == length, "its length is read before its bytes"
    assert {version[:16] for version in stored_versions(s3, url)} == {digest[:16] for digest in digests[1:]}
    write(writer, "three", run=2)
    assert {version[:16] for version in stored_versions(s3, url)} == {digest[:16] for digest in digests[1:]}
    assert reader.manifest("quantizer").details == {"run": 2}
    third_folder = reader.folder("quantizer")
    write(writer, "four")
    assert read_text(reader) == "four"
    assert (third_folder / "config.json").is_file(), "a copy in use is kept until there are two newer ones"
    write(writer, "three")
    assert read_text(reader) == "three"
    assert reader.location("quantizer").resolve() == third_folder


def test_local_copies_are_reused(writer: AssetStore, reader: AssetStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded that was read or written on this machine before, and nothing for a manifest alone."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    write(writer, "one", run=1)
    assert read_text(reader) == "one"
    monkeypatch.setattr(object_storage.ObjectFolder, "download", refuse)
    write(writer, "one", run=2)
    assert read_text(reader) == read_text(writer) == "one"
    write(writer, "two")
    assert reader.has("quantizer")
    assert reader.manifest("quantizer").digest == writer.manifest("quantizer").digest
    with pytest.raises(AssertionError):
        reader.folder("quantizer")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from macrec_pipeline.storage import AssetStore, object_storage, versions

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv[3]
if moment == "while files are uploaded":
    upload = object_storage.ObjectFolder.upload
    object_storage.ObjectFolder.upload = lambda *arguments, to: (upload(*arguments[:2], arguments[2][:1], to=to), die())
elif moment == "before current is replaced":
    object_storage.ObjectFolder.write = die
elif moment == "after current was replaced":
    versions.AssetVersions._point = die
else:
    object_storage.ObjectFolder.remove = die
with AssetStore(Path(sys.argv[1]), "demo", url=sys.argv[2]).new_folder("quantizer") as folder:
    (folder / "weights").mkdir()
    (folder / "weights" / "model.bin").write_text("new")
    (folder / "config.json").write_text("{}")
"""


@pytest.mark.parametrize(
    ("moment", "current"),
    [
        ("while files are uploaded", "old"),
        ("before current is replaced", "old"),
        ("after current was replaced", "new"),
        ("while old versions are removed", "new"),
    ],
)
def test_a_killed_writer(
    writer: AssetStore,
    reader: AssetStore,
    s3: S3Server,
    url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    current: str,
) -> None:
    """After a kill -9 all machines see one complete version; leftovers are never read, and are removed later."""
    write(writer, "older")
    write(writer, "old")
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "writer"), url, moment]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert len(stored_versions(s3, url)) == 3
    for store in (writer, reader):
        assert read_text(store) == current
        assert store.manifest("quantizer").digest.startswith(store.folder("quantizer").name)
    write(writer, "next")
    assert read_text(reader) == "next"
    assert len(stored_versions(s3, url)) == 3, "another machine might still be uploading the leftover version"
    s3.replace(f"{url}/demo/quantizer/unrelated-folder/else", b"")
    # The server's clock counts whole seconds, so a version may have an age of zero.
    monkeypatch.setattr(remote_versions, "ABANDONED_AFTER", timedelta(seconds=-1))
    write(writer, "last")
    assert len(stored_versions(s3, url) - {"unrelated-folder"}) == 2
    assert "unrelated-folder" in stored_versions(s3, url)
    assert read_text(reader) == "last"
    assert not list((tmp_path / "writer").rglob("writing-*"))


KILLED_READER = """
import os, signal, sys
from pathlib import Path
from macrec_pipeline.storage import AssetStore, remote_versions

remote_versions.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
AssetStore(Path(sys.argv[1]), "demo", url=sys.argv[2]).folder("quantizer")
"""


def test_a_killed_reader(writer: AssetStore, reader: AssetStore, url: str, tmp_path: Path) -> None:
    """The incomplete copy of a killed reader is not taken for a version, and the next download removes it."""
    write(writer, "one")
    command = [sys.executable, "-c", KILLED_READER, str(tmp_path / "reader"), url]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "reader").rglob("writing-*"))
    assert not reader.location("quantizer").exists()
    assert read_text(reader) == "one"
    assert not list((tmp_path / "reader").rglob("writing-*"))


def test_concurrent_readers_download_once(
    writer: AssetStore, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers that arrive while a version is being downloaded wait for that copy."""
    write(writer, "one")
    downloads = []
    download = object_storage.ObjectFolder.download

    def counting(self: object_storage.ObjectFolder, names: Iterable[str], folder: Path, *, source: str) -> None:
        downloads.append(source)
        download(self, names, folder, source=source)

    monkeypatch.setattr(object_storage.ObjectFolder, "download", counting)
    with ThreadPoolExecutor(max_workers=4) as pool:
        stores = [AssetStore(tmp_path / "readers", "demo", url=url) for _ in range(4)]
        assert list(pool.map(read_text, stores)) == ["one"] * 4
    assert len(downloads) == 1


def test_a_reader_during_republishing(writer: AssetStore, reader: AssetStore) -> None:
    """However often the version is replaced, a reader gets a complete one, and never an older one than before."""
    write(writer, "0" * 5000)
    seen: list[int] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                text = read_text(reader)
                assert text == text[0] * 5000
                seen.append(ord(text[0]))
        except BaseException as error:  # checked in the main thread
            failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(1, 30):
        write(writer, chr(ord("0") + number) * 5000)
    done.set()
    thread.join(30)
    assert not failed
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    assert read_text(reader) == chr(ord("0") + 29) * 5000


def test_a_version_that_is_removed_while_it_is_read(
    writer: AssetStore, reader: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If two versions are published after the reader has read `current`, the reader gets the newest."""
    write(writer, "one")
    download = object_storage.ObjectFolder.download

    def overtaken(self: object_storage.ObjectFolder, names: Iterable[str], folder: Path, *, source: str) -> None:
        monkeypatch.setattr(object_storage.ObjectFolder, "download", download)
        write(writer, "two")
        write(writer, "three")
        download(self, names, folder, source=source)

    monkeypatch.setattr(object_storage.ObjectFolder, "download", overtaken)
    assert read_text(reader) == "three"


def test_two_machines_that_write_concurrently(writer: AssetStore, reader: AssetStore) -> None:
    """Each publishes its own version, and both then see that of the last to finish."""
    with writer.new_folder("quantizer") as slow:
        (slow / "a").write_text("slow")
        with reader.new_folder("quantizer") as fast:
            (fast / "a").write_text("fast")
        assert (writer.folder("quantizer") / "a").read_text() == "fast"
    for store in (writer, reader):
        assert (store.folder("quantizer") / "a").read_text() == "slow"


def flip_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flip_bit,
    "truncated": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "replaced": lambda _: b"something else",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["current", "manifest.json", "weights/model.bin"])
def test_a_damaged_object(
    writer: AssetStore, reader: AssetStore, s3: S3Server, url: str, name: str, damage: str
) -> None:
    """The error names its URL and the command to run; no copy of it is kept, and writing again repairs it."""
    write(writer, "one")
    (version,) = stored_versions(s3, url)
    place = f"{url}/demo/quantizer/{name if name == 'current' else f'{version}/{name}'}"
    s3.replace(place, DAMAGES[damage](s3.content(place)))
    with pytest.raises(StorageError, match=f"^{place} .*{REBUILD}"):
        reader.folder("quantizer")
    assert not reader.location("quantizer").exists()
    write(writer, "one")
    assert read_text(reader) == "one"


def test_a_table_of_vectors(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str) -> None:
    """A table of vectors is read from a local copy, and only if the copy is what was written."""
    items = pl.DataFrame({"item_index": [0, 1], "item_id": ["a", "b"]})
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = embedding_table(items, vectors=vectors, imputed=np.zeros(2, dtype=np.bool_))
    writer.write_table("text_embeddings", table)
    assert reader.read_table("text_embeddings").equals(table)
    writer.write_table("text_embeddings", table[:1])
    digest = reader.manifest("text_embeddings").digest
    (place,) = (name for name in s3.names(url) if f"/{digest[:16]}-" in name and name.endswith(".parquet"))
    s3.replace(f"{url}/{place}", flip_bit(s3.content(f"{url}/{place}")))
    with pytest.raises(StorageError, match=f"^{url}/{place} was changed"):
        reader.read_table("text_embeddings")


@pytest.mark.parametrize("name", ["manifest.json", "weights/model.bin"])
def test_a_missing_object(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str, name: str) -> None:
    """The error names the version and the missing file; it is not taken for a version that was replaced meanwhile."""
    write(writer, "one")
    (version,) = stored_versions(s3, url)
    s3.files.delete_file(f"{url.removeprefix('s3://')}/demo/quantizer/{version}/{name}")
    with pytest.raises(
        StorageError, match=f"^{url}/demo/quantizer/{version} lacks a file of the version: .*{name}.*{REBUILD}"
    ):
        reader.folder("quantizer")


def test_a_damaged_copy(writer: AssetStore, reader: AssetStore, url: str) -> None:
    """The error says that only the local copy is damaged; once the copy is removed, it is downloaded again."""
    write(writer, "one")
    (reader.folder("quantizer") / "config.json").write_text("changed")
    with pytest.raises(StorageError, match=rf"config\.json was changed .*copy of {url}/demo/quantizer: remove"):
        reader.folder("quantizer")
    for file in sorted(reader.location("quantizer").resolve().rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    reader.location("quantizer").resolve().rmdir()
    assert read_text(reader) == "one"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{outside}"])
def test_a_file_name_that_leads_out_of_the_folder(
    writer: AssetStore, reader: AssetStore, s3: S3Server, url: str, name: str, tmp_path: Path
) -> None:
    """Someone with write access to the bucket cannot write to other places on a machine that reads from it."""
    name = name.format(outside=tmp_path / "outside")
    write(writer, "one")
    (version,) = stored_versions(s3, url)
    files = {name: hashlib.sha256(b"x").hexdigest()}
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    forged = f"{digest[:16]}-{version[17:]}"
    document = {"asset": "quantizer", "digest": digest, "files": files, "details": {}}
    s3.replace(f"{url}/demo/quantizer/{forged}/manifest.json", json.dumps(document).encode())
    s3.replace(f"{url}/demo/quantizer/current", f"{forged} {'-' * 49}\n".encode())
    with pytest.raises(StorageError, match="leads out of its folder"):
        reader.folder("quantizer")
    assert not list(tmp_path.rglob("outside"))


def write_asset(store: AssetStore) -> None:
    write(store, "one")


def read_manifest(store: AssetStore) -> None:
    store.manifest("quantizer")


@pytest.mark.parametrize("access", [write_asset, read_manifest])
def test_a_bucket_that_does_not_exist(tmp_path: Path, s3: S3Server, access: Callable[[AssetStore], None]) -> None:
    """A missing bucket is an error, and is not taken for an asset that does not exist yet."""
    store = AssetStore(tmp_path, "demo", url="s3://nobucket/home")
    with pytest.raises(
        StorageError, match=rf"^s3://nobucket/home/demo/quantizer.*no bucket nobucket\. .*{RESUME}"
    ) as error:
        access(store)
    assert not is_transient(error.value)


@pytest.mark.parametrize("access", [write_asset, read_manifest])
def test_wrong_keys(tmp_path: Path, s3: S3Server, url: str, access: Callable[[AssetStore], None]) -> None:
    """The error names the URL and the variables, but no key."""
    s3.reject_all_keys()
    try:
        with pytest.raises(StorageError, match=rf"^{url}/.*denies access .*AWS_ACCESS_KEY_ID.*{RESUME}") as error:
            access(AssetStore(tmp_path, "demo", url=url))
    finally:
        s3.accept_all_keys()
    assert not is_transient(error.value)
    assert not any(key in f"{error.value!r} {error.value.__cause__!r}" for key in KEYS.values() if key != "us-east-1")


@pytest.mark.parametrize("access", [write_asset, read_manifest])
def test_a_server_that_is_unreachable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, access: Callable[[AssetStore], None]
) -> None:
    """The error says what to check, and Dagster retries the step later."""
    with socket.socket() as unused:  # bound to a port, but not listening
        unused.bind(("127.0.0.1", 0))
        for name, value in S3Server(f"http://127.0.0.1:{unused.getsockname()[1]}").environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=rf"^s3://macrec/home/.*not answer.*AWS_ENDPOINT_URL.*{RESUME}") as error:
            access(AssetStore(tmp_path, "demo", url="s3://macrec/home"))
    assert is_transient(error.value)
    assert not list(tmp_path.rglob("writing-*"))


def test_an_upload_that_fails_leaves_nothing(
    writer: AssetStore, s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files that were uploaded before the failure are removed, and the version before stays current."""
    write(writer, "one")
    upload = object_storage.ObjectFolder.upload

    def failing(self: object_storage.ObjectFolder, folder: Path, names: list[str], *, to: str) -> None:
        upload(self, folder, names[:1], to=to)
        raise StorageError("the connection is lost")

    monkeypatch.setattr(object_storage.ObjectFolder, "upload", failing)
    with pytest.raises(StorageError, match="the connection is lost"):
        write(writer, "two")
    assert len(stored_versions(s3, url)) == 1
    assert read_text(writer) == "one"


def test_a_disk_that_is_full_during_a_download(
    writer: AssetStore, reader: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the path on the machine's disk, not the URL."""
    write(writer, "one")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.ObjectFolder, "download", refuse)
        with pytest.raises(StorageError, match=r"^quantizer cannot be stored: /.*No space"):
            reader.folder("quantizer")
    assert read_text(reader) == "one"


@pytest.mark.parametrize("scheme", ["nonsense", "fsspec+nonsense"])
def test_an_unknown_scheme(tmp_path: Path, scheme: str) -> None:
    """The error names the URL and an example of a valid one."""
    with pytest.raises(
        StorageError, match=rf"^{re.escape(scheme)}://a/b/demo/quantizer cannot be used: .*s3://bucket/prefix"
    ):
        AssetStore(tmp_path, "demo", url=f"{scheme}://a/b").has("quantizer")


@pytest.mark.parametrize(
    ("code", "message", "transient"),
    [
        ("SLOW_DOWN", "does not answer", True),
        ("UNKNOWN (HTTP status 503)", "does not answer", True),
        ("INTERNAL_FAILURE", "does not answer", True),
        ("UNKNOWN (HTTP status 403)", "denies access", False),
        ("SIGNATURE_DOES_NOT_MATCH", "denies access", False),
        ("UNKNOWN (HTTP status 400)", r"UNKNOWN \(HTTP status 400\)", False),
    ],
)
def test_error_codes_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str, transient: bool
) -> None:
    """Transient errors are retried. The server's own message is left out, because it may repeat a key."""

    class Refusing:
        def open_input_stream(self, path: str) -> None:
            raise OSError(f"When reading {path}: AWS Error {code} during HeadObject operation: the key is hidden-key")

    monkeypatch.setattr(object_storage, "_s3_file_system", lambda _: Refusing())
    with pytest.raises(StorageError, match=message) as error:
        AssetStore(tmp_path, "demo", url="s3://macrec/home").has("quantizer")
    assert is_transient(error.value) is transient
    assert "hidden-key" not in str(error.value)
