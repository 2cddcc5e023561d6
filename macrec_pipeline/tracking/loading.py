"""Load a registered model, or a verified copy of the bundle inside it.

The input is the URI of a model and a home, or a data set and a version. The output is MLflow's pyfunc model or a folder
with the bundle. Errors are `TrackingError`s of one line; if a model does not exist, they list the registered ones. A
service without this package can load the same model with `mlflow.pyfunc.load_model`.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.packaging import EVALUATED
from macrec_pipeline.tracking.registry import CHAMPION, DIGEST_TAG, EVALUATED_DIGEST_TAG, bundle_digest, model_name
from macrec_pipeline.tracking.store import TrackingStore, connect, mlflow_warnings_ignored, one_line_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.pyfunc import PyFuncModel

_MODEL_URI = re.compile(r"models:/(?P<name>[^/@:]+)(?:@(?P<alias>[\w-]+)|/(?P<version>[1-9][0-9]*))")


def load_model(uri: str, home: Path) -> PyFuncModel:
    """Load a version of a registered model.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        home: the home whose registry is used, unless `MLFLOW_TRACKING_URI` is set.

    Returns:
        A model with `predict(DataFrame, params=...)`. The bundle is `unwrap_python_model().bundle`.

    Raises:
        TrackingError: the URI is invalid; the model, version or alias does not exist; or its files are missing.
    """
    store, found = _require(uri, home)
    with mlflow_warnings_ignored():
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
        raise TrackingError(f"The files of {uri} cannot be read: {error}.") from error
    finally:
        # MLflow puts the model's own copy of this package first on the path and leaves it there. In this process, the
        # running package serves the model.
        sys.path[:] = before


@dataclass(frozen=True)
class FoundVersion:
    """A version of a registered model.

    Attributes:
        name, version: of the registered model.
        digest: SHA-256 of its bundle, hexadecimal.
    """

    name: str
    version: int
    digest: str


def find_version(uri: str, home: Path) -> FoundVersion:
    """Return the version that a URI names now. Arguments and errors as for `load_model`."""
    _, found = _require(uri, home)
    return FoundVersion(found.name, int(found.version), found.tags.get(DIGEST_TAG, ""))


def download_version(found: FoundVersion, home: Path, destination: Path) -> None:
    """Copy the model folder of a version to a folder that does not exist yet, and compare its digest.

    Raises:
        TrackingError: the version no longer exists, its files cannot be read, or they are not the registered ones.
    """
    uri = f"models:/{found.name}/{found.version}"
    store, _ = _require(uri, home)
    with mlflow_warnings_ignored():
        import mlflow.artifacts
    try:
        with one_line_errors(uri), tempfile.TemporaryDirectory(dir=destination.parent) as scratch:
            source = store.client.get_model_version_download_uri(found.name, str(found.version))
            # a folder of its own, since MLflow returns the artifacts of a local registry without copying them
            copy = mlflow.artifacts.download_artifacts(artifact_uri=source, dst_path=scratch, tracking_uri=store.uri)
            shutil.copytree(copy, destination)
    except OSError as error:
        raise TrackingError(f"The files of {uri} cannot be read: {error}.") from error
    if bundle_digest(destination / "artifacts" / "bundle") != found.digest:
        raise TrackingError(f"The files of {uri} are not those that were registered: their digest differs.")


def champion_version(store: TrackingStore, dataset: str) -> int | None:
    """Return the champion's version; see `Tracker.champion`."""
    found = _find(store, model_name(dataset), alias=CHAMPION, version=None)
    return None if found is None else int(found.version)


def version_tags(store: TrackingStore, dataset: str, version: int) -> dict[str, str]:
    """Return the tags of a version; see `Tracker.version_tags`."""
    return dict(_require_version(store, dataset, version).tags)


@dataclass(frozen=True)
class RegisteredBundle:
    """The bundle of a registered version.

    Attributes:
        uri: `models:/NAME/VERSION`, even if the version was requested by alias.
        folder: a copy of the bundle, for `RecommenderBundle.load`.
        digest: SHA-256 of its files, hexadecimal.
    """

    uri: str
    folder: Path
    digest: str


def model_uri(dataset: str, model: str) -> str:
    """Build the URI of a data set's registered model.

    Args:
        dataset: name of the data set.
        model: an alias, a version number, or a full URI, which is returned unchanged.
    """
    if model.startswith("models:/"):
        return model
    return f"models:/{model_name(dataset)}{'/' if model.isdigit() else '@'}{model}"


