"""What an asset says while it is materialized: metrics, tags and artifacts of its MLflow run.

In: values and files of a stage. Out: the child run's content; metrics are sent in batches, since one call a point
costs more than the step that it measures. What cannot be sent since the store is away waits in an `Outbox`. See `runs`
for when such a run begins and ends.
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

from macrec_pipeline.errors import StoreAwayError, TrackingError
from macrec_pipeline.tracking.outbox import Message, Outbox, deliver, impatient
from macrec_pipeline.tracking.store import TrackingStore

if TYPE_CHECKING:
    from mlflow.entities import Run

    from macrec_pipeline.runtime.progress import Progress

MAX_POINTS = 500
"""About how many points of a metric `metric_progress` lets through in one stage."""

_logger = logging.getLogger(__name__)
_METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,199}")
_BATCH_POINTS = 500
_BATCH_SECONDS = 5.0
_MAX_SHARE = 0.05  # of the time of training that may go into sending: a slow server gets larger batches
_FIRST_RETRY_SECONDS, _MAX_RETRY_SECONDS = 15.0, 600.0


class AssetRun:
    """The child run of one attempt at an asset; made by `Tracker.asset_run`."""

    def __init__(self, store: TrackingStore, run: Run, asset: str) -> None:
        self.run_id: str = run.info.run_id
        self.asset = asset
        self.url = f"{store.ui_url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        self._client = store.client
        self._outbox = Outbox(store, self.run_id)
        self._points: list[list[Any]] = []
        self._pause = _BATCH_SECONDS
        self._flush_at = time.monotonic() + self._pause
        self._away_until, self._retry_seconds = 0.0, _FIRST_RETRY_SECONDS
        self._left_out: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each metric; sent in batches, at the latest when the run ends.

        Args:
            metrics: name -> value; one that is not finite is left out, with a warning the first time.
            step: position on the metric's axis; None counts as 0.

        Raises:
            TrackingError: a name that MLflow does not take, as with `@`; use `hr_10`.
        """
        now = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            if not _METRIC_NAME.fullmatch(name):
                raise TrackingError(f"{self.asset}: {name!r} cannot name a metric. Use a-z, 0-9 and '_', as in hr_10.")
            if math.isfinite(value):
                self._points.append([name, float(value), now, step or 0])
            elif name not in self._left_out:
                self._left_out.add(name)
                _logger.warning("%s: metric %s is %s at step %s and is left out", self.asset, name, value, step)
        clock = time.monotonic()
        due = clock >= self._flush_at or (len(self._points) >= _BATCH_POINTS and self._pause == _BATCH_SECONDS)
        if due and clock >= self._away_until:
            self.try_to_flush()

    def log_params(self, params: Mapping[str, str]) -> None:
        """Keep parameters with the run. Raises `TrackingError`."""
        self._tell({"params": dict(params)}, "parameters")

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run. Raises `TrackingError`."""
        self._tell({"tags": {name: str(value) for name, value in tags.items()}}, "tags")

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with all it holds, to the run's artifacts, below `folder`.

        Raises:
            TrackingError: there is no such file, or the store refuses it.
        """
        if not path.exists():
            raise TrackingError(f"{self.asset}: {path} cannot be logged, since it is not there.")
        self._tell({"artifact": str(path), "folder": folder}, f"artifact {path.name}")

    def log_bytes(self, name: str, data: bytes) -> None:
        """Store bytes as the artifact `name`, which may hold folders: `plots/loss.png`. Raises `TrackingError`."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or not pure.name:
            raise TrackingError(f"{self.asset}: {name!r} cannot name an artifact: it must stay inside the run.")
        folder = None if len(pure.parts) == 1 else str(pure.parent)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, pure.name)
            path.write_bytes(data)
            self.log_artifact(path, folder)

    def log_text(self, name: str, text: str) -> None:
        """Store text as the artifact `name`. Raises `TrackingError`."""
        self.log_bytes(name, text.encode("utf-8"))

    def end(self, status: str) -> None:
        """Send all that waits, and close the run; what cannot be sent now is sent by the next run of the home.

        Raises:
            TrackingError: the store will not have it, or it is away and what is left cannot be written down either.
        """
        if status == "FINISHED":
            try:
                self.flush()
            except StoreAwayError as error:
                self._stay_away(error)
        else:
            self.try_to_flush()
        self._tell({"status": status, "time": time.time_ns() // 1_000_000}, "end of the MLflow run")
        if self._outbox:
            _logger.warning("%s: what MLflow was not told is in %s; the next run sends it.", self.asset, self._outbox)

    def flush(self) -> None:
        """Send every point that waits, and what could not be sent before.

        Raises:
            StoreAwayError: the store is away; all of it is written down.
            TrackingError: the store will not have it.
        """
        started = time.monotonic()
        message, self._points = {"metrics": self._points}, []
        try:
            self._outbox.send(what=f"{self.asset}: what waited")
            deliver(self._client, self.run_id, message, what=f"{self.asset}: metrics")
        except StoreAwayError:
            if message["metrics"]:
                self._write_down(message)
            raise
        self._pause = max(_BATCH_SECONDS, (time.monotonic() - started) / _MAX_SHARE)
        self._flush_at = time.monotonic() + self._pause
        self._away_until, self._retry_seconds = 0.0, _FIRST_RETRY_SECONDS

    def try_to_flush(self) -> None:
        """As `flush`, in five seconds at most; a store that is away costs a warning, and is asked again after a while.

        Hours of training must not end, nor last twice as long, because a tracking server is away.
        """
        try:
            with impatient():
                self.flush()
        except StoreAwayError as error:
            self._stay_away(error)
        except TrackingError as error:
            self._flush_at = time.monotonic() + self._pause
            _logger.warning("%s", error)

    def _tell(self, message: Message, what: str) -> None:
        """Tell the store now, or write it down for later."""
        if time.monotonic() >= self._away_until:
            try:
                deliver(self._client, self.run_id, message, what=f"{self.asset}: {what}")
                return
            except StoreAwayError as error:
                self._stay_away(error)
        self._outbox.add(message)

    def _stay_away(self, error: StoreAwayError) -> None:
        self._away_until = time.monotonic() + self._retry_seconds
        _logger.warning("%s; trying again in %.0f seconds", error, self._retry_seconds)
        self._retry_seconds = min(2 * self._retry_seconds, _MAX_RETRY_SECONDS)

    def _write_down(self, message: Message) -> None:
        try:
            self._outbox.add(message)
        except TrackingError as error:  # memory is what is left
            self._points = [*message["metrics"], *self._points]
            _logger.warning("%s", error)


def metric_progress(run: AssetRun, also: Progress) -> Progress:
    """A `Progress` that adds its metrics to a run, at step `done`, and then calls `also`.

    A metric gets about `MAX_POINTS` points a stage, evenly spaced, and always its last; the names are the stage's own.
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
