"""Assets at a URL: what lies there, what a kill leaves, what a reader sees meanwhile, and what goes wrong there."""

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

from macrec_pipeline.defs.retries import may_pass
from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage import AssetStore, embedding_table, object_storage, published_versions
from tests.s3_server import KEYS, S3Server

GO_ON = r"run `macrec run demo --resume`\.$"
AGAIN = r"run `macrec run demo`\.$"


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.new_url()


@pytest.fixture
def writer(tmp_path: Path, url: str) -> AssetStore:
    return AssetStore(tmp_path / "writer", "demo", url=url)


@pytest.fixture
def reader(tmp_path: Path, url: str) -> AssetStore:
    """On another machine: nothing but the URL is shared."""
    return AssetStore(tmp_path / "reader", "demo", url=url)


def write(store: AssetStore, text: str, **details: object) -> str:
    """A folder of two files; returns its digest."""
    with store.new_folder("quantizer", details=details) as folder:
        (folder / "weights").mkdir()
        (folder / "weights" / "model.bin").write_text(text)
        (folder / "config.json").write_text("{}")
    return store.manifest("quantizer").digest


def text_of(store: AssetStore) -> str:
    return (store.folder("quantizer") / "weights" / "model.bin").read_text()


def versions(s3: S3Server, url: str) -> set[str]:
    """What lies at the URL beside `current`."""
    return {name.split("/")[0] for name in s3.names(f"{url}/demo/quantizer")} - {"current"}


def test_what_lies_at_the_url(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str) -> None:
    """The documented names; the bytes are those that were written; another machine reads them by the URL alone."""
    digest = write(writer, "one", epochs=3)
    (version,) = versions(s3, url)
    assert version[:16] == digest[:16]
    assert s3.names(url) == {
        "demo/quantizer/current",
        *(f"demo/quantizer/{version}/{name}" for name in ("config.json", "manifest.json", "weights/model.bin")),
    }
    manifest = json.loads(s3.content(f"{url}/demo/quantizer/{version}/manifest.json"))
    assert manifest["files"]["weights/model.bin"] == hashlib.sha256(b"one").hexdigest()
    assert s3.content(f"{url}/demo/quantizer/{version}/weights/model.bin") == b"one"
    assert reader.manifest("quantizer").details == {"epochs": 3}
    assert text_of(reader) == "one"
    assert reader.address("quantizer") == f"{url}/demo/quantizer"
    assert reader.location("quantizer").resolve() == reader.folder("quantizer")


def test_the_versions_that_are_kept(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str) -> None:
    """The one that is served and the one with other content before it; equal content changes the details alone."""
    digests = [write(writer, "one")]
    length = len(s3.content(f"{url}/demo/quantizer/current"))
    digests += [write(writer, text) for text in ("two", "three")]
    assert len(s3.content(f"{url}/demo/quantizer/current")) == length, "its size is asked for before its bytes"
    assert {version[:16] for version in versions(s3, url)} == {digest[:16] for digest in digests[1:]}
    write(writer, "three", run=2)
    assert {version[:16] for version in versions(s3, url)} == {digest[:16] for digest in digests[1:]}
    assert reader.manifest("quantizer").details == {"run": 2}
    held = reader.folder("quantizer")
    write(writer, "four")
    assert text_of(reader) == "four"
    assert (held / "config.json").is_file(), "a copy that is being read stays until two newer ones are there"
    write(writer, "three")
    assert text_of(reader) == "three"
    assert reader.location("quantizer").resolve() == held


