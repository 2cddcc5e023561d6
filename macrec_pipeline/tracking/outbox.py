"""Store on disk what a run could not send because the MLflow store was unavailable, and send it later.

The input is metrics, parameters, tags, artifacts and the end of a run. They reach the MLflow store once it is available
again. Until then they are kept in the home folder:

    <home>/mlflow/unsent/<run id>/messages.jsonl    one message per line, in the order in which they must be sent
    <home>/mlflow/unsent/<run id>/files/<n>/        copies of the artifacts
    <home>/mlflow/unsent/refused-<run id>/          messages that the store rejects permanently, for a person to inspect

Sending a message twice does no harm, so the files of a run are removed only after all of them have been sent.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macrec_pipeline.errors import StoreUnavailableError, TrackingError
from macrec_pipeline.tracking.store import TrackingStore, mlflow_folder, one_line_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

Message = Mapping[str, Any]
"""Has one of these sets of keys: "metrics", a list of [name, value, time in ms, step]; "params", a mapping; "tags", a
mapping; "artifact" and "folder", a path and its destination; "status" and "time" in ms, the end of the run."""

_REJECTED = "refused-"
_MESSAGES = "messages.jsonl"
_BATCH_SIZES = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow's limits per request
_SHORT_TIMEOUTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}

_logger = logging.getLogger(__name__)


def send_message(client: MlflowClient, run_id: str, message: Message, *, what: str) -> None:
    """Send a message to the MLflow store.

    Args:
        client: the client of the store.
        run_id: the run that the message is about.
        message: the content; see `Message`.
        what: the start of error messages.

    Raises:
        StoreUnavailableError: the store does not respond or is out of space; the message can be sent later.
        TrackingError: the store rejects the message permanently.
    """
    from mlflow.entities import Metric, Param, RunTag

    with one_line_errors(what):
        for points in _batches(message, "metrics"):
            client.log_batch(run_id, metrics=[Metric(*point) for point in points])
        for params in _batches(message, "params"):
            client.log_batch(run_id, params=[Param(*param) for param in params])
        for tags in _batches(message, "tags"):
            client.log_batch(run_id, tags=[RunTag(*tag) for tag in tags])
        if "artifact" in message:
            _send_artifact(client, run_id, Path(message["artifact"]), message["folder"], what=what)
        if "status" in message:
            client.set_terminated(run_id, message["status"], message["time"])


def _batches(message: Message, kind: str) -> Iterator[list[Any]]:
    entries = message.get(kind, [])
    entries = sorted(entries.items()) if isinstance(entries, Mapping) else entries
    for start in range(0, len(entries), _BATCH_SIZES[kind]):
        yield entries[start : start + _BATCH_SIZES[kind]]


def _send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None, *, what: str) -> None:
    log = client.log_artifacts if path.is_dir() else client.log_artifact
    try:
        log(run_id, str(path), artifact_path=folder)
    except OSError as error:  # a full disk or a broken connection: the exceptions of `requests` are OSErrors too
        raise StoreUnavailableError(f"{what}: {error}") from error


@contextmanager
def short_timeouts() -> Iterator[None]:
    """Wait only a few seconds for a server inside the block, because training waits meanwhile."""
    before = {name: os.environ.get(name) for name in _SHORT_TIMEOUTS}
    os.environ.update(_SHORT_TIMEOUTS)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Outbox:
    """The messages of one run that could not be sent yet. It is true if there are any."""

    def __init__(self, store: TrackingStore, run_id: str) -> None:
        self.folder = _unsent_folder(store.home) / run_id
        self._client, self._run_id = store.client, run_id

    def __str__(self) -> str:
        return str(self.folder)

    def __bool__(self) -> bool:
        return (self.folder / _MESSAGES).exists()

    def add(self, message: Message) -> None:
        """Store a message, with a copy of its artifact if it has one.

        Raises:
            TrackingError: the home folder cannot be written either.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if "artifact" in message:
                # Relative, because the home may be moved or copied before the message is sent.
                copy = self._copy(Path(message["artifact"])).relative_to(self.folder)
                message = {**message, "artifact": copy.as_posix()}
            with (self.folder / _MESSAGES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(message) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrackingError(
                f"The MLflow store is unavailable, and {error.filename or self.folder} cannot be written: "
                f"{error.strerror}. Free disk space, or restore the connection to the store."
            ) from error

    def send(self, *, what: str) -> None:
        """Send all messages in order and remove them.

        Messages that the store rejects permanently are moved aside with a warning.

        Args:
            what: the start of error messages.

        Raises:
            StoreUnavailableError: the store is still unavailable.
        """
        if not self:
            return
        try:
            for line in (self.folder / _MESSAGES).read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):  # the process was killed while it wrote the last line
                    message = self._with_present_path(json.loads(line))
                    send_message(self._client, self._run_id, message, what=what)
        except StoreUnavailableError:
            raise
        except TrackingError as error:
            rejected = self.folder.with_name(f"{_REJECTED}{self.folder.name}")
            shutil.rmtree(rejected, ignore_errors=True)
            _logger.warning("%s. The rejected data is kept in %s.", error, self.folder.rename(rejected))
        else:
            shutil.rmtree(self.folder)

    def _with_present_path(self, message: Message) -> Message:
        """Complete the path of an artifact. Earlier versions stored it with the folder that the home was in then."""
        if "artifact" not in message:
            return message
        inside = Path(message["artifact"]).parts
        if self.folder.name in inside:
            inside = inside[inside.index(self.folder.name) + 1 :]
        return {**message, "artifact": str(self.folder.joinpath(*inside))}

    def _copy(self, path: Path) -> Path:
        files = self.folder / "files"
        files.mkdir(exist_ok=True)
        destination = files / str(len(list(files.iterdir())))
        destination.mkdir()
        if path.is_dir():
            return Path(shutil.copytree(path, destination / path.name))
        return Path(shutil.copyfile(path, destination / path.name))


def send_pending(store: TrackingStore, *, is_alive: Callable[[str], bool]) -> None:
    """Send what runs of ended processes could not send. If the store is unavailable again, log a warning.

    Args:
        store: the store of the home whose outboxes are emptied.
        is_alive: tells by run id whether the process of a run still works, and so sends its own messages.
    """
    if not _unsent_folder(store.home).is_dir():
        return
    with store.lock("unsent"):
        for folder in sorted(_unsent_folder(store.home).iterdir()):
            if folder.name.startswith(_REJECTED) or is_alive(folder.name):
                continue
            try:
                Outbox(store, folder.name).send(what=f"MLflow run {folder.name}")
            except StoreUnavailableError as error:
                _logger.warning("%s. The next run tries again.", error)
                return


def _unsent_folder(home: Path) -> Path:
    return mlflow_folder(home) / "unsent"
