"""The whole deployment at work: a run launched through GraphQL, each service killed under it, the champion served.

One more run is launched by the clock. Then a backup of both databases and of the bucket, restored into empty stores. A
story, so the fixtures follow each other; `tests.deployment.stack` says what is real in it and what is not.
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
mutation($asked: ExecutionParams!) {
  launchRun(executionParams: $asked) { __typename ... on PythonError { message } }
}"""
RUNS = """
{ runsOrError { ... on Runs { results {
  runId status parentRunId tags { key value } stepStats { stepKey status } assetMaterializations { assetKey { path } }
} } } }"""


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """Everything up and healthy, in the order of the compose file, with a data set added to the folder of data sets."""
    with running() as made:
        (made.folder / "datasets" / "tiny.yaml").write_text(DATASET, encoding="utf-8")
        made.make_stores()
        made.start("mlflow")
        made.start("code-server")
        made.start("webserver", "daemon")
        yield made


@pytest.fixture(scope="module")
def finished(stack: Stack) -> list[dict[str, Any]]:
    """A run of the whole pipeline under which every service has been killed; the runs that it took, oldest first."""
    selector = {
        "repositoryLocationName": "macrec_pipeline.definitions",
        "repositoryName": "__repository__",
        "jobName": "full_pipeline",
    }
    tags = [{"key": "dagster/partition", "value": "tiny"}]
    asked = {"selector": selector, "runConfigData": {}, "executionMetadata": {"tags": tags}}
    answer = stack.ask(GRAPHQL, {"query": LAUNCH, "variables": {"asked": asked}})
    assert answer["data"]["launchRun"]["__typename"] == "LaunchRunSuccess", answer
    made = _wait_for(stack, assets=2)
    stack.restart("code-server")
    disturbances = [
        lambda: stack.restart("mlflow"),
        lambda: stack.restart("postgres"),
        lambda: stack.freeze("s3", seconds=3),
        lambda: stack.restart("webserver", "daemon"),
    ]
    _wait_for(stack, runs=2)
    for number, disturb in enumerate(disturbances):
        _wait_for(stack, assets=made + number)
        disturb()
    return _wait_for_the_end(stack)


@pytest.fixture(scope="module")
def scheduled(stack: Stack, finished: list[dict[str, Any]]) -> dict[str, Any]:
    """A run that the daemon launched at the minute that the data set's file names, once it has ended."""
    for _ in range(4):  # on a busy machine the file may be read when its minute has passed
        due = datetime.now(UTC).replace(second=0) + timedelta(minutes=2)
        schedule = f'schedule: {{cron: "{due.minute} {due.hour} * * *", job: batch_recommendations}}\n'
        (stack.folder / "datasets" / "tiny.yaml").write_text(DATASET + schedule, encoding="utf-8")
        stack.restart("code-server")
        while len(_runs(stack)) == len(finished) and datetime.now(UTC) < due + timedelta(seconds=60):
            time.sleep(2)
        if len(_runs(stack)) > len(finished):
            return _wait_for_the_end(stack)[-1]
    pytest.fail(f"nothing was launched by the clock:\n{stack.log('daemon')[-4000:]}")


@pytest.fixture(scope="module")
def answer(stack: Stack, finished: list[dict[str, Any]]) -> Any:
    """What the served champion recommends to two users, one of them unknown."""
    stack.start("champion")
    return _recommendations(stack)


def test_the_health_check_sees_what_health_does_not(stack: Stack) -> None:
    """By a name that MLflow does not allow, /health is green and each client is refused; ours asks as a client does."""
    refused = "http://webserver:5000"
    assert stack.execute("mlflow", "python", "/app/probe.py", f"{refused}/health").returncode == 0
    checked = stack.health("mlflow").args[-2].replace("http://mlflow:5000", refused)
    found = stack.execute("mlflow", "python", "/app/probe.py", checked)
    assert found.returncode == 1
    assert "403" in found.stderr


def test_a_run_goes_on_whichever_service_is_killed(finished: list[dict[str, Any]], stack: Stack) -> None:
    """The run that went down with the code server is failed, its retry makes what was left; no step is done twice.

    A step may be killed after its tables are told and before it is: then it tells them again. The database may go in
    the moment in which the retry writes an event; then there is one more.
    """
    assert len(finished) in (2, 3)
    for run, retry in pairwise(finished):
        assert run["status"] == "FAILURE"
        assert retry["parentRunId"] == run["runId"]
    assert finished[-1]["status"] == "SUCCESS", stack.log("code-server")[-4000:]
    made = [{_asset(each) for each in run["assetMaterializations"]} for run in finished]
    assert len(made[0]) >= 2
    assert len(set().union(*made)) == 17
    done = [step["stepKey"] for run in finished for step in run["stepStats"] if step["status"] == "SUCCESS"]
    assert len(done) == len(set(done)) > 10


