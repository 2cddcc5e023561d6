"""What a run has to say while the MLflow store is away: written down beside the home's store, and sent later.

In: metrics, parameters, tags, artifacts and the end of a run. Out: the same in the store, once it is back.

    <home>/mlflow/unsent/<run id>/messages.jsonl    one message a line, in the order in which they were to be sent
    <home>/mlflow/unsent/<run id>/files/<n>/        copies of the artifacts
    <home>/mlflow/unsent/refused-<run id>/          a run whose messages the store will never take, for a person to see

To send a message twice does no harm, so a file is removed only when all of it has arrived.
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

from macrec_pipeline.errors import StoreAwayError, TrackingError
from macrec_pipeline.tracking.store import TrackingStore, mlflow_folder, one_line_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

Message = Mapping[str, Any]
"""One of: metrics [[name, value, time in ms, step]]; params {}; tags {}; artifact (a path), folder; status, time."""

_REFUSED = "refused-"
_MESSAGES = "messages.jsonl"
_BATCH = {"metrics": 1000, "params": 100, "tags": 100}  # MLflow takes no more at once
_IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}

_logger = logging.getLogger(__name__)


def deliver(client: MlflowClient, run_id: str, message: Message, *, what: str) -> None:
    """Tell the store.

    Raises:
        StoreAwayError: it does not answer, or has no room; the message can be sent later.
        TrackingError: it will never take this.
    """
    from mlflow.entities import Metric, Param, RunTag

    with one_line_errors(what):
        for point in _parts(message, "metrics"):
            client.log_batch(run_id, metrics=[Metric(*each) for each in point])
        for params in _parts(message, "params"):
            client.log_batch(run_id, params=[Param(*each) for each in params])
        for tags in _parts(message, "tags"):
            client.log_batch(run_id, tags=[RunTag(*each) for each in tags])
        if "artifact" in message:
            _deliver_artifact(client, run_id, Path(message["artifact"]), message["folder"], what=what)
        if "status" in message:
            client.set_terminated(run_id, message["status"], message["time"])


def _parts(message: Message, kind: str) -> Iterator[list[Any]]:
    entries = message.get(kind, [])
    entries = sorted(entries.items()) if isinstance(entries, Mapping) else entries
    for start in range(0, len(entries), _BATCH[kind]):
        yield entries[start : start + _BATCH[kind]]


def _deliver_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None, *, what: str) -> None:
    send = client.log_artifacts if path.is_dir() else client.log_artifact
    try:
        send(run_id, str(path), artifact_path=folder)
    except OSError as error:  # a full disk, or a connection: those of `requests` are OSErrors too
        raise StoreAwayError(f"{what}: {error}") from error


@contextmanager
def impatient() -> Iterator[None]:
    """Inside, a server that does not answer costs five seconds: training waits meanwhile."""
    before = {name: os.environ.get(name) for name in _IMPATIENT}
    os.environ.update(_IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Outbox:
    """The messages of one run that could not be sent."""

    def __init__(self, store: TrackingStore, run_id: str) -> None:
        self.folder = _unsent(store.home) / run_id
        self._client, self._run_id = store.client, run_id

    def __str__(self) -> str:
        return str(self.folder)

    def __bool__(self) -> bool:
        return (self.folder / _MESSAGES).exists()

    def add(self, message: Message) -> None:
        """Write a message down, with a copy of its file if it has one. Raises `TrackingError`: no room here either."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if "artifact" in message:
                message = {**message, "artifact": str(self._copy(Path(message["artifact"])))}
            with (self.folder / _MESSAGES).open("a", encoding="utf-8") as file:
                file.write(json.dumps(message) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise TrackingError(
                f"The MLflow store is away, and {error.filename or self.folder} cannot be written: {error.strerror}."
            ) from error

    def send(self, *, what: str) -> None:
        """Send everything, in order, and forget it; what the store will never take is set aside, with a warning.

        Raises:
            StoreAwayError: the store is still away.
        """
        if not self:
            return
        try:
            for line in (self.folder / _MESSAGES).read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):  # the process was killed while it wrote the last line
                    deliver(self._client, self._run_id, json.loads(line), what=what)
        except StoreAwayError:
            raise
        except TrackingError as error:
            aside = self.folder.with_name(f"{_REFUSED}{self.folder.name}")
            shutil.rmtree(aside, ignore_errors=True)
            _logger.warning("%s. What it had to say is kept in %s.", error, self.folder.rename(aside))
        else:
            shutil.rmtree(self.folder)

    def _copy(self, path: Path) -> Path:
        files = self.folder / "files"
        files.mkdir(exist_ok=True)
        place = files / str(len(list(files.iterdir())))
        place.mkdir()
        if path.is_dir():
            return Path(shutil.copytree(path, place / path.name))
        return Path(shutil.copyfile(path, place / path.name))


def send_unsent(store: TrackingStore, *, is_alive: Callable[[str], bool]) -> None:
    """Send what runs of processes that ended could not. A store that is away again costs a warning.

    Args:
        store: of the home whose outboxes are emptied.
        is_alive: tells the ids of the runs that still see to it themselves.
    """
    if not _unsent(store.home).is_dir():
        return
    with store.lock("unsent"):
        for folder in sorted(_unsent(store.home).iterdir()):
            if folder.name.startswith(_REFUSED) or is_alive(folder.name):
                continue
            try:
                Outbox(store, folder.name).send(what=f"MLflow run {folder.name}")
            except StoreAwayError as error:
                _logger.warning("%s. The next run tries again.", error)
                return


def _unsent(home: Path) -> Path:
    return mlflow_folder(home) / "unsent"
