"""Runs: one parent a pipeline run, one child an attempt at an asset.

In: what an asset measures and makes while it is materialized. Out: MLflow runs in the experiment `macrec/<dataset>`.
A parent is found again by the tag `dagster.run_id`, under a lock, since the assets of one pipeline run are made by
several processes. A living child holds a lock of its own, so that a later process can tell a child that was killed
from one that is still at work.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from filelock import FileLock, Timeout

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.asset_run import AssetRun
from macrec_pipeline.tracking.git_commit import git_commit
from macrec_pipeline.tracking.outbox import send_unsent
from macrec_pipeline.tracking.store import TrackingStore, mlflow_folder, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

    from macrec_pipeline.config import PipelineConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]

MAX_PARAM_LENGTH = 500
"""Characters of a parameter's value; `config.json` holds it whole."""

_logger = logging.getLogger(__name__)
_RUN_ID = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_MAX_ERROR_LENGTH = 1000


@contextmanager
def asset_run(
    store: TrackingStore,
    *,
    dataset: str,
    asset: str,
    dagster_run_id: str,
    config: PipelineConfig,
    input_digests: Mapping[str, str],
    tags: Mapping[str, str],
) -> Iterator[AssetRun]:
    """A child run around a block; see `Tracker.asset_run`."""
    send_unsent(store, is_alive=lambda run_id: _holds_its_lock(store, run_id))
    experiment_id = store.experiment_id(dataset)
    parent_id = _open_parent(store, experiment_id, dataset=dataset, dagster_run_id=dagster_run_id)
    params = {
        **flat_params(config.model_dump(mode="json")),
        **{f"input.{name}": digest for name, digest in input_digests.items()},
    }
    all_tags = {
        **_common_tags(dataset, dagster_run_id),
        "macrec.kind": "asset",
        "macrec.asset": asset,
        "mlflow.parentRunId": parent_id,
        **tags,
    }
    with one_line_errors(f"{asset}: MLflow run"):
        run = AssetRun(store, store.client.create_run(experiment_id, tags=all_tags, run_name=asset), asset)
    with _held_while_alive(store, run.run_id):
        status: Status = "KILLED"
        try:
            run.log_params(params)
            run.log_text("config.json", json.dumps(config.model_dump(mode="json"), indent=1))
            yield run
            status = "FINISHED"
        except Exception as error:
            status = "FAILED"
            _describe_failure(run, error)
            raise
        finally:
            _close(run, status)


def _close(run: AssetRun, status: Status) -> None:
    try:
        run.end(status)
    except TrackingError as error:
        if status == "FINISHED":
            raise
        _logger.warning("%s", error)  # the error that ended the block is the one to be seen


def _describe_failure(run: AssetRun, error: Exception) -> None:
    try:
        run.set_tags({"macrec.error": f"{type(error).__name__}: {error}"[:_MAX_ERROR_LENGTH]})
    except TrackingError as second:
        _logger.warning("%s", second)


def finish_parent(store: TrackingStore, *, dataset: str, dagster_run_id: str, status: Status) -> None:
    """Close the parent run of a pipeline run; see `Tracker.finish_pipeline`."""
    experiment_id = store.experiment_id(dataset)
    with store.lock("parents"), one_line_errors("end of the pipeline's MLflow run"):
        for run in _search(store, experiment_id, kind="pipeline", dagster_run_id=dagster_run_id):
            store.client.set_terminated(run.info.run_id, status)


