"""Loading a registered model.

In: a model's URI and a home, or a data set and a version. Out: MLflow's pyfunc model, or the bundle in it as a folder,
checked; or a `TrackingError` in one line that lists what there is.
A service that has never heard of this package does the same with `mlflow.pyfunc.load_model` alone.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.registry import CHAMPION, DIGEST_TAG, bundle_digest, model_name
from macrec_pipeline.tracking.store import TrackingStore, connect, one_line_errors, own_warnings_ignored

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>[1-9][0-9]*))")


def load_model(uri: str, home: Path) -> PyFuncModel:
    """Load a version of a registered model.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        home: the home whose registry is asked, unless `MLFLOW_TRACKING_URI` names another.

    Returns:
        A model with `predict(DataFrame, params=...)`; the bundle itself is `unwrap_python_model().bundle`.

    Raises:
        TrackingError: the URI is not one, there is no such model, version or alias, or its files are gone.
    """
    store, found = _require(uri, home)
    with own_warnings_ignored():
        import mlflow.artifacts
        import mlflow.pyfunc
    before = list(sys.path)
    try:
        with one_line_errors(uri):
            source = store.client.get_model_version_download_uri(found.name, found.version)
            folder = mlflow.artifacts.download_artifacts(artifact_uri=source, tracking_uri=store.uri)
            model: PyFuncModel = mlflow.pyfunc.load_model(folder)
            return model
    except OSError as error:
        raise TrackingError(f"{uri}: its files cannot be read: {error}.") from error
    finally:
        # MLflow puts the model's copy of this package first on the path and leaves it there; here it is the
        # running one that answers.
        sys.path[:] = before


def champion_version(store: TrackingStore, dataset: str) -> int | None:
    """Who is champion; see `Tracker.champion`."""
    found = _find(store, model_name(dataset), alias=CHAMPION, version=None)
    return None if found is None else int(found.version)


@dataclass(frozen=True)
class RegisteredBundle:
    """The bundle of a registered version.

    Attributes:
        uri: `models:/NAME/VERSION`, whichever way it was asked for.
        folder: a copy of the bundle, for `RecommenderBundle.load`.
        digest: SHA-256 of its files, in hexadecimal.
    """

    uri: str
    folder: Path
    digest: str


def model_uri(dataset: str, model: str) -> str:
    """The URI of a data set's registered model by an alias or a version number; a whole URI stays as it is."""
    if model.startswith("models:/"):
        return model
    return f"models:/{model_name(dataset)}{'/' if model.isdigit() else '@'}{model}"


@contextmanager
def registered_bundle(uri: str, home: Path, *, within: Path | None = None) -> Iterator[RegisteredBundle]:
    """The bundle of a registered version, for as long as the block lasts; arguments and errors as in `load_model`.

    Args:
        within: the folder in which the copy is made; None: the system's for temporary files.

    Raises:
        TrackingError: also if the bundle is not the one that was registered.
    """
    store, found = _require(uri, home)
    with _fetched(store, found, within=within) as bundle:
        yield bundle


@contextmanager
def version_bundle(store: TrackingStore, dataset: str, version: int) -> Iterator[Path]:
    """A copy of the bundle of a version; see `Tracker.bundle`."""
    name = model_name(dataset)
    found = _find(store, name, alias=None, version=str(version))
    if found is None:
        raise TrackingError(f"{name} has no version {version} in {store.shown_uri}.")
    with _fetched(store, found) as bundle:
        yield bundle.folder


@contextmanager
def _fetched(store: TrackingStore, found: ModelVersion, *, within: Path | None = None) -> Iterator[RegisteredBundle]:
    with own_warnings_ignored():
        import mlflow.artifacts
    what = f"bundle of {found.name} version {found.version}"
    with tempfile.TemporaryDirectory(dir=within) as scratch:
        try:
            with one_line_errors(what):
                source = store.client.get_model_version_download_uri(found.name, found.version)
                copy = mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source.rstrip('/')}/artifacts/bundle", dst_path=scratch, tracking_uri=store.uri
                )
        except OSError as error:
            raise TrackingError(f"The {what} cannot be read: {error}.") from error
        digest = bundle_digest(Path(copy))
        if digest != found.tags.get(DIGEST_TAG):
            raise TrackingError(
                f"The {what} in {source} is not the one that was registered: its digest is not that of the tag "
                f"{DIGEST_TAG}. Go back to another: `macrec rollback {found.name.removeprefix('macrec-')}`."
            )
        yield RegisteredBundle(f"models:/{found.name}/{found.version}", Path(copy), digest)


def _require(uri: str, home: Path) -> tuple[TrackingStore, ModelVersion]:
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise TrackingError(f"{uri!r} is not a model. Use models:/NAME@ALIAS or models:/NAME/VERSION.")
    store = connect(home, create=False)
    found = _find(store, match["name"], alias=match["alias"], version=match["version"])
    if found is None:
        raise TrackingError(f"There is no {uri} in {store.shown_uri}. Registered: {_registered(store)}.")
    return store, found


def _find(store: TrackingStore, name: str, *, alias: str | None, version: str | None) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    with one_line_errors(f"registered model {name}"):
        try:
            if alias is not None:
                return store.client.get_model_version_by_alias(name, alias)
            return store.client.get_model_version(name, str(version))
        except MlflowException as error:
            # An alias that does not exist is an invalid parameter to MLflow.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def _registered(store: TrackingStore) -> str:
    with one_line_errors("model registry"):
        models = store.client.search_registered_models(max_results=100, order_by=["name ASC"])
    lines = []
    for model in models:
        aliases = "".join(f", @{alias} is {number}" for alias, number in sorted(model.aliases.items()))
        newest = max((int(version.version) for version in model.latest_versions), default=0)
        lines.append(f"{model.name} (newest version {newest}{aliases})")
    return "; ".join(lines) or "nothing yet, run `macrec run DATASET`"