def test_what_is_there_is_not_copied_again(
    writer: AssetStore, reader: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither what was read before nor what this machine has written, nor anything for a manifest alone."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError

    write(writer, "one", run=1)
    assert text_of(reader) == "one"
    monkeypatch.setattr(object_storage.ObjectFolder, "download", refuse)
    write(writer, "one", run=2)
    assert text_of(reader) == text_of(writer) == "one"
    write(writer, "two")
    assert reader.has("quantizer")
    assert reader.manifest("quantizer").digest == writer.manifest("quantizer").digest
    with pytest.raises(AssertionError):
        reader.folder("quantizer")


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from macrec_pipeline.storage import AssetStore, objects, versions

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv[3]
if moment == "while files are copied":
    upload = objects.ObjectFolder.upload
    objects.ObjectFolder.upload = lambda self, folder, names, *, to: (upload(self, folder, names[:1], to=to), die())
elif moment == "before it is named":
    objects.ObjectFolder.write = die
elif moment == "after it was named":
    versions.AssetVersions._point = die
else:
    objects.ObjectFolder.remove = die
with AssetStore(Path(sys.argv[1]), "demo", url=sys.argv[2]).new_folder("quantizer") as folder:
    (folder / "weights").mkdir()
    (folder / "weights" / "model.bin").write_text("new")
    (folder / "config.json").write_text("{}")
"""


@pytest.mark.parametrize(
    ("moment", "served"),
    [
        ("while files are copied", "old"),
        ("before it is named", "old"),
        ("after it was named", "new"),
        ("while older ones are removed", "new"),
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
    served: str,
) -> None:
    """After kill -9 one whole version is served everywhere; what is left of the other is seen by nobody, and swept."""
    write(writer, "older")
    write(writer, "old")
    command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path / "writer"), url, moment]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert len(versions(s3, url)) == 3
    for store in (writer, reader):
        assert text_of(store) == served
        assert store.manifest("quantizer").digest.startswith(store.folder("quantizer").name)
    write(writer, "next")
    assert text_of(reader) == "next"
    assert len(versions(s3, url)) == 3, "another machine may be at it still, for all that this one knows"
    s3.replace(f"{url}/demo/quantizer/a-file-of-somebody/else", b"")
    # The server's clock counts whole seconds.
    monkeypatch.setattr(published_versions, "ABANDONED_AFTER", timedelta(seconds=-1))
    write(writer, "last")
    assert len(versions(s3, url) - {"a-file-of-somebody"}) == 2
    assert "a-file-of-somebody" in versions(s3, url)
    assert text_of(reader) == "last"
    assert not list((tmp_path / "writer").rglob("writing-*"))


KILLED_READER = """
import os, signal, sys
from pathlib import Path
from macrec_pipeline.storage import AssetStore, published

published.seal = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
AssetStore(Path(sys.argv[1]), "demo", url=sys.argv[2]).folder("quantizer")
"""


def test_a_killed_reader(writer: AssetStore, reader: AssetStore, url: str, tmp_path: Path) -> None:
    """What it had copied is not taken for a version, and goes with the next copy."""
    write(writer, "one")
    command = [sys.executable, "-c", KILLED_READER, str(tmp_path / "reader"), url]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    assert list((tmp_path / "reader").rglob("writing-*"))
    assert not reader.location("quantizer").exists()
    assert text_of(reader) == "one"
    assert not list((tmp_path / "reader").rglob("writing-*"))


def test_readers_at_once_copy_once(
    writer: AssetStore, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that come while a version is being copied wait for that copy."""
    write(writer, "one")
    copies = []
    download = object_storage.ObjectFolder.download

    def counted(self: object_storage.ObjectFolder, names: Iterable[str], folder: Path, *, of: str) -> None:
        copies.append(of)
        download(self, names, folder, of=of)

    monkeypatch.setattr(object_storage.ObjectFolder, "download", counted)
    with ThreadPoolExecutor(max_workers=4) as pool:
        stores = [AssetStore(tmp_path / "readers", "demo", url=url) for _ in range(4)]
        assert list(pool.map(text_of, stores)) == ["one"] * 4
    assert len(copies) == 1


def test_a_reader_during_republishing(writer: AssetStore, reader: AssetStore) -> None:
    """However often it is replaced: what is read is whole, one of those written, and never older than the last."""
    write(writer, "0" * 5000)
    seen: list[int] = []
    failed: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                text = text_of(reader)
                assert text == text[0] * 5000
                seen.append(ord(text[0]))
        except BaseException as error:  # told by the test's own thread
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
    assert text_of(reader) == chr(ord("0") + 29) * 5000


def test_a_version_that_is_removed_under_its_reader(
    writer: AssetStore, reader: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two newer ones are published between the reader's look at `current` and its copy: it reads the newest."""
    write(writer, "one")
    download = object_storage.ObjectFolder.download

    def slow(self: object_storage.ObjectFolder, names: Iterable[str], folder: Path, *, of: str) -> None:
        monkeypatch.setattr(object_storage.ObjectFolder, "download", download)
        write(writer, "two")
        write(writer, "three")
        download(self, names, folder, of=of)

    monkeypatch.setattr(object_storage.ObjectFolder, "download", slow)
    assert text_of(reader) == "three"


def test_two_machines_that_write_at_once(writer: AssetStore, reader: AssetStore) -> None:
    """Each publishes a version of its own; the last to end is served to both."""
    with writer.new_folder("quantizer") as slow:
        (slow / "a").write_text("slow")
        with reader.new_folder("quantizer") as fast:
            (fast / "a").write_text("fast")
        assert (writer.folder("quantizer") / "a").read_text() == "fast"
    for store in (writer, reader):
        assert (store.folder("quantizer") / "a").read_text() == "slow"


def flip(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "flipped": flip,
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "another": lambda _: b"something else",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["current", "manifest.json", "weights/model.bin"])
def test_a_damaged_object(
    writer: AssetStore, reader: AssetStore, s3: S3Server, url: str, name: str, damage: str
) -> None:
    """It is named by its URL, with what to run; nothing of it is kept on the machine, and writing again repairs it."""
    write(writer, "one")
    (version,) = versions(s3, url)
    place = f"{url}/demo/quantizer/{name if name == 'current' else f'{version}/{name}'}"
    s3.replace(place, DAMAGES[damage](s3.content(place)))
    with pytest.raises(StorageError, match=f"^{place} .*{AGAIN}"):
        reader.folder("quantizer")
    assert not reader.location("quantizer").exists()
    write(writer, "one")
    assert text_of(reader) == "one"


def test_a_table_of_vectors(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str) -> None:
    """It is read while it is verified: from a copy, and only if that is what was written."""
    items = pl.DataFrame({"item_index": [0, 1], "item_id": ["a", "b"]})
    vectors = np.arange(6, dtype=np.float32).reshape(2, 3)
    table = embedding_table(items, vectors=vectors, imputed=np.zeros(2, dtype=np.bool_))
    writer.write_table("text_embeddings", table)
    assert reader.read_table("text_embeddings").equals(table)
    writer.write_table("text_embeddings", table[:1])
    digest = reader.manifest("text_embeddings").digest
    (place,) = (name for name in s3.names(url) if f"/{digest[:16]}-" in name and name.endswith(".parquet"))
    s3.replace(f"{url}/{place}", flip(s3.content(f"{url}/{place}")))
    with pytest.raises(StorageError, match=f"^{url}/{place} was changed"):
        reader.read_table("text_embeddings")


@pytest.mark.parametrize("name", ["manifest.json", "weights/model.bin"])
def test_an_object_that_is_gone(writer: AssetStore, reader: AssetStore, s3: S3Server, url: str, name: str) -> None:
    """The version without it is named, and it is not taken for one that was replaced meanwhile."""
    write(writer, "one")
    (version,) = versions(s3, url)
    s3.files.delete_file(f"{url.removeprefix('s3://')}/demo/quantizer/{version}/{name}")
    with pytest.raises(StorageError, match=f"^{url}/demo/quantizer/{version} lacks a file .*{name}.*{AGAIN}"):
        reader.folder("quantizer")


def test_a_damaged_copy(writer: AssetStore, reader: AssetStore, url: str) -> None:
    """It is told as what it is: what lies at the URL is whole, and is copied again when the copy is removed."""
    write(writer, "one")
    (reader.folder("quantizer") / "config.json").write_text("changed")
    with pytest.raises(
        StorageError, match=rf"config\.json was changed .*copy of what is at {url}/demo/quantizer: remove"
    ):
        reader.folder("quantizer")
    for file in sorted(reader.location("quantizer").resolve().rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    reader.location("quantizer").resolve().rmdir()
    assert text_of(reader) == "one"


@pytest.mark.parametrize("name", ["../outside", "a/../../outside", "{outside}"])
def test_a_name_that_leads_out(
    writer: AssetStore, reader: AssetStore, s3: S3Server, url: str, name: str, tmp_path: Path
) -> None:
    """Whoever may write to the bucket can still not write elsewhere on the machine that reads."""
    name = name.format(outside=tmp_path / "outside")
    write(writer, "one")
    (version,) = versions(s3, url)
    files = {name: hashlib.sha256(b"x").hexdigest()}
    digest = hashlib.sha256(json.dumps(sorted(files.items())).encode()).hexdigest()
    own = f"{digest[:16]}-{version[17:]}"
    document = {"asset": "quantizer", "digest": digest, "files": files, "details": {}}
    s3.replace(f"{url}/demo/quantizer/{own}/manifest.json", json.dumps(document).encode())
    s3.replace(f"{url}/demo/quantizer/current", f"{own} {'-' * 49}\n".encode())
    with pytest.raises(StorageError, match="leads out of its folder"):
        reader.folder("quantizer")
    assert not list(tmp_path.rglob("outside"))


def fill(store: AssetStore) -> None:
    write(store, "one")


def look(store: AssetStore) -> None:
    store.manifest("quantizer")


@pytest.mark.parametrize("act", [fill, look])
def test_a_bucket_that_is_not_there(tmp_path: Path, s3: S3Server, act: Callable[[AssetStore], None]) -> None:
    """Not taken for an asset that was not made yet."""
    store = AssetStore(tmp_path, "demo", url="s3://nobucket/home")
    with pytest.raises(
        StorageError, match=rf"^s3://nobucket/home/demo/quantizer.*no bucket nobucket\. .*{GO_ON}"
    ) as told:
        act(store)
    assert not may_pass(told.value)


@pytest.mark.parametrize("act", [fill, look])
def test_keys_that_are_wrong(tmp_path: Path, s3: S3Server, url: str, act: Callable[[AssetStore], None]) -> None:
    """The URL and the variables are named, no key is."""
    s3.let_nobody_in()
    try:
        with pytest.raises(StorageError, match=rf"^{url}/.*not allow it .*AWS_ACCESS_KEY_ID.*{GO_ON}") as told:
            act(AssetStore(tmp_path, "demo", url=url))
    finally:
        s3.let_all_in()
    assert not may_pass(told.value)
    assert not any(key in f"{told.value!r} {told.value.__cause__!r}" for key in KEYS.values() if key != "us-east-1")


@pytest.mark.parametrize("act", [fill, look])
def test_a_server_that_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[AssetStore], None]
) -> None:
    """The error says where to look, and Dagster tries the step again later."""
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        for name, value in S3Server(f"http://127.0.0.1:{taken.getsockname()[1]}").environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError, match=rf"^s3://macrec/home/.*not answer.*AWS_ENDPOINT_URL.*{GO_ON}") as told:
            act(AssetStore(tmp_path, "demo", url="s3://macrec/home"))
    assert may_pass(told.value)
    assert not list(tmp_path.rglob("writing-*"))


