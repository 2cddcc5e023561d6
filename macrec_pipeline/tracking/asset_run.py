"""What an asset says while it is materialized: metrics, tags and artifacts of its MLflow run.

In: values and files of a stage. Out: the child run's content; metrics are sent in batches, since one call a point
costs more than the step that it measures. See `runs` for when such a run begins and ends.
"""

from __future__ import annotations

import logging
import math
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.store import TrackingStore, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run

    from macrec_pipeline.runtime.progress import Progress

MAX_POINTS = 500
"""About how many points of a metric `metric_progress` lets through in one stage."""

_logger = logging.getLogger(__name__)
_METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./ -]{0,199}")
_BATCH_POINTS = 500
_BATCH_SECONDS = 5.0
_RETRY_SECONDS = 60.0
_MAX_BUFFERED = 20_000


class AssetRun:
    """The child run of one attempt at an asset; made by `Tracker.asset_run`."""

    def __init__(self, store: TrackingStore, run: Run, asset: str) -> None:
        self.run_id: str = run.info.run_id
        self.asset = asset
        self.url = f"{store.ui_url}/#/experiments/{run.info.experiment_id}/runs/{run.info.run_id}"
        self._client = store.client
        self._points: list[Metric] = []
        self._flush_at = time.monotonic() + _BATCH_SECONDS
        self._away_until = 0.0
        self._left_out: set[str] = set()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add a point to each metric; sent in batches, at the latest when the run ends.

        Args:
            metrics: name -> value; one that is not finite is left out, with a warning the first time.
            step: position on the metric's axis; None counts as 0.

        Raises:
            TrackingError: a name that MLflow does not take, as with `@`; use `hr_10`.
        """
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        for name, value in metrics.items():
            if not _METRIC_NAME.fullmatch(name):
                raise TrackingError(f"{self.asset}: {name!r} cannot name a metric. Use a-z, 0-9 and '_', as in hr_10.")
            if math.isfinite(value):
                self._points.append(Metric(name, float(value), now, step or 0))
            elif name not in self._left_out:
                self._left_out.add(name)
                _logger.warning("%s: metric %s is %s at step %s and is left out", self.asset, name, value, step)
        clock = time.monotonic()
        if clock >= self._away_until and (len(self._points) >= _BATCH_POINTS or clock >= self._flush_at):
            self.try_to_flush()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run. Raises `TrackingError`."""
        from mlflow.entities import RunTag

        with one_line_errors(f"{self.asset}: tags"):
            self._client.log_batch(self.run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Copy a file, or a folder with all it holds, to the run's artifacts, below `folder`.

        Raises:
            TrackingError: there is no such file, or the store refuses it.
        """
        if not path.exists():
            raise TrackingError(f"{self.asset}: {path} cannot be logged, since it is not there.")
        with one_line_errors(f"{self.asset}: artifact {path.name}"):
            if path.is_dir():
                self._client.log_artifacts(self.run_id, str(path), artifact_path=folder)
            else:
                self._client.log_artifact(self.run_id, str(path), artifact_path=folder)

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

    def flush(self) -> None:
        """Send every point that waits. Raises `TrackingError`; the points then wait on."""
        while self._points:
            batch = self._points[:1000]  # MLflow takes no more at once
            with one_line_errors(f"{self.asset}: metrics"):
                self._client.log_batch(self.run_id, metrics=batch)
            del self._points[: len(batch)]
        self._flush_at = time.monotonic() + _BATCH_SECONDS

    def try_to_flush(self) -> None:
        """Send every point that waits; a store that is away costs a warning, and the points wait on.

        Hours of training must not end because a tracking server is away for a moment.
        """
        try:
            self.flush()
        except TrackingError as error:
            self._away_until = time.monotonic() + _RETRY_SECONDS
            _logger.warning("%s; trying again in %.0f seconds", error, _RETRY_SECONDS)
            del self._points[:-_MAX_BUFFERED]


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
