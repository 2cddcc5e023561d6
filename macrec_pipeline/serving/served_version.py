"""One version of the model, served by a process of its own (`model_process`)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.serving import model_process
from macrec_pipeline.serving.model_process import Limits, Message, pack, unpack

_STOP_SECONDS = 10.0
# Python options of the model process: not the folder of the script, and not the packages of the user, on the path.
_ISOLATION = ("-P", "-s")


@dataclass(frozen=True)
class ModelFacts:
    """What the service knows about a version.

    Attributes:
        version: the number of the registered version.
        digest: SHA-256 of its bundle, hexadecimal.
        num_items: the number of items that it knows.
        routes: its retrieval routes.
    """

    version: int
    digest: str
    num_items: int
    routes: tuple[str, ...]


class ServedVersion:
    """A running model process.

    Args:
        process: the started process.
        facts: about the version.
    """

    def __init__(self, process: subprocess.Popen[bytes], facts: ModelFacts) -> None:
        self._process, self.facts = process, facts
        self._lock = threading.Lock()

    @staticmethod
    def start(
        folder: Path, *, version: int, digest: str, limits: Limits, threads: int, load_seconds: float
    ) -> ServedVersion:
        """Start a process with the model of a folder, and wait until it has answered its canary request.

        Raises:
            TrackingError: the model cannot be loaded, does not answer, or takes longer than `load_seconds`.
        """
        command = [sys.executable, *_ISOLATION, str(Path(model_process.__file__).resolve()), str(folder)]
        command += ["--limits", _json_of(limits), "--threads", str(threads)]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        process = subprocess.Popen(  # noqa: S603, the command is this package's own
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        timer = threading.Timer(load_seconds, process.kill)
        timer.start()
        try:
            assert process.stdout is not None
            report = unpack(process.stdout)
        except EOFError:
            report = None
        finally:
            timer.cancel()
        head: dict[str, Any] = report[0].head if report else {}
        if head.get("state") != model_process.READY:
            process.kill()
            _close(process)
            reason = head.get("error") or f"it did not answer within {load_seconds:g} seconds"
            raise TrackingError(f"Version {version} cannot be served: {reason}")
        canary = head["canary"]
        facts = ModelFacts(version, digest, canary["num_items"], tuple(canary["routes"]))
        return ServedVersion(process, facts)

    def answer(self, requests: Sequence[Message]) -> list[Message]:
        """Answer a batch of requests, in order.

        Raises:
            TrackingError: the process has ended.
        """
        with self._lock:
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            try:
                self._process.stdin.write(pack(requests))
                self._process.stdin.flush()
                responses = unpack(self._process.stdout)
            except (OSError, EOFError, ValueError):
                responses = None
            if responses is None:
                raise TrackingError(f"The process of version {self.facts.version} has ended.")
            return responses

    @property
    def process_id(self) -> int:
        """The process ID of the model process."""
        return self._process.pid

    def is_running(self) -> bool:
        """Tell whether the process is alive."""
        return self._process.poll() is None

    def stop(self) -> None:
        """End the process once it has answered the batch at hand."""
        with self._lock:
            _close(self._process)


def _close(process: subprocess.Popen[bytes]) -> None:
    """Tell a process that there is nothing more to do, wait for its end, and release its pipes."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(OSError):  # it may have ended with a batch unread
        process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def _json_of(limits: Limits) -> str:
    return json.dumps(asdict(limits))
