"""Register a recommender bundle as a version of the model `macrec-<dataset>`, which services can load.

The input is the folder of the bundle and its metrics. The output is a model version (`packaging` describes its content)
with tags and the alias `challenger`; it also gets the alias `champion` if the model has no champion yet.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.git_commit import git_commit
from macrec_pipeline.tracking.packaging import save_bundle_model
from macrec_pipeline.tracking.store import TrackingStore, is_server, mlflow_warnings_ignored, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

CHAMPION, CHALLENGER = "champion", "challenger"
DIGEST_TAG = "macrec.bundle_digest"
"""Tag of a version: the digest of its bundle's files at registration."""
EVALUATED_DIGEST_TAG = "macrec.evaluated_digest"
"""Tag of a version whose bundle is a refit: the digest of the bundle that was evaluated."""
METRIC_TAG = "metric."
"""Prefix of the tags of a version that hold its test metrics."""


@dataclass(frozen=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        name: the registered model, `macrec-<dataset>`.
        version: number of the version, starting at 1.
        uri: `models:/<name>/<version>`.
        aliases: the aliases that the version has now.
        bundle_digest: SHA-256 of the bundle's files, hexadecimal.
        url: the address of the version in MLflow's UI.
    """

    name: str
    version: int
    uri: str
    aliases: tuple[str, ...]
    bundle_digest: str
    url: str


def register(
    store: TrackingStore,
    bundle_folder: Path,
    *,
    dataset: str,
    metrics: Mapping[str, float],
    dagster_run_id: str,
    run_id: str,
    tags: Mapping[str, str],
    evaluated_folder: Path | None = None,
    as_challenger: bool = True,
) -> RegisteredVersion:
    """Register a bundle; see `Tracker.register`."""
    if not bundle_folder.is_dir():
        raise TrackingError(f"The bundle {bundle_folder} cannot be registered because this folder does not exist.")
    name, digest = model_name(dataset), bundle_digest(bundle_folder)
    finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
    all_tags = {
        **{f"{METRIC_TAG}{key}": repr(value) for key, value in finite.items()},
        "dagster.run_id": dagster_run_id,
        "macrec.dataset": dataset,
        DIGEST_TAG: digest,
        "macrec.git_commit": git_commit() or "unknown",
        **({} if evaluated_folder is None else {EVALUATED_DIGEST_TAG: bundle_digest(evaluated_folder)}),
        **tags,
    }
    model = _log_model(
        store,
        bundle_folder,
        evaluated_folder,
        experiment_id=store.experiment_id(dataset),
        name=name,
        run_id=run_id,
    )
    with one_line_errors(f"registered model {name}"):
        _log_model_metrics(store, model, finite, run_id=run_id)
        number = _new_version(store, model, name=name, run_id=run_id, tags=all_tags)
        aliases = _set_aliases(store, name, number) if as_challenger else ()
    url = f"{store.ui_url}/#/models/{name}/versions/{number}"
    return RegisteredVersion(name, number, f"models:/{name}/{number}", aliases, digest, url)


def model_name(dataset: str) -> str:
    """Return the name of a data set's registered model."""
    return f"macrec-{dataset}"


def bundle_digest(folder: Path) -> str:
    """Compute the SHA-256 over the sorted pairs (relative path, SHA-256) of a folder's files, as hexadecimal text."""
    hashes = []
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                hashes.append([path.relative_to(folder).as_posix(), hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps(sorted(hashes)).encode()).hexdigest()


def _log_model(
    store: TrackingStore,
    bundle_folder: Path,
    evaluated_folder: Path | None,
    *,
    experiment_id: str,
    name: str,
    run_id: str,
) -> LoggedModel:
    """Save the model and upload it through the client, because MLflow's `log_model` uses process-wide settings."""
    with mlflow_warnings_ignored():
        from mlflow.entities import LoggedModelOutput
        from mlflow.exceptions import MlflowException
        from mlflow.models import Model
    with tempfile.TemporaryDirectory() as scratch, one_line_errors(f"model {name}"):
        model = store.client.create_logged_model(
            experiment_id, name=name, source_run_id=run_id, model_type="recommender"
        )
        identity = Model(
            artifact_path=model.artifact_location, model_uuid=model.model_id, model_id=model.model_id, run_id=run_id
        )
        folder = Path(scratch, "model")
        try:
            save_bundle_model(bundle_folder, folder, identity=identity, evaluated_folder=evaluated_folder)
            store.client.log_model_artifacts(model.model_id, str(folder))
        except BaseException:
            with suppress(MlflowException):  # the caller must see the original error
                store.client.finalize_logged_model(model.model_id, "FAILED")
            raise
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, 0)])
        return store.client.finalize_logged_model(model.model_id, "READY")


def _log_model_metrics(store: TrackingStore, model: LoggedModel, metrics: Mapping[str, float], *, run_id: str) -> None:
    from mlflow.entities import Metric

    now = time.time_ns() // 1_000_000
    points = [Metric(name, value, now, 0, model_id=model.model_id, run_id=run_id) for name, value in metrics.items()]
    for start in range(0, len(points), 1000):  # MLflow's limit per request
        store.client.log_batch(run_id, metrics=points[start : start + 1000])


def _new_version(store: TrackingStore, model: LoggedModel, *, name: str, run_id: str, tags: Mapping[str, str]) -> int:
    from mlflow.exceptions import MlflowException

    try:
        store.client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    # With a database, MLflow would resolve `models:/` against the process-wide tracking URI. A server accepts only
    # `models:/`.
    source = f"models:/{model.model_id}" if is_server(store.uri) else model.artifact_location
    created = store.client.create_model_version(name, source, run_id=run_id, tags=dict(tags), model_id=model.model_id)
    # MLflow's log_model sets this tag too. The UI uses it to show which versions belong to a logged model.
    versions = json.dumps([{"name": name, "version": created.version}])
    store.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": versions})
    return int(created.version)


def _set_aliases(store: TrackingStore, name: str, number: int) -> tuple[str, ...]:
    with store.lock("aliases"):
        store.client.set_registered_model_alias(name, CHALLENGER, str(number))
        if CHAMPION in store.client.get_registered_model(name).aliases:
            return (CHALLENGER,)
        store.client.set_registered_model_alias(name, CHAMPION, str(number))
        return (CHALLENGER, CHAMPION)
