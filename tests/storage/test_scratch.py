"""What a stage keeps for another attempt, where another machine finds it."""

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
from macrec_pipeline.storage import AssetStore, object_storage, scratch
from tests.s3_server import S3Server


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.new_url()


def machine(tmp_path: Path, name: str, url: str) -> AssetStore:
    return AssetStore(tmp_path / name, "demo", url=url)


def fail(store: AssetStore, work: Callable[[Path], object]) -> None:
    """Work that ends with an error."""

    def failing() -> None:
        with store.scratch("recommender") as folder:
            work(folder)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()


def writing(**files: str) -> Callable[[Path], None]:
    """Work that writes files; '__' in a name stands for '/'."""

    def work(folder: Path) -> None:
        for name, text in files.items():
            path = folder / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return work


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_another_machine_goes_on_where_one_failed(tmp_path: Path, s3: S3Server, url: str) -> None:
    """It finds the same files but for hidden ones; when it has succeeded, nothing is left of them anywhere."""
    hidden = {".ranks__arrays": "for this machine alone"}
    fail(machine(tmp_path, "first", url), writing(checkpoint="epoch 3", key__part="rows", **hidden))
    second = machine(tmp_path, "second", url)
    with second.scratch("recommender") as folder:
        assert content(folder) == {"checkpoint": "epoch 3", "key/part": "rows"}
    assert not folder.exists()
    assert not s3.names(url)
    with machine(tmp_path, "third", url).scratch("recommender") as folder:
        assert not folder.exists()


def test_what_this_machine_has_comes_first(tmp_path: Path, url: str) -> None:
    """Nothing is fetched over its own files, and they are what the next machine finds."""
    first = machine(tmp_path, "first", url)
    fail(first, writing(checkpoint="epoch 1"))
    fail(machine(tmp_path, "second", url), writing(checkpoint="epoch 2"))
    found: list[dict[str, str]] = []
    fail(first, lambda folder: found.append(content(folder)))
    assert found == [{"checkpoint": "epoch 1"}]
    with machine(tmp_path, "third", url).scratch("recommender") as folder:
        assert content(folder) == {"checkpoint": "epoch 1"}


def test_a_file_that_is_being_written_is_not_sent(
    tmp_path: Path, s3: S3Server, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the names that checkpoints and shards have until they are whole; one that did not change goes once."""
    sent: list[list[str]] = []
    upload = object_storage.ObjectFolder.upload

    def counted(self: object_storage.ObjectFolder, folder: Path, names: list[str], *, to: str) -> None:
        sent.append(names)
        upload(self, folder, names, to=to)

    def work(folder: Path) -> None:
        folder.mkdir(parents=True)
        for name in ("checkpoint.partial", ".part.unfinished.parquet", "part.parquet"):
            (folder / name).write_text(name)
        time.sleep(0.2)

    monkeypatch.setattr(object_storage.ObjectFolder, "upload", counted)
    monkeypatch.setattr(scratch, "SECONDS", 0.01)
    fail(machine(tmp_path, "first", url), work)
    assert sent == [["part.parquet"]]
    assert {name.rsplit("/", 1)[1] for name in s3.names(url)} == {"part.parquet"}


KILLED_WORKER = """
import os, signal, sys, time
from pathlib import Path
from macrec_pipeline.storage import AssetStore, scratch
from macrec_pipeline.storage.object_storage import ObjectFolder

scratch.SECONDS = 0.05
kept = ObjectFolder(f"{sys.argv[2]}/demo/.scratch/recommender", go_on="")

def has_arrived(text):
    try:
        return kept.read("files/checkpoint").decode() == text
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


def test_another_machine_goes_on_where_one_was_killed(tmp_path: Path, url: str) -> None:
    """The newest checkpoint that was sent before kill -9 is there."""
    command = [sys.executable, "-c", KILLED_WORKER, str(tmp_path / "first"), url]
    assert subprocess.run(command, timeout=60, check=False).returncode == -signal.SIGKILL
    with machine(tmp_path, "second", url).scratch("recommender") as folder:
        assert content(folder) == {"checkpoint": "epoch 2"}


def test_a_server_that_is_away_costs_no_work(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The work goes on and ends; a person is warned that its files are on this machine alone."""

    tries = []
    tried_twice = threading.Event()

    def refuse(*_: object, **__: object) -> None:
        tries.append(1)
        if len(tries) > 1:
            tried_twice.set()
        raise StorageError("the server does not answer")

    for name in ("upload", "remove"):
        monkeypatch.setattr(object_storage.ObjectFolder, name, refuse)
    monkeypatch.setattr(scratch, "SECONDS", 0.01)
    with machine(tmp_path, "first", url).scratch("recommender") as folder:
        writing(checkpoint="epoch 1")(folder)
        assert tried_twice.wait(30)
    assert caplog.text.count("checkpoint is kept on this machine alone. the server does not answer") == 1
    assert "What was kept for another attempt is left" in caplog.text


def test_what_was_left_must_be_fetched(tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To begin anew because a server is away would lose it; half of it is not taken for the whole."""
    fail(machine(tmp_path, "first", url), writing(checkpoint="epoch 1", other="rows"))
    second = machine(tmp_path, "second", url)
    download = object_storage.ObjectFolder.download

    def half(self: object_storage.ObjectFolder, names: list[str], folder: Path, *, of: str) -> None:
        download(self, names[:1], folder, of=of)
        raise StorageError("the server does not answer")

    with monkeypatch.context() as patch:
        patch.setattr(object_storage.ObjectFolder, "download", half)
        with pytest.raises(StorageError, match="does not answer"), second.scratch("recommender"):
            pytest.fail("the work must not begin")
    with second.scratch("recommender") as folder:
        assert content(folder) == {"checkpoint": "epoch 1", "other": "rows"}


def test_a_folder_home_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are where every attempt looks."""
    monkeypatch.setattr(scratch.threading, "Thread", None)
    with AssetStore(tmp_path, "demo").scratch("recommender") as folder:
        assert os.path.relpath(folder, tmp_path) == "demo/.scratch/recommender"
