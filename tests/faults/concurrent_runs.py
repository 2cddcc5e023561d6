"""Runs several `macrec run` commands at the same time on one home.

Usage: `python -m tests.faults.concurrent_runs ASSET DATASET ...`, with one run per data set name. The package is loaded
once and each run is a fork of it; all of them start as soon as the last one is ready. Prints the exit status and the
output of each run as JSON.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import macrec_pipeline.definitions  # loaded before the forks, as are the imports below
import macrec_pipeline.recommender  # noqa: F401
from macrec_pipeline import cli
from macrec_pipeline.tracking.store import mlflow_warnings_ignored

with mlflow_warnings_ignored():
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def main(asset: str, datasets: list[str]) -> None:
    """Start a run of each data set up to the asset, and wait for all of them."""
    folder = Path(tempfile.mkdtemp())
    ready, go = os.pipe()
    children = [_start(asset, dataset, folder / str(place), ready, go) for place, dataset in enumerate(datasets)]
    os.close(ready)
    os.close(go)  # all runs wait for this
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    outputs = [(folder / str(place)).read_text() for place in range(len(datasets))]
    print(json.dumps([[status, output] for status, output in zip(statuses, outputs, strict=True)]))


def _start(asset: str, dataset: str, output: Path, ready: int, go: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.close(go)
        file = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.read(ready, 1)
        cli.main(["run", dataset, "--until", asset])
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
