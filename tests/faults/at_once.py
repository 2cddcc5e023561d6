"""Several `macrec run` at once on one home: `python -m tests.faults.at_once ASSET DATASET ...`, one run for each.

The package is loaded once and each run is a fork of it; all begin as soon as the last is there. Prints, as JSON, how
each ended and what it said.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import macrec_pipeline.definitions  # loaded before the forks, as is all that follows it
import macrec_pipeline.recommender  # noqa: F401
from macrec_pipeline import cli
from macrec_pipeline.tracking.store import own_warnings_ignored

with own_warnings_ignored():
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401


def main(asset: str, datasets: list[str]) -> None:
    """Start them all, each up to the asset, and wait for all."""
    folder = Path(tempfile.mkdtemp())
    ready, go = os.pipe()
    children = [_start(asset, dataset, folder / str(place), ready, go) for place, dataset in enumerate(datasets)]
    os.close(ready)
    os.close(go)  # what all of them wait for
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    said = [(folder / str(place)).read_text() for place in range(len(datasets))]
    print(json.dumps([[end, words] for end, words in zip(ends, said, strict=True)]))


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
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
