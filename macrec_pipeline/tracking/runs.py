"""MLflow runs: one parent run per pipeline run, and one child run per attempt to materialize an asset.

The input is what an asset measures and writes while it is materialized. The output is MLflow runs in the experiment
`macrec/<dataset>`. Several processes materialize the assets of a pipeline run, so each of them looks up the parent run
by the tag `dagster.run_id`, under a lock. The process of a child run holds a lock file, so that later processes can
distinguish a child run whose process was killed from one that is still working.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.runtime.process_locks import ProcessState, hold_lock, process_state
from macrec_pipeline.tracking.asset_run import AssetRun
from macrec_pipeline.tracking.git_commit import git_commit
from macrec_pipeline.tracking.outbox import send_pending
from macrec_pipeline.tracking.store import TrackingStore, mlflow_folder, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities import Run

    from macrec_pipeline.config import PipelineConfig

Status = Literal["FINISHED", "FAILED", "KILLED"]

MAX_PARAM_LENGTH = 500
"""Longest value of a parameter, in characters; `config.json` has the full value."""

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
    """Open a child run for the duration of a block; see `Tracker.asset_run`."""
    send_pending(store, is_alive=lambda run_id: _holds_its_lock(store, run_id))
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
    with hold_lock(_lock_file(store, run.run_id)):
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
        _logger.warning("%s", error)  # the caller must see the error that ended the block, not this one


def _describe_failure(run: AssetRun, error: Exception) -> None:
    try:
        run.set_tags({"macrec.error": f"{type(error).__name__}: {error}"[:_MAX_ERROR_LENGTH]})
    except TrackingError as tracking_error:
        _logger.warning("%s", tracking_error)


def finish_parent(store: TrackingStore, *, dataset: str, dagster_run_id: str, status: Status) -> None:
    """Close the parent run of a pipeline run; see `Tracker.finish_pipeline`."""
    experiment_id = store.experiment_id(dataset)
    with store.lock("parents"), one_line_errors("ending the pipeline's MLflow run"):
        for run in _search(store, experiment_id, kind="pipeline", dagster_run_id=dagster_run_id):
            store.client.set_terminated(run.info.run_id, status)


def close_interrupted(store: TrackingStore, *, dataset: str, dagster_run_id: str | None) -> int:
    """Close the child runs whose processes died; see `Tracker.close_interrupted_runs`."""
    experiment_id = store.experiment_id(dataset)
    with store.lock("parents"), one_line_errors("closing interrupted MLflow runs"):
        running = _search(store, experiment_id, kind="asset", dagster_run_id=dagster_run_id, status="RUNNING")
        dead = [run for run in running if not _is_alive(store, run.info.run_id)]
        for run in dead:
            store.client.set_terminated(run.info.run_id, "KILLED")
        if dagster_run_id is None:
            # No other process will close the parent of a pipeline run that died. If a parent is closed here because its
            # pipeline run is between two assets, the next asset reopens it.
            alive_parents = {run.data.tags["mlflow.parentRunId"] for run in running if run not in dead}
            for parent in _search(store, experiment_id, kind="pipeline", dagster_run_id=None, status="RUNNING"):
                if parent.info.run_id not in alive_parents:
                    store.client.set_terminated(parent.info.run_id, "KILLED")
    return len(dead)


def flat_params(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested settings to parameters, and shorten long values with '...'.

    Example: `{"quantizer": {"num_levels": 4}}` becomes `{"quantizer.num_levels": "4"}`.
    """
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flat_params(value, f"{prefix}{key}."))
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        flat[f"{prefix}{key}"] = text if len(text) <= MAX_PARAM_LENGTH else f"{text[: MAX_PARAM_LENGTH - 3]}..."
    return flat


def _open_parent(store: TrackingStore, experiment_id: str, *, dataset: str, dagster_run_id: str) -> str:
    with store.lock("parents"), one_line_errors("opening the pipeline's MLflow run"):
        found = _search(store, experiment_id, kind="pipeline", dagster_run_id=dagster_run_id)
        if found:
            if found[0].info.status != "RUNNING":  # the pipeline run was resumed after a failure
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
            raise TrackingError(
                f"{dagster_run_id!r} is not a valid run id. It must have 1 to 100 letters, digits, '-', '_' and '.'."
            )
        parts.append(f"tags.`dagster.run_id` = '{dagster_run_id}'")
    if status is not None:
        parts.append(f"attributes.status = '{status}'")
    return list(
        store.client.search_runs(
            [experiment_id], " and ".join(parts), max_results=10_000, order_by=["attributes.start_time ASC"]
        )
    )


def _is_alive(store: TrackingStore, run_id: str) -> bool:
    """Tell whether a RUNNING child run may still be working. One without a lock file belongs to another machine."""
    lock_file = _lock_file(store, run_id)
    if process_state(lock_file) is not ProcessState.DEAD:
        return True
    lock_file.unlink(missing_ok=True)
    return False


def _holds_its_lock(store: TrackingStore, run_id: str) -> bool:
    return process_state(_lock_file(store, run_id)) is ProcessState.ALIVE


def _lock_file(store: TrackingStore, run_id: str) -> Path:
    return mlflow_folder(store.home) / "running" / f"{run_id}.lock"