@contextmanager
def registered_bundle(uri: str, home: Path, *, within: Path | None = None) -> Iterator[RegisteredBundle]:
    """Provide the bundle of a registered version for the duration of the block.

    Args:
        uri: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        home: the home whose registry is used, unless `MLFLOW_TRACKING_URI` is set.
        within: the folder for the copy; None: the system's folder for temporary files.

    Raises:
        TrackingError: as for `load_model`, or the bundle differs from the one that was registered.
    """
    store, found = _require(uri, home)
    with _downloaded(store, found, within=within) as bundle:
        yield bundle


@contextmanager
def version_bundle(store: TrackingStore, dataset: str, version: int, *, evaluated: bool = False) -> Iterator[Path]:
    """Provide a copy of the bundle of a version; see `Tracker.bundle`."""
    found = _require_version(store, dataset, version)
    with _downloaded(store, found) as bundle:
        if evaluated and EVALUATED_DIGEST_TAG in found.tags:
            _restore_evaluated(store, found, bundle.folder)
        yield bundle.folder


@contextmanager
def _downloaded(store: TrackingStore, found: ModelVersion, *, within: Path | None = None) -> Iterator[RegisteredBundle]:
    what = f"bundle of {found.name} version {found.version}"
    with tempfile.TemporaryDirectory(dir=within) as scratch:
        copy = _download(store, found, "bundle", Path(scratch), what=what)
        digest = _verified_digest(copy, found, DIGEST_TAG, what=what)
        yield RegisteredBundle(f"models:/{found.name}/{found.version}", copy, digest)


def _restore_evaluated(store: TrackingStore, found: ModelVersion, bundle: Path) -> None:
    """Turn a copy of a refit's bundle into the bundle that was evaluated."""
    what = f"evaluated bundle of {found.name} version {found.version}"
    with tempfile.TemporaryDirectory(dir=bundle.parent) as scratch:
        shutil.copytree(_download(store, found, EVALUATED, Path(scratch), what=what), bundle, dirs_exist_ok=True)
    _verified_digest(bundle, found, EVALUATED_DIGEST_TAG, what=what)


def _download(store: TrackingStore, found: ModelVersion, artifact: str, scratch: Path, *, what: str) -> Path:
    with mlflow_warnings_ignored():
        import mlflow.artifacts
    try:
        with one_line_errors(what):
            source = store.client.get_model_version_download_uri(found.name, found.version)
            return Path(
                mlflow.artifacts.download_artifacts(
                    artifact_uri=f"{source.rstrip('/')}/artifacts/{artifact}",
                    dst_path=str(scratch),
                    tracking_uri=store.uri,
                )
            )
    except OSError as error:
        raise TrackingError(f"The {what} cannot be read: {error}.") from error


def _verified_digest(folder: Path, found: ModelVersion, tag: str, *, what: str) -> str:
    digest = bundle_digest(folder)
    if digest != found.tags.get(tag):
        raise TrackingError(
            f"The {what} in {found.source} is not the one that was registered: its digest differs from the tag {tag}. "
            f"Restore the files, or return to the previous champion: "
            f"`macrec rollback {found.name.removeprefix('macrec-')}`."
        )
    return digest


def _require(uri: str, home: Path) -> tuple[TrackingStore, ModelVersion]:
    match = _MODEL_URI.fullmatch(uri)
    if match is None:
        raise TrackingError(f"{uri!r} is not the URI of a model. Use models:/NAME@ALIAS or models:/NAME/VERSION.")
    store = connect(home, create=False)
    found = _find(store, match["name"], alias=match["alias"], version=match["version"])
    if found is None:
        raise TrackingError(
            f"{uri} does not exist in {store.printable_uri}. Registered models: {_registered_models(store)}."
        )
    return store, found


def _require_version(store: TrackingStore, dataset: str, version: int) -> ModelVersion:
    name = model_name(dataset)
    found = _find(store, name, alias=None, version=str(version))
    if found is None:
        raise TrackingError(f"{name} has no version {version} in {store.printable_uri}.")
    return found


def _find(store: TrackingStore, name: str, *, alias: str | None, version: str | None) -> ModelVersion | None:
    from mlflow.exceptions import MlflowException

    with one_line_errors(f"registered model {name}"):
        try:
            if alias is not None:
                return store.client.get_model_version_by_alias(name, alias)
            return store.client.get_model_version(name, str(version))
        except MlflowException as error:
            # MLflow reports an alias that does not exist as an invalid parameter.
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise


def _registered_models(store: TrackingStore) -> str:
    with one_line_errors("model registry"):
        models = store.client.search_registered_models(max_results=100, order_by=["name ASC"])
    lines = []
    for model in models:
        aliases = "".join(f", @{alias} is {number}" for alias, number in sorted(model.aliases.items()))
        newest = max((int(version.version) for version in model.latest_versions), default=0)
        lines.append(f"{model.name} (newest version {newest}{aliases})")
    return "; ".join(lines) or "none yet, run `macrec run DATASET`"
