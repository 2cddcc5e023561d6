"""The code server of a deployment: `python -m macrec_pipeline.defs.servers.code_server --host HOST --port PORT`.

Dagster's default launcher starts a run as a child of the code server, and nothing looks after it when the server's
container goes: the run stays STARTED for ever and keeps its slots. In: the Dagster instance of `DAGSTER_HOME`. Out:
this process becomes `dagster code-server start`; once that answers, a child of it fails the runs that went down with
the server before, so that the daemon takes them up again (`run_retries`).
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._grpc.client import DagsterGrpcClient

from macrec_pipeline.defs.asset_context import COMMAND_LINE, LAUNCHED_BY
from macrec_pipeline.errors import MacrecError

logger = logging.getLogger(__name__)

_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
_WHY = "The code server was stopped or killed while this run was at work."
_START_SECONDS = 600.0
# The daemon gives a run up for good if it does not see the server at the first try; it looks for it every ten seconds.
_NOTICED_SECONDS = 25.0


def runs_at_work(instance: dg.DagsterInstance) -> list[str]:
    """The ids of the runs that are children of a code server; asked before there is one, those that are dead.

    A run of the command line is a process of its own (see `abandoned_runs`) and is left alone.
    """
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_AT_WORK))
    return [run.run_id for run in runs if run.tags.get(LAUNCHED_BY) != COMMAND_LINE]


def fail_runs(instance: dg.DagsterInstance, run_ids: Sequence[str]) -> None:
    """Fail runs that are still marked as at work, for a reason that the daemon retries, and free their slots."""
    for run_id in run_ids:
        run = instance.get_run_by_id(run_id)
        if run is not None and run.status in _AT_WORK:
            reason = JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION)
            instance.report_run_failed(run, _WHY, reason)
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)
            logger.warning("%s went down with the code server before; it is failed now.", run_id)


def main(arguments: Sequence[str] | None = None) -> None:
    """Become the code server, or, with `--went-down`, fail runs once it answers."""
    parser = argparse.ArgumentParser(description="Serve the package's definitions to Dagster.")
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--went-down", nargs="+", metavar="RUN", default=[])
    asked = parser.parse_args(arguments)
    address = ["--host", asked.host, "--port", str(asked.port)]
    with dg.DagsterInstance.get() as instance:
        if asked.went_down:
            _wait_until_it_answers(asked.host, asked.port)
            time.sleep(_NOTICED_SECONDS)
            fail_runs(instance, asked.went_down)
            return
        dead = runs_at_work(instance)
    if dead:
        later = [sys.executable, "-m", "macrec_pipeline.defs.servers.code_server", *address, "--went-down", *dead]
        subprocess.Popen(later)  # noqa: S603  # this package's own words and ids, no shell
    server = ["-m", "dagster", "code-server", "start", "-m", "macrec_pipeline.definitions", *address]
    os.execv(sys.executable, [sys.executable, *server])  # noqa: S606  # no shell, by design


def _wait_until_it_answers(host: str, port: int) -> None:
    client = DagsterGrpcClient(host=host, port=port)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        try:
            client.list_repositories()
        except DagsterUserCodeUnreachableError:
            time.sleep(1)
        else:
            return
    raise MacrecError(f"The code server on {host}:{port} did not answer within {_START_SECONDS:.0f} seconds.")


if __name__ == "__main__":
    main()
