"""The command that shows a home's runs and models in MLflow's UI."""

import os
import sys
from pathlib import Path

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.store import DEFAULT_UI_PORT, artifact_folder, connect, is_server, prepare_environment


def server_command(home: Path, port: int = DEFAULT_UI_PORT) -> tuple[list[str], dict[str, str]]:
    """The arguments and the environment of an MLflow server on loopback; it makes the store if there is none yet.

    Raises:
        TrackingError: `MLFLOW_TRACKING_URI` names a server, which has a UI of its own, or the store cannot be opened.
    """
    uri = connect(home).uri
    if is_server(uri):
        raise TrackingError(f"MLFLOW_TRACKING_URI names a server, so there is no other to start: open {uri}.")
    prepare_environment()
    artifacts = artifact_folder(home).as_uri()
    arguments = [sys.executable, "-m", "mlflow", "server"]
    arguments += ["--backend-store-uri", uri, "--registry-store-uri", uri]
    arguments += ["--default-artifact-root", artifacts, "--artifacts-destination", artifacts]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return arguments, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
