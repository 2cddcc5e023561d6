"""Scratch folders are mirrored to a URL, where another machine finds them for its attempt."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage import AssetStore, object_storage, scratch_mirror
from tests.s3_server import S3Server


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.new_url()


def store_on_machine(tmp_path: Path, name: str, url: str) -> AssetStore:
    return AssetStore(tmp_path / name, "demo", url=url)


def run_and_fail(store: AssetStore, work: Callable[[Path], object]) -> None:
    """Do some work in the scratch folder, and then fail."""

    def failing() -> None:
        with store.scratch("recommender") as folder:
            work(folder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def write_files(**files: str) -> Callable[[Path], None]:
    """Return work that writes files; '__' in a name stands for '/'."""

    def work(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return work


def read_files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_another_machine_continues_after_a_failure(tmp_path: Path, s3: S3Server, url: str) -> None:
    """Another machine finds the same files except hidden ones; after it succeeds, no copies are left anywhere."""
    hidden = {".ranks__arrays": "for this machine only"}
    run_and_fail(
        store_on_machine(tmp_path, "first", url), write_files(checkpoint="epoch 3", key__part="rows", **hidden)
    )
    second = store_on_machine(tmp_path, "second", url)
    with second.scratch("recommender") as folder:
        assert read_files(folder) == {"checkpoint": "epoch 3", "key/part": "rows"}
    assert not folder.exists()
    assert not s3.names(url)
    with store_on_machine(tmp_path, "third", url).scratch("recommender") as folder:
        assert not folder.exists()


def test_local_files_take_precedence(tmp_path: Path, url: str) -> None:
    """A machine's own files are not overwritten by a download, and they are what the next machine finds."""
    first = store_on_machine(tmp_path, "first", url)
    run_and_fail(first, write_files(checkpoint="epoch 1"))
    run_and_fail(store_on_machine(tmp_path, "second", url), write_files(checkpoint="epoch 2"))
    found: list[dict[str, str]] = []
    run_and_fail(first, lambda folder: found.append(read_files(folder)))
    assert found == [{"checkpoint": "epoch 1"}]
    with store_on_machine(tmp_path, "third", url).scratch("recommender") as folder:
        assert read_files(folder) == {"checkpoint": "epoch 1"}


def test_incomplete_files_are_not_uploaded(
    tmp_path: Path, s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints and shards have special names until they are complete. An unchanged file is uploaded only once."""
    uploads: list[list[str]] = []
    upload = object_storage.ObjectFolder.upload

    def recording(self: object_storage.ObjectFolder, folder: Path, names: list[str], *, to: str) -> None:
        uploads.append(names)
        upload(self, folder, names, to=to)

    def work(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in ("checkpoint.partial", ".part.unfinished.parquet", "part.parquet"):
            (folder / name).write_text(name)
        time.sleep(0.2)

    monkeypatch.setattr(object_storage.ObjectFolder, "upload", recording)
    monkeypatch.setattr(scratch_mirror, "UPLOAD_INTERVAL_SECONDS", 0.01)
    run_and_fail(store_on_machine(tmp_path, "first", url), work)
    assert uploads == [["part.parquet"]]
    assert {name.rsplit("/", 1)[1] for name in s3.names(url)} == {"part.parquet"}


KILLED_WORKER = """
import os, signal, sys, time
from pathlib import Path
from macrec_pipeline.storage import AssetStore, scratch_mirror
from macrec_pipeline.storage.object_storage import ObjectFolder

scratch_mirror.UPLOAD_INTERVAL_SECONDS = 0.05
mirror = ObjectFolder(f"{sys.argv[2]}/demo/.scratch/recommender", resume_hint="")

def has_arrived(text):
    try:
        return mirror.read("files/checkpoint").decode() == text
    except FileNotFoundError:
        return False

with AssetStore(Path(sys.argv[1]), "demo", url=sys.argv[2]).scratch("recommender") as folder:
    folder.mkdir(parents=True)
    for epoch in (1, 2):
        (folder / "checkpoint.partial").write_text(f"epoch {epoch}")
        (folder / "checkpoint.partial").replace(folder / "checkpoint")
        while not has_arrived(f"epoch {epoch}"):
            time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_another_machine_continues_after_a_kill(tmp_path: Path, url: str) -> None:
    """Another machine finds the newest checkpoint that was uploaded before the kill -9."""
    command = [sys.executable, "-c", KILLED_WORKER, str(tmp_path / "first"), url]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    with store_on_machine(tmp_path, "second", url).scratch("recommender") as folder:
        assert read_files(folder) == {"checkpoint": "epoch 2"}


def test_an_unreachable_server_does_not_stop_the_work(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The work finishes, and one warning says that its files exist on this machine only."""

    attempts = []
    tried_twice = threading.Event()

    def refuse(*_: object, **__: object) -> None:
        attempts.append(1)
        if len(attempts) > 1:
            tried_twice.set()
        raise StorageError("the server does not answer")

    for name in ("upload", "remove"):
        monkeypatch.setattr(object_storage.ObjectFolder, name, refuse)
    monkeypatch.setattr(scratch_mirror, "UPLOAD_INTERVAL_SECONDS", 0.01)
    with store_on_machine(tmp_path, "first", url).scratch("recommender") as folder:
        write_files(checkpoint="epoch 1")(folder)
        assert tried_twice.wait(30)
    assert caplog.text.count("checkpoint exists on this machine only, because it cannot be uploaded. the server") == 1
    assert "The copies of scratch files were not removed" in caplog.text


def test_a_failed_download_is_an_error(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting from scratch would lose the earlier work, and an incomplete download must not be used."""
    run_and_fail(store_on_machine(tmp_path, "first", url), write_files(checkpoint="epoch 1", other="rows"))
    second = store_on_machine(tmp_path, "second", url)
    download = object_storage.ObjectFolder.download

    def incomplete(self: object_storage.ObjectFolder, names: list[str], folder: Path, *, source: str) -> None:
        download(self, names[:1], folder, source=source)
        raise StorageError("the server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.ObjectFolder, "download", incomplete)
        with pytest.raises(StorageError, match="does not answer"), second.scratch("recommender"):
            pytest.fail("the work must not start")
    with second.scratch("recommender") as folder:
        assert read_files(folder) == {"checkpoint": "epoch 1", "other": "rows"}


def test_a_home_without_a_url_is_not_mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt looks for the files in the home itself."""
    monkeypatch.setattr(scratch_mirror.threading, "Thread", None)
    with AssetStore(tmp_path, "demo").scratch("recommender") as folder:
        assert os.path.relpath(folder, tmp_path) == "demo/.scratch/recommender"
