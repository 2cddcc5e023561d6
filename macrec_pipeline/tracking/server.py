"""The command line of MLflow's server, which shows the runs and models of a home in MLflow's UI."""

import os
import sys
from pathlib import Path

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.store import DEFAULT_UI_PORT, artifact_folder, connect, is_server, prepare_environment


def server_command(home: Path, port: int = DEFAULT_UI_PORT) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of an MLflow server on loopback, and create the store if needed.

    Raises:
        TrackingError: `MLFLOW_TRACKING_URI` is the address of a server, which has its own UI; or the store cannot be
            opened.
    """
    store = connect(home)
    uri = store.uri
    if is_server(uri):
        raise TrackingError(f"MLFLOW_TRACKING_URI is the address of a running server. Open its UI at {uri} instead.")
    prepare_environment()
    artifacts = artifact_folder(store.home).as_uri()
    arguments = [sys.executable, "-m", "mlflow", "server"]
    arguments += ["--backend-store-uri", uri, "--registry-store-uri", uri]
    arguments += ["--default-artifact-root", artifacts, "--artifacts-destination", artifacts]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return arguments, {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
