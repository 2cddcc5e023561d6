"""MLflow's server, which shows the runs and models of a home in MLflow's UI: its command line, and links into it."""

import os
import sys
from pathlib import Path

from macrec_pipeline.errors import TrackingError
from macrec_pipeline.tracking.store import (
    DEFAULT_UI_PORT,
    artifact_folder,
    connect,
    is_server,
    one_line_errors,
    prepare_environment,
    remember_ui_port,
)


def server_command(home: Path, port: int = DEFAULT_UI_PORT) -> tuple[list[str], dict[str, str]]:
    """Return the arguments and the environment of an MLflow server on loopback, and create the store if needed.

    The address of the database is in the environment and not among the arguments, since it may contain a password and
    every user of the machine can read the arguments of a process. Links that later runs of the home write point to
    this port.

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
    arguments += ["--default-artifact-root", artifacts, "--artifacts-destination", artifacts]
    arguments += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    remember_ui_port(store.home, port)
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_REGISTRY_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return arguments, environment


def training_run_links(home: Path, ui_url: str) -> dict[str, str]:
    """Return data set -> the page of MLflow's UI that lists its runs, for each data set of a home that has runs.

    The link names the view for model training; without this, MLflow 3 opens the view for language models.

    Raises:
        TrackingError: the store cannot be read.
    """
    store = connect(home, create=False)
    with one_line_errors("experiments"):
        experiments = store.client.search_experiments(filter_string="name LIKE 'macrec/%'", order_by=["name ASC"])
    return {
        experiment.name.removeprefix("macrec/"): (
            f"{ui_url}/#/experiments/{experiment.experiment_id}/runs?workflowType=machine_learning"
        )
        for experiment in experiments
    }
