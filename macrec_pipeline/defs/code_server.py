"""The code server of a deployment: `python -m macrec_pipeline.defs.code_server -h HOST -p PORT`.

Dagster's default launcher starts a run as a child of the code server, and nothing looks after it when the server's
container goes: the run stays STARTED for ever and keeps its slots. In: the Dagster instance of `DAGSTER_HOME`. Out: the
runs that went down with the server before are failed, so that the daemon takes them up again (`run_retries`); then this
process becomes `dagster code-server start`.
"""

import logging
import os
import sys

import dagster as dg
from dagster._core.events import JobFailureData, RunFailureReason

from macrec_pipeline.defs.tracked import COMMAND_LINE, LAUNCHED_BY

logger = logging.getLogger(__name__)

_WITH_THE_SERVER = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED]
_WHY = "The code server was stopped or killed while this run was at work."


def fail_runs_of_the_server_before(instance: dg.DagsterInstance) -> list[str]:
    """Fail the runs that were children of a code server that is gone, and free their slots.

    A run of the command line is a process of its own (see `abandoned_runs`) and is left alone.

    Returns:
        The ids of the runs.
    """
    runs = instance.get_runs(filters=dg.RunsFilter(statuses=_WITH_THE_SERVER))
    dead = [run for run in runs if run.tags.get(LAUNCHED_BY) != COMMAND_LINE]
    for run in dead:
        reason = JobFailureData(error=None, failure_reason=RunFailureReason.UNEXPECTED_TERMINATION)
        instance.report_run_failed(run, _WHY, reason)
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        logger.warning("%s went down with the code server before; it is failed now.", run.run_id)
    return [run.run_id for run in dead]


def main() -> None:
    """Close what the server before has left, then become the code server."""
    with dg.DagsterInstance.get() as instance:
        fail_runs_of_the_server_before(instance)
    server = ("-m", "dagster", "code-server", "start", "-m", "macrec_pipeline.definitions")
    os.execv(sys.executable, [sys.executable, *server, *sys.argv[1:]])  # noqa: S606  # no shell, by design


if __name__ == "__main__":
    main()
