"""The whole deployment works: a run survives the loss of each service, and a backup can be restored.

A run is launched through GraphQL and each service is killed while it is in progress. A schedule launches another run,
and the champion is served. At last, both databases and the bucket are backed up and restored into empty stores. The
tests depend on each other, so the fixtures are ordered. `tests.deployment.stack` describes how the stack differs from
docker-compose.yml.
"""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from tests.deployment.stack import Stack, running

pytestmark = pytest.mark.slow

GRAPHQL = "http://webserver:3000/graphql"
RUN_SECONDS = 900
DATASET = """
name: tiny
title: A tiny shop
preset: demo
k_core: 3
source: {reader: demo, folder: shop, num_items: 40, num_users: 60, seed: 3}
overrides:
  text_encoder: {max_tokens: 16}
  pseudo_labels: {num_clusters: 8}
  sasrec: {d_model: 16, max_epochs: 1}
  quantizer: {codebook_size: 8, projection_dim: 32, hidden_dims: [32], latent_dim: 8, num_epochs: 5, batch_size: 256}
  recommender:
    {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_encoder_layers: 1, num_decoder_layers: 1, num_epochs: 1,
     batch_size: 512, tasks: [text_to_text, image_to_image]}
  decoding: {beam_width: 10}
  evaluation: {bootstrap_samples: 20, num_sample_users: 2}
"""
LAUNCH = """
mutation($parameters: ExecutionParams!) {
  launchRun(executionParams: $parameters) { __typename ... on PythonError { message } }
}"""
RUNS = """
{ runsOrError { ... on Runs { results {
  runId status parentRunId tags { key value } stepStats { stepKey status } assetMaterializations { assetKey { path } }
} } } }"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """All services except the champion, started in the order of the compose file and healthy, with a small data set."""
    with running() as stack:
        (stack.folder / "datasets" / "tiny.yaml").write_text(DATASET, encoding="utf-8")
        stack.create_stores()
        stack.start("mlflow")
        stack.start("code-server")
        stack.start("webserver", "daemon")
        yield stack


@pytest.fixture(scope="module")
def finished_runs(stack: Stack) -> list[dict[str, Any]]:
    """A run of the whole pipeline during which every service was killed or frozen, and its retries, oldest first."""
    selector = {
        "repositoryLocationName": "macrec_pipeline.definitions",
        "repositoryName": "__repository__",
        "jobName": "full_pipeline",
    }
    tags = [{"key": "dagster/partition", "value": "tiny"}]
    parameters = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}}
    response = stack.request(GRAPHQL, {"query": LAUNCH, "variables": {"parameters": parameters}})
    assert response["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", response
    num_assets = _wait_for(stack, assets=2)
    stack.restart("code-server")
    disturbances = [
        lambda: stack.restart("mlflow"),
        lambda: stack.restart("postgres"),
        lambda: stack.freeze("s3", seconds=3),
        lambda: stack.restart("webserver", "daemon"),
    ]
    _wait_for(stack, runs=2)
    for number, disturb in enumerate(disturbances):
        _wait_for(stack, assets=num_assets + number)
        disturb()
    return _wait_for_the_end(stack)


@pytest.fixture(scope="module")
def scheduled_run(stack: Stack, finished_runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A run that the daemon launched at the time in the data set's file, after it has ended.

    The champion starts while the time is awaited.
    """
    for attempt in range(4):  # a busy machine may read the file only after that time
        # the first minute that the restarted code server can be ready for
        due = (datetime.now(UTC) + timedelta(seconds=40 + 60 * bool(attempt))).replace(second=0) + timedelta(minutes=1)
        schedule = f'schedule: {{cron: "{due.minute} {due.hour} * * *", job: batch_recommendations}}\n'
        (stack.folder / "datasets" / "tiny.yaml").write_text(DATASET + schedule, encoding="utf-8")
        stack.restart("code-server")
        if not attempt:
            stack.start("champion")
        while len(_runs(stack)) == len(finished_runs) and datetime.now(UTC) < due + timedelta(seconds=60):
            time.sleep(2)
        if len(_runs(stack)) > len(finished_runs):
            return _wait_for_the_end(stack)[-1]
    pytest.fail(f"the schedule launched no run:\n{stack.log('daemon')[-4000:]}")


@pytest.fixture(scope="module")
def response(stack: Stack, scheduled_run: dict[str, Any]) -> Any:
    """The served champion's recommendations for two users, one of them without a history."""
    return _recommendations(stack)


def test_health_check_detects_refused_host_names(stack: Stack) -> None:
    """The health check of MLflow fails for a host name that clients are refused for, although /health succeeds."""
    refused_host = "http://webserver:5000"
    assert stack.execute("mlflow", "python", "/app/probe.py", f"{refused_host}/health").returncode == 0
    checked_url = stack.health("mlflow").args[-2].replace("http://mlflow:5000", refused_host)
    result = stack.execute("mlflow", "python", "/app/probe.py", checked_url)
    assert result.returncode == 1
    assert "403" in result.stderr


