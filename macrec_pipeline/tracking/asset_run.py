"""The MLflow run of an asset that is being materialized: it receives metrics, parameters, tags and artifacts.

The input is values and files of a stage. They become the content of the child run. Metrics are sent in batches, because
one request per point would cost more time than the training step that it measures. Whatever cannot be sent because the
store is unavailable waits in an `Outbox`. The module `runs` describes when such a run starts and ends.
"""

from __future__ import annotations

import logging
import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from macrec_pipeline.errors import StoreUnavailableError, TrackingError
from macrec_pipeline.tracking.outbox import Message, Outbox, send_message, short_timeouts
from macrec_pipeline.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow.entities import Run

    from macrec_pipeline.runtime.progress import Progress

MAX_POINTS = 500
"""Approximate number of points per metric that `metric_progress` logs in one stage."""

_logger = logging.getLogger(__name__)
_METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,199}")
_BATCH_POINTS = 500
_BATCH_SECONDS = 5.0
_MAX_TIME_SHARE = 0.05  # share of the training time that may be spent on sending; a slow server gets larger batches
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 15.0, 600.0


class AssetRun:
    """The child run of one attempt to materialize an asset; created by `Tracker.asset_run`.

    Attributes:
        run_id: the id of the MLflow run.
        asset: the asset's name.
        url: the address of the run in MLflow's UI.
    """

    def __init__(self, store: TrackingStore, run: Run, asset: str) -> None:
        self.run_id: str = run.info.run_id
        self.asset = asset
        self.url = f"{store.ui_url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        self._client = store.client
        self._outbox = Outbox(store, self.run_id)
        self._points: list[list[Any]] = []
        self._batch_seconds = _BATCH_SECONDS
        self._flush_at = time.monotonic() + self._batch_seconds
        self._retry_at, self._retry_seconds = 0.0, _FIRST_RETRY_SECONDS
        self._skipped_metrics: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each metric. Points are sent in batches, at the latest when the run ends.

        Args:
            metrics: name -> value. A value that is not finite is skipped, with a warning the first time.
            step: position on the x axis of the metric; None means 0.

        Raises:
            TrackingError: MLflow does not accept a name, for example one with `@`; use `hr_10`.
        """
        now = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            if not _METRIC_NAME.fullmatch(name):
                raise TrackingError(
                    f"{self.asset}: {name!r} is not a valid name of a metric. Use letters, digits and '_', as in hr_10."
                )
            if math.isfinite(value):
                self._points.append([name, float(value), now, step or 0])
            elif name not in self._skipped_metrics:
                self._skipped_metrics.add(name)
                _logger.warning("%s: metric %s is %s at step %s and is skipped", self.asset, name, value, step)
        clock = time.monotonic()
        is_full = len(self._points) >= _BATCH_POINTS and self._batch_seconds == _BATCH_SECONDS
        if (clock >= self._flush_at or is_full) and clock >= self._retry_at:
            self.try_to_flush()

    def log_params(self, params: Mapping[str, str]) -> None:
        """Store parameters in the run. Raise `TrackingError`."""
        self._send_or_keep({"params": dict(params)}, "parameters")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run. Raise `TrackingError`."""
        self._send_or_keep({"tags": {name: str(value) for name, value in tags.items()}}, "tags")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with all its content, to the run's artifacts.

        Args:
            path: the file or folder.
            folder: the folder within the artifacts; None: the top level.

        Raises:
            TrackingError: the file does not exist, or the store rejects it.
        """
        if not path.exists():
            raise TrackingError(f"{self.asset}: {path} cannot be logged because it does not exist.")
        self._send_or_keep({"artifact": str(path), "folder": folder}, f"artifact {path.name}")

    def log_bytes(self, name: str, data: bytes) -> None:
        """Store bytes as the artifact `name`, which may contain folders: `plots/loss.png`. Raise `TrackingError`."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.name:
            raise TrackingError(
                f"{self.asset}: {name!r} is not a valid name of an artifact. Use a relative path without '..'."
            )
        folder = None if len(pure.parts) == 1 else str(pure.parent)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, pure.name)
            path.write_bytes(data)
            self.log_artifact(path, folder)

    def log_text(self, name: str, text: str) -> None:
        """Store text as the artifact `name`. Raise `TrackingError`."""
        self.log_bytes(name, text.encode("utf-8"))

    def end(self, status: str) -> None:
        """Send all waiting data and close the run. What cannot be sent now is sent by the next run of this home.

        Raises:
            TrackingError: the store rejects the data, or it is unavailable and the data cannot be written to disk.
        """
        if status == "FINISHED":
            try:
                self.flush()
            except StoreUnavailableError as error:
                self._postpone(error)
        else:
            self.try_to_flush()
        self._send_or_keep({"status": status, "time": time.time_ns() // 1_000_000}, "end of the MLflow run")
        if self._outbox:
            _logger.warning(
                "%s: data that could not be sent to MLflow is in %s; the next run sends it.", self.asset, self._outbox
            )

    def flush(self) -> None:
        """Send all waiting points, and everything that could not be sent before.

        Raises:
            StoreUnavailableError: the store is unavailable; the points are stored on disk.
            TrackingError: the store rejects the data.
        """
        started = time.monotonic()
        message, self._points = {"metrics": self._points}, []
        try:
            self._outbox.send(what=f"{self.asset}: unsent data")
            send_message(self._client, self.run_id, message, what=f"{self.asset}: metrics")
        except StoreUnavailableError:
            if message["metrics"]:
                self._keep_points(message)
            raise
        self._batch_seconds = max(_BATCH_SECONDS, (time.monotonic() - started) / _MAX_TIME_SHARE)
        self._flush_at = time.monotonic() + self._batch_seconds
        self._retry_at, self._retry_seconds = 0.0, _FIRST_RETRY_SECONDS

    def try_to_flush(self) -> None:
        """Flush with short timeouts. If the store is unavailable, log a warning and try again after a while.

        A tracking server that is unavailable must not end hours of training or slow it down noticeably.
        """
        try:
            with short_timeouts():
                self.flush()
        except StoreUnavailableError as error:
            self._postpone(error)
        except TrackingError as error:
            self._flush_at = time.monotonic() + self._batch_seconds
            _logger.warning("%s", error)

    def _send_or_keep(self, message: Message, what: str) -> None:
        """Send a message now or, if the store is unavailable, put it into the outbox."""
        if time.monotonic() >= self._retry_at:
            try:
                send_message(self._client, self.run_id, message, what=f"{self.asset}: {what}")
                return
            except StoreUnavailableError as error:
                self._postpone(error)
        self._outbox.add(message)

    def _postpone(self, error: StoreUnavailableError) -> None:
        self._retry_at = time.monotonic() + self._retry_seconds
        _logger.warning("%s; trying again in %.0f seconds", error, self._retry_seconds)
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)

    def _keep_points(self, message: Message) -> None:
        try:
            self._outbox.add(message)
        except TrackingError as error:  # the disk is unavailable too, so keep the points in memory
            self._points = [*message["metrics"], *self._points]
            _logger.warning("%s", error)


def metric_progress(run: AssetRun, also: Progress) -> Progress:
    """Create a `Progress` that logs its metrics to a run, at step `done`, and then calls `also`.

    Of each metric, about `MAX_POINTS` evenly spaced points per stage are logged, always including the last. The metrics
    keep the names that the stage reports.
    """
    last: dict[tuple[str, str], int] = {}

    def report(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        position = done * MAX_POINTS // total if total > MAX_POINTS else done
        due = {name: value for name, value in (metrics or {}).items() if last.get((stage, name)) != position}
        if due:
            last.update({(stage, name): position for name in due})
            run.log_metrics(due, step=done)
        also(stage, done, total, metrics)

    return report