def test_an_upload_that_fails_leaves_nothing(
    writer: AssetStore, s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was copied before the failure goes at once, and the version before is served on."""
    write(writer, "one")
    upload = object_storage.ObjectFolder.upload

    def failing(self: object_storage.ObjectFolder, folder: Path, names: list[str], *, to: str) -> None:
        upload(self, folder, names[:1], to=to)
        raise StorageError("the line is dead")

    monkeypatch.setattr(object_storage.ObjectFolder, "upload", failing)
    with pytest.raises(StorageError, match="the line is dead"):
        write(writer, "two")
    assert len(versions(s3, url)) == 1
    assert text_of(writer) == "one"


def test_a_disk_that_is_full_while_it_is_copied(
    writer: AssetStore, reader: AssetStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine's own disk is named, not the URL."""
    write(writer, "one")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.ObjectFolder, "download", refuse)
        with pytest.raises(StorageError, match=r"^quantizer cannot be stored: /.*No space"):
            reader.folder("quantizer")
    assert text_of(reader) == "one"


@pytest.mark.parametrize("scheme", ["nonsense", "fsspec+nonsense"])
def test_a_scheme_that_nobody_knows(tmp_path: Path, scheme: str) -> None:
    """One line, not a traceback."""
    with pytest.raises(
        StorageError, match=rf"^{re.escape(scheme)}://a/b/demo/quantizer cannot be used: .*s3://bucket/prefix"
    ):
        AssetStore(tmp_path, "demo", url=f"{scheme}://a/b").has("quantizer")


@pytest.mark.parametrize(
    ("code", "words", "passes"),
    [
        ("SLOW_DOWN", "does not answer", True),
        ("UNKNOWN (HTTP status 503)", "does not answer", True),
        ("INTERNAL_FAILURE", "does not answer", True),
        ("UNKNOWN (HTTP status 403)", "does not allow", False),
        ("SIGNATURE_DOES_NOT_MATCH", "does not allow", False),
        ("UNKNOWN (HTTP status 400)", r"UNKNOWN \(HTTP status 400\)", False),
    ],
)
def test_what_the_server_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str, passes: bool
) -> None:
    """What may pass by itself is tried again; the server's own words, which may repeat a key, are left out."""

    class Refusing:
        def open_input_stream(self, path: str) -> None:
            raise OSError(f"When reading {path}: AWS Error {code} during HeadObject operation: the key is hidden-key")

    monkeypatch.setattr(object_storage, "_s3", lambda _: Refusing())
    with pytest.raises(StorageError, match=words) as told:
        AssetStore(tmp_path, "demo", url="s3://macrec/home").has("quantizer")
    assert may_pass(told.value) is passes
    assert "hidden-key" not in str(told.value)
