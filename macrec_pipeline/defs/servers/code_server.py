"""The code server of a deployment: `python -m macrec_pipeline.defs.servers.code_server --host HOST --port PORT`.

Dagster's default launcher starts runs as children of the code server. When the server's container goes away, nothing
ends those runs: they stay STARTED forever and keep their slots. So before this process becomes `dagster code-server
start`, it looks in the instance of `DAGSTER_HOME` for runs that were interrupted in this way. A child process waits
until the new server responds and then fails them, so that the daemon launches them again (`run_retries`).
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import dagster as dg

from macrec_pipeline.defs.dagster_private import (
    DagsterGrpcClient,
    DagsterUserCodeUnreachableError,
    unexpected_termination,
)
from macrec_pipeline.defs.run_tags import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.errors import MacrecError

logger = logging.getLogger(__name__)

_IN_PROGRESS = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
_FAILURE_MESSAGE = "The code server was stopped or killed while this run was in progress."
_START_SECONDS = 600.0
# The daemon checks every ten seconds whether the server responds. It gives up a run when the first check fails.
_DISCOVERY_SECONDS = 25.0


def runs_of_code_server(instance: dg.DagsterInstance) -> list[str]:
    """Return the IDs of the runs in progress whose processes are children of a code server.

    Before a server starts, all of these processes are dead. A run that the command line launched has its own process
    and is not included (see `runs.liveness`).
    """
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_IN_PROGRESS))
    return [run.run_id for run in runs if run.tags.get(LAUNCHED_BY) != COMMAND_LINE]


def fail_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Fail the runs that are still in progress, for a reason that the daemon retries, and free their slots."""
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.status in _IN_PROGRESS:
            instance.report_run_failed(run, _FAILURE_MESSAGE, unexpected_termination())
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
            logger.warning("Run %s was interrupted with the previous code server. It is now marked as failed.", run_id)


def main(arguments: Sequence[str] | None = None) -> None:
    """Become the code server or, with `--fail-runs`, fail runs once the code server responds."""
    parser = argparse.ArgumentParser(description="Serve the definitions of this package to Dagster.")
    parser.add_argument("--host", required=True, help="address to listen on")
    parser.add_argument("--port", required=True, type=int, help="port to listen on")
    parser.add_argument(
        "--fail-runs", nargs="+", metavar="RUN_ID", default=[], help="wait for the server, then fail these runs"
    )
    options = parser.parse_args(arguments)
    address = ["--host", options.host, "--port", str(options.port)]
    with dg.DagsterInstance.get() as instance:
        if options.fail_runs:
            _wait_until_server_responds(options.host, options.port)
            time.sleep(_DISCOVERY_SECONDS)
            fail_runs(instance, options.fail_runs)
            return
        interrupted = runs_of_code_server(instance)
    if interrupted:
        module = ["-m", "macrec_pipeline.defs.servers.code_server"]
        command = [sys.executable, *module, *address, "--fail-runs", *interrupted]
        subprocess.Popen(command)  # noqa: S603  # fixed words and run IDs, no shell
    server = ["-m", "dagster", "code-server", "start", "-m", "macrec_pipeline.definitions", *address]
    os.execv(sys.executable, [sys.executable, *server])  # noqa: S606  # no shell, by design


def _wait_until_server_responds(host: str, port: int) -> None:
    client = DagsterGrpcClient(host=host, port=port)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            client.list_repositories()
        except DagsterUserCodeUnreachableError:
            time.sleep(1)
        else:
            return
    raise MacrecError(
        f"The code server on {host}:{port} did not respond within {_START_SECONDS:.0f} seconds. Its log says why."
    )


if __name__ == "__main__":
    main()