def close_interrupted(store: TrackingStore, *, dataset: str, dagster_run_id: str | None) -> int:
    """Close the children whose processes died; see `Tracker.close_interrupted_runs`."""
    experiment_id = store.experiment_id(dataset)
    with store.lock("parents"), one_line_errors("interrupted MLflow runs"):
        running = _search(store, experiment_id, kind="asset", dagster_run_id=dagster_run_id, status="RUNNING")
        dead = [run for run in running if not _is_alive(store, run.info.run_id)]
        for run in dead:
            store.client.set_terminated(run.info.run_id, "KILLED")
        if dagster_run_id is None:
            # Nobody is left to close a parent whose process died. One that is only between two assets is opened
            # again by its next, and gets its last status when its pipeline run ends.
            alive = {run.data.tags["mlflow.parentRunId"] for run in running if run not in dead}
            for parent in _search(store, experiment_id, kind="pipeline", dagster_run_id=None, status="RUNNING"):
                if parent.info.run_id not in alive:
                    store.client.set_terminated(parent.info.run_id, "KILLED")
    return len(dead)


def flat_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"quantizer": {"num_levels": 4}}` -> `{"quantizer.num_levels": "4"}`; long values are cut off with '...'."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flat_params(value, f"{prefix}{key}."))
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        flat[f"{prefix}{key}"] = text if len(text) <= MAX_PARAM_LENGTH else f"{text[: MAX_PARAM_LENGTH - 3]}..."
    return flat


def _open_parent(store: TrackingStore, experiment_id: str, *, dataset: str, dagster_run_id: str) -> str:
    with store.lock("parents"), one_line_errors("the pipeline's MLflow run"):
        found = _search(store, experiment_id, kind="pipeline", dagster_run_id=dagster_run_id)
        if found:
            if found[0].info.status != "RUNNING":  # the pipeline run goes on after a failure
                store.client.update_run(found[0].info.run_id, status="RUNNING")
            return str(found[0].info.run_id)
        tags = {**_common_tags(dataset, dagster_run_id), "macrec.kind": "pipeline"}
        run = store.client.create_run(experiment_id, tags=tags, run_name=f"{dataset} {dagster_run_id[:8]}")
        return str(run.info.run_id)


def _common_tags(dataset: str, dagster_run_id: str) -> dict[str, str]:
    commit = git_commit()
    tags = {"macrec.dataset": dataset, "dagster.run_id": dagster_run_id, "mlflow.source.name": "macrec_pipeline"}
    if commit:
        tags |= {"macrec.git_commit": commit, "mlflow.source.git.commit": commit.removesuffix("-dirty")}
    return tags


def _search(
    store: TrackingStore, experiment_id: str, *, kind: str, dagster_run_id: str | None, status: str | None = None
) -> list[Run]:
    parts = [f"tags.`macrec.kind` = '{kind}'"]
    if dagster_run_id is not None:
        if not _RUN_ID.fullmatch(dagster_run_id):
            raise TrackingError(f"{dagster_run_id!r} cannot be a run id: use letters, digits, '-', '_' and '.'.")
        parts.append(f"tags.`dagster.run_id` = '{dagster_run_id}'")
    if status is not None:
        parts.append(f"attributes.status = '{status}'")
    return list(
        store.client.search_runs(
            [experiment_id], " and ".join(parts), max_results=10_000, order_by=["attributes.start_time ASC"]
        )
    )


def _alive_lock(store: TrackingStore, run_id: str) -> FileLock:
    folder = mlflow_folder(store.home) / "running"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{run_id}.lock", thread_local=False)


@contextmanager
def _held_while_alive(store: TrackingStore, run_id: str) -> Iterator[None]:
    lock = _alive_lock(store, run_id)
    lock.acquire(timeout=0)
    try:
        yield
    finally:
        Path(lock.lock_file).unlink()
        lock.release()


def _is_alive(store: TrackingStore, run_id: str) -> bool:
    lock = _alive_lock(store, run_id)
    if not Path(lock.lock_file).exists():
        # Another machine's run, or one that has just ended and is about to be closed by its own process.
        return True
    if _holds_its_lock(store, run_id):
        return True
    Path(lock.lock_file).unlink()
    return False


def _holds_its_lock(store: TrackingStore, run_id: str) -> bool:
    lock = _alive_lock(store, run_id)
    if not Path(lock.lock_file).exists():
        return False
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False
