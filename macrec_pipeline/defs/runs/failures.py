"""Reports a failed run to its owner: what failed, why, and how to continue.

The report becomes tags on the run's page in Dagster. It is also sent to a command or a webhook, if the environment
names one. Only the environment can name them, because it belongs to the operator: a data set's file comes with the data
and must not make this machine run a command or call an address.
"""

import json
import logging
import os
import shlex
import subprocess
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

import dagster as dg

from macrec_pipeline.defs.dagster_private import PARTITION_TAG, WILL_RETRY_TAG
from macrec_pipeline.defs.jobs import BATCH_RECOMMENDATIONS, EVALUATE_CHAMPION, FULL_PIPELINE, REFRESH
from macrec_pipeline.defs.run_tags import ERROR_TAG, RESUME_TAG

logger = logging.getLogger(__name__)

COMMAND = "MACREC_ON_FAILURE_COMMAND"
WEBHOOK = "MACREC_ON_FAILURE_WEBHOOK"
_TIMEOUT_SECONDS = 30.0
_MAX_ERROR_LENGTH = 1000
COMMAND_OF_JOB = {
    FULL_PIPELINE: "macrec run",
    REFRESH: "macrec refresh",
    BATCH_RECOMMENDATIONS: "macrec recommend-all",
    EVALUATE_CHAMPION: "macrec evaluate-champion",
}
"""The command that launches each job, without the data set."""


def report_failure(instance: dg.DagsterInstance, run: dg.DagsterRun, *, reason: str | None = None) -> dict[str, str]:
    """Tag a failed run with why it failed and how to continue, and send the same to the owner's hooks.

    The hooks are only called for the last attempt, not if the daemon will launch the run again. A hook
    that fails is logged, and never raises.

    Args:
        instance: the run's instance.
        run: a run that has ended.
        reason: why the run ended, if that is known; None: what its events say.

    Returns:
        What the hooks get: `text` for a chat, and `dataset`, `job`, `run_id`, `error` and `resume` as single values.
    """
    dataset = run.tags.get(PARTITION_TAG, "")
    error = " ".join((reason or _error_from_events(instance, run.run_id)).split())[:_MAX_ERROR_LENGTH]
    will_retry = run.tags.get(WILL_RETRY_TAG) == "true"
    if will_retry:
        resume = "No action is needed: the daemon launches the run again, and finished steps are not repeated."
    else:
        resume = "On the run's page in Dagster, choose Re-execute, From failure; finished steps are not repeated."
        if run.job_name in COMMAND_OF_JOB:
            resume += f" Or run `{COMMAND_OF_JOB[run.job_name]} {dataset}`: training continues after its last epoch."
    instance.add_run_tags(run.run_id, {ERROR_TAG: error, RESUME_TAG: resume})
    message = {
        "text": f"macrec: {run.job_name} of {dataset} failed. {error} {resume}",
        "dataset": dataset,
        "job": run.job_name,
        "run_id": run.run_id,
        "error": error,
        "resume": resume,
    }
    for variable, send in ((COMMAND, _run_command), (WEBHOOK, _post)):
        if os.environ.get(variable) and not will_retry:
            try:
                send(os.environ[variable], message)
            except (OSError, ValueError, subprocess.SubprocessError) as hook_error:
                # Only the type: the message may contain the address, and for many chats the address is the secret.
                logger.warning("The hook in %s failed with %s.", variable, type(hook_error).__name__)
    return message


def failed_checks(instance: dg.DagsterInstance, run_id: str, *, blocking: bool) -> list[str]:
    """Return one line for each failed check of a run, with what the check found."""
    lines = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        evaluation = entry.get_dagster_event().asset_check_evaluation_data
        if not evaluation.passed and evaluation.blocking == blocking:
            asset = evaluation.asset_key.to_user_string()
            lines.append(f"Check `{evaluation.check_name}` of {asset} failed: {evaluation.description}")
    return lines


def _error_from_events(instance: dg.DagsterInstance, run_id: str) -> str:
    checks = failed_checks(instance, run_id, blocking=True)
    if checks:
        return " ".join(checks)
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        error = event.step_failure_data.error
        if error is not None:  # Dagster wraps the error of the asset, which is the cause
            message = (error.cause or error).message.removeprefix("macrec_pipeline.errors.")
            return f"{event.step_key}: {message}"
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE):
        return entry.get_dagster_event().message or entry.user_message
    return "The run's events do not say why."


def _run_command(command: str, message: Mapping[str, str]) -> None:
    """Run a command line, without a shell, with the message as JSON on its standard input."""
    subprocess.run(  # noqa: S603  # the operator's own command
        shlex.split(command),
        input=json.dumps(message).encode(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        timeout=_TIMEOUT_SECONDS,
        check=True,
    )


def _post(address: str, message: Mapping[str, str]) -> None:
    """Send the message as JSON to an http or https address."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError("not an http or https address")
    request = urllib.request.Request(  # noqa: S310  # the scheme is checked above
        address, data=json.dumps(message).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
        pass
