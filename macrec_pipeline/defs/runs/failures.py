"""What the owner is told when a run has failed, and where it stays: what failed, why, and how to go on.

In: a Dagster run that failed or died. Out: tags on its page in Dagster, and a call of the owner's command or webhook,
if the environment names one. That is the operator's to say: a data set's file comes with the data and may not make
this machine run a command or call an address.
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
from dagster._core.storage.tags import PARTITION_NAME_TAG, WILL_RETRY_TAG

from macrec_pipeline.defs.jobs import BATCH_RECOMMENDATIONS, EVALUATE_CHAMPION, FULL_PIPELINE, REFRESH

logger = logging.getLogger(__name__)

COMMAND = "MACREC_ON_FAILURE_COMMAND"
WEBHOOK = "MACREC_ON_FAILURE_WEBHOOK"
ERROR_TAG, RESUME_TAG = "macrec/error", "macrec/resume"
_TIMEOUT_SECONDS = 30.0
_MAX_ERROR_LENGTH = 1000
_COMMANDS = {
    FULL_PIPELINE: "macrec run",
    REFRESH: "macrec refresh",
    BATCH_RECOMMENDATIONS: "macrec recommend-all",
    EVALUATE_CHAMPION: "macrec evaluate-champion",
}


def tell_of_failure(instance: dg.DagsterInstance, run: dg.DagsterRun, *, why: str | None = None) -> dict[str, str]:
    """Write down on a run's page why it failed and how to go on, and call the owner's hooks; never raises for a hook.

    The hooks are left in peace while the daemon takes the run up again by itself; its last attempt is told of.

    Args:
        instance: that the run belongs to.
        run: a run that has ended.
        why: what is known of its end; None: what its events say.

    Returns:
        What the hooks get: `text` for a chat, and `dataset`, `job`, `run_id`, `error`, `resume` by themselves.
    """
    dataset = run.tags.get(PARTITION_NAME_TAG, "")
    error = " ".join((why or _error_of(instance, run.run_id)).split())[:_MAX_ERROR_LENGTH]
    retried = run.tags.get(WILL_RETRY_TAG) == "true"
    resume = "On the run's page in Dagster: Re-execute, from failure; steps that are finished are not run again."
    if retried:
        resume = "Nothing: the daemon launches it again by itself, and steps that are finished are not run again."
    elif run.job_name in _COMMANDS:
        resume += f" Or `{_COMMANDS[run.job_name]} {dataset}`, in which a training goes on after its last epoch."
    told = {"dataset": dataset, "job": run.job_name, "run_id": run.run_id, "error": error, "resume": resume}
    instance.add_run_tags(run.run_id, {ERROR_TAG: error, RESUME_TAG: resume})
    message = {"text": f"macrec: {run.job_name} of {dataset} failed. {error} {resume}", **told}
    for name, call in ((COMMAND, _run_command), (WEBHOOK, _post)):
        if os.environ.get(name) and not retried:
            try:
                call(os.environ[name], message)
            except (OSError, ValueError, subprocess.SubprocessError) as failure:
                # not the failure itself, whose words may hold the address: with many chats the address is the secret
                logger.warning("The hook of %s could not be told: %s.", name, type(failure).__name__)
    return message


def failed_checks(instance: dg.DagsterInstance, run_id: str, *, blocking: bool) -> list[str]:
    """A line for each check of a run that failed, with what it found."""
    lines = []
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
        verdict = entry.get_dagster_event().asset_check_evaluation_data
        if not verdict.passed and verdict.blocking == blocking:
            lines.append(f"{verdict.asset_key.to_user_string()} ({verdict.check_name}): {verdict.description}")
    return lines


def _error_of(instance: dg.DagsterInstance, run_id: str) -> str:
    checks = failed_checks(instance, run_id, blocking=True)
    if checks:
        return f"Stopped by a check. {' '.join(checks)}"
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        error = event.step_failure_data.error
        if error is not None:  # what the stage raised is the cause of what Dagster made of it
            message = (error.cause or error).message.removeprefix("macrec_pipeline.errors.")
            return f"{event.step_key}: {message}"
    for entry in instance.all_logs(run_id, of_type=dg.DagsterEventType.RUN_FAILURE):
        return entry.get_dagster_event().message or entry.user_message
    return "Nothing is known of why."


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
    """Send the message as JSON."""
    if urlsplit(address).scheme not in ("http", "https"):
        raise ValueError("not an http or https address")
    request = urllib.request.Request(  # noqa: S310  # the scheme has just been looked at
        address, data=json.dumps(message).encode(), headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS):  # noqa: S310
        pass