def test_a_schedule_ticks(scheduled: dict[str, Any], stack: Stack) -> None:
    """The champion's recommendations for everybody are made by the clock."""
    assert scheduled["status"] == "SUCCESS", stack.log("code-server")[-4000:]
    assert {"key": "dagster/schedule_name", "value": "batch_recommendations_tiny"} in scheduled["tags"]
    assert _asset(scheduled["assetMaterializations"][-1]) == "recommendations"


def test_the_champion_answers(answer: Any) -> None:
    """The served model gives five items to a known user, and what is popular to one without a history."""
    known, unknown = answer["predictions"]
    assert len(set(known["item_ids"])) == 5
    assert known["fallback"] == "none"
    assert unknown["fallback"] == "popularity"


def test_a_backup_comes_back_in_empty_stores(stack: Stack, scheduled: dict[str, Any], answer: Any) -> None:
    """By the commands of docs/deployment.md: dump, lose all three stores, restore, upgrade; everything is as it was."""
    runs = _runs(stack)
    backup = stack.folder / "backup"
    backup.mkdir()
    stack.kill("champion", "daemon", "webserver", "code-server", "mlflow")
    for name in ("dagster", "mlflow"):
        stack.execute("postgres", *stack.database("pg_dump", name), "-Fc", "-f", str(backup / name), check=True)
        stack.psql(f"DROP DATABASE {name} WITH (FORCE)")
        stack.psql(f"CREATE DATABASE {name}")
    stack.copy_bucket("download", backup / "bucket")
    stack.kill("s3")
    stack.start("s3")
    stack.copy_bucket("upload", backup / "bucket")
    for name in ("dagster", "mlflow"):
        stack.execute(
            "postgres", *stack.database("pg_restore", name), "--exit-on-error", str(backup / name), check=True
        )
    stack.execute("mlflow", "sh", "-c", 'mlflow db upgrade "$MLFLOW_BACKEND_STORE_URI"', check=True)
    stack.execute("code-server", "dagster", "instance", "migrate", check=True)
    stack.start("mlflow")
    stack.start("champion")
    assert _recommendations(stack) == answer
    kept = stack.psql("SELECT run_id, status FROM runs ORDER BY id", database="dagster").splitlines()
    assert kept == [f"{run['runId']}|{run['status']}" for run in runs]


def _recommendations(stack: Stack) -> Any:
    rows = {"dataframe_records": [{"history": ["P0001", "P0002"]}, {"history": []}], "params": {"k": 5}}
    return stack.ask("http://champion:8080/invocations", rows)


def _runs(stack: Stack) -> list[dict[str, Any]]:
    """All runs, oldest first."""
    results: list[dict[str, Any]] = stack.ask(GRAPHQL, {"query": RUNS})["data"]["runsOrError"]["results"]
    return results[::-1]


def _asset(materialization: dict[str, Any]) -> str:
    return "/".join(materialization["assetKey"]["path"])


def _wait_for(stack: Stack, *, runs: int = 1, assets: int = 0) -> int:
    """Until there are so many runs, and they have made so many assets together; how many they are."""
    deadline = time.monotonic() + RUN_SECONDS
    while len(found := _runs(stack)) < runs or (made := _made(found)) < assets:
        if _is_over(found[-1]) or time.monotonic() > deadline:
            pytest.fail(f"{found}\n{stack.log('code-server')[-4000:]}\n{stack.log('daemon')[-4000:]}")
        time.sleep(2)
    return made


def _wait_for_the_end(stack: Stack) -> list[dict[str, Any]]:
    deadline = time.monotonic() + RUN_SECONDS
    while not _is_over((runs := _runs(stack))[-1]) and time.monotonic() < deadline:
        time.sleep(3)
    return runs


def _made(runs: list[dict[str, Any]]) -> int:
    return sum(len(run["assetMaterializations"]) for run in runs)


def _is_over(run: dict[str, Any]) -> bool:
    """Whether a run has ended and no other is going to take it up; Dagster decides that after it says FAILURE."""
    left = {"key": "dagster/will_retry", "value": "false"} in run["tags"]
    return run["status"] == "SUCCESS" or (run["status"] == "FAILURE" and left)