def test_run_resumes_after_each_service_is_killed(finished_runs: list[dict[str, Any]], stack: Stack) -> None:
    """The run that died with the code server is marked as failed, and its retry completes the other steps once each.

    A step that is killed after it reported an asset, but before it ended, reports the asset again. If the database is
    killed while the retry writes an event, there is a second retry.
    """
    assert len(finished_runs) in (2, 3)
    for run, retry in pairwise(finished_runs):
        assert run["status"] == "FAILURE"
        assert retry["parentRunId"] == run["runId"]
    assert finished_runs[-1]["status"] == "SUCCESS", stack.log("code-server")[-4000:]
    assets = [{_asset(each) for each in run["assetMaterializations"]} for run in finished_runs]
    assert len(assets[0]) >= 2
    assert len(set().union(*assets)) == 19
    steps = [step["stepKey"] for run in finished_runs for step in run["stepStats"] if step["status"] == "SUCCESS"]
    assert len(steps) == len(set(steps)) > 10


def test_schedule_launches_run(scheduled_run: dict[str, Any], stack: Stack) -> None:
    """The schedule launches a run that computes recommendations for all users."""
    assert scheduled_run["status"] == "SUCCESS", stack.log("code-server")[-4000:]
    assert {"key": "dagster/schedule_name", "value": "batch_recommendations_tiny"} in scheduled_run["tags"]
    assert _asset(scheduled_run["assetMaterializations"][-1]) == "recommendations"


def test_champion_is_served(response: Any) -> None:
    """The served model returns five items for a user with a history, and popular items for a user without one."""
    with_history, without_history = response["predictions"]
    assert len(set(with_history["item_ids"])) == 5
    assert with_history["fallback"] == "none"
    assert without_history["fallback"] == "popularity"


def test_backup_is_restored_into_empty_stores(stack: Stack, scheduled_run: dict[str, Any], response: Any) -> None:
    """Runs and recommendations are the same after both databases and the bucket are lost and restored.

    The commands are those of docs/deployment.md.
    """
    runs = _runs(stack)
    backup = stack.folder / "backup"
    backup.mkdir()
    stack.kill("champion", "daemon", "webserver", "code-server", "mlflow")
    for name in ("dagster", "mlflow"):
        stack.execute("postgres", *stack.client_command("pg_dump", name), "-Fc", "-f", str(backup / name), check=True)
        stack.psql(f"DROP DATABASE {name} WITH (FORCE)")
        stack.psql(f"CREATE DATABASE {name} OWNER {name}")
    stack.copy_bucket("download", backup / "bucket")
    stack.kill("s3")
    stack.start("s3")
    stack.copy_bucket("upload", backup / "bucket")
    for name in ("dagster", "mlflow"):
        restore = (*stack.client_command("pg_restore", name), "--no-owner", f"--role={name}", "--exit-on-error")
        stack.execute("postgres", *restore, str(backup / name), check=True)
    stack.execute("mlflow", "sh", "-c", 'mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"', check=True)
    stack.execute("code-server", "dagster", "instance", "migrate", check=True)
    stack.start("mlflow")
    stack.start("champion")
    assert _recommendations(stack) == response
    restored = stack.psql("SELECT run_id, status FROM runs ORDER BY id", database="dagster").splitlines()
    assert restored == [f"{run['runId']}|{run['status']}" for run in runs]


def _recommendations(stack: Stack) -> Any:
    rows = {"dataframe_records": [{"history": ["P0001", "P0002"]}, {"history": []}], "params": {"k": 5}}
    return stack.request("http://champion:8080/invocations", rows)


def _runs(stack: Stack) -> list[dict[str, Any]]:
    """Return all runs, oldest first."""
    results: list[dict[str, Any]] = stack.request(GRAPHQL, {"query": RUNS})["data"]["runsOrError"]["results"]
    return results[::-1]


def _asset(materialization: dict[str, Any]) -> str:
    return "/".join(materialization["assetKey"]["path"])


def _wait_for(stack: Stack, *, runs: int = 1, assets: int = 0) -> int:
    """Wait until there are `runs` runs with `assets` materializations in total; return how many materializations."""
    deadline = time.monotonic() + RUN_SECONDS
    while len(launched := _runs(stack)) < runs or (num_assets := _num_materializations(launched)) < assets:
        if _is_over(launched[-1]) or time.monotonic() > deadline:
            pytest.fail(f"{launched}\n{stack.log('code-server')[-4000:]}\n{stack.log('daemon')[-4000:]}")
        time.sleep(2)
    return num_assets


def _wait_for_the_end(stack: Stack) -> list[dict[str, Any]]:
    deadline = time.monotonic() + RUN_SECONDS
    while not _is_over((runs := _runs(stack))[-1]) and time.monotonic() < deadline:
        time.sleep(3)
    return runs


def _num_materializations(runs: list[dict[str, Any]]) -> int:
    return sum(len(run["assetMaterializations"]) for run in runs)


def _is_over(run: dict[str, Any]) -> bool:
    """Return whether a run has ended and will not be retried, which Dagster decides after the status is FAILURE."""
    no_retry = {"key": "dagster/will_retry", "value": "false"} in run["tags"]
    return run["status"] == "SUCCESS" or (run["status"] == "FAILURE" and no_retry)
