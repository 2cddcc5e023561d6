"""Starts the service for a registered model on this machine."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

from macrec_pipeline.serving.app import access_log, create_app
from macrec_pipeline.serving.champion import Champion, RegisteredModel
from macrec_pipeline.serving.model_process import Limits
from macrec_pipeline.serving.served_version import ServedVersion
from macrec_pipeline.serving.settings import ServiceSettings
from macrec_pipeline.tracking.loading import FoundVersion, download_version, find_version


def serve(uri: str, home: Path, settings: ServiceSettings, *, host: str, port: int) -> None:
    """Serve the version that a URI names, and each version that it names later, until SIGINT or SIGTERM.

    Args:
        uri: `models:/NAME@ALIAS`, or `models:/NAME/VERSION` for a fixed version.
        home: the home whose registry is used, unless `MLFLOW_TRACKING_URI` is set.
        settings: of batches and limits.
        host, port: where the service listens.

    Raises:
        TrackingError: the model does not exist.
    """
    import uvicorn

    find_version(uri, home)  # a misspelt name is an error at once, instead of a service that never becomes ready
    with tempfile.TemporaryDirectory(prefix="macrec-serve-") as scratch:
        champion = registered_champion(uri, home, settings, scratch=Path(scratch))
        app = create_app(champion, settings)
        _print_access_log()
        uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")


def _print_access_log() -> None:
    """Write the access log, one JSON object per line, to standard output."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("%(message)s"))
    access_log.addHandler(handler)
    access_log.setLevel(logging.INFO)
    access_log.propagate = False


def registered_champion(uri: str, home: Path, settings: ServiceSettings, *, scratch: Path) -> Champion:
    """Return a champion that follows a URI, with its files below a folder."""
    limits = Limits(settings.max_rows, settings.max_k, settings.max_history, settings.max_rule_items)

    def find() -> RegisteredModel:
        found = find_version(uri, home)
        return RegisteredModel(found.name, found.version, found.digest)

    def load(wanted: RegisteredModel, folder: Path) -> ServedVersion:
        shutil.rmtree(folder, ignore_errors=True)
        download_version(FoundVersion(wanted.name, wanted.version, wanted.digest), home, folder)
        return ServedVersion.start(
            folder,
            version=wanted.version,
            digest=wanted.digest,
            limits=limits,
            threads=settings.threads,
            load_seconds=settings.load_seconds,
        )

    return Champion(find, load, scratch)
