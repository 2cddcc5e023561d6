"""The service for the champion: the answers of MLflow's own server, limits, readiness, metrics and hot swaps.

The versions are real but tiny bundles, each in a process of its own with its own code.
"""

import html
import json
import os
import random
import re
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
from fastapi.testclient import TestClient

from macrec_pipeline.presets import resolve_config
from macrec_pipeline.serving.app import create_app
from macrec_pipeline.serving.champion import Champion
from macrec_pipeline.serving.model_process import Limits, Message
from macrec_pipeline.serving.served_version import ServedVersion
from macrec_pipeline.serving.server import registered_champion
from macrec_pipeline.serving.settings import ServiceSettings
from macrec_pipeline.tracking import Tracker, load_model, open_tracking
from macrec_pipeline.tracking.packaging import write_code_digests
from macrec_pipeline.tracking.store import connect
from tests.tracking.conftest import mlflow, plain_environment
from tests.tracking.served import ITEM_IDS, write_trained_bundle

URI = "models:/macrec-demo@champion"
SETTINGS = ServiceSettings(
    max_rows=40, max_k=12, max_history=50, max_rule_items=20, max_body_bytes=20_000, poll_seconds=0.2, threads=1
)
PAUSE_SECONDS = 0.02
REQUESTS_PER_SWAP = 20  # the least load that counts


def register(tracker: Tracker, bundle: Path) -> int:
    config = resolve_config("demo")
    with tracker.asset_run(dataset="demo", asset="registered_model", dagster_run_id="run-1", config=config) as run:
        return tracker.register(bundle, dataset="demo", metrics={}, dagster_run_id="run-1", run_id=run.run_id).version


class SharedChampion:
    """The version in service of another champion, which can be held up; ending it leaves the version running."""

    def __init__(self, champion: Champion) -> None:
        self.current, self.loaded_at, self.failure = champion.current, champion.loaded_at, None
        self.num_swaps = self.num_failures = 0
        self._free = threading.Event()
        self._free.set()

    def follow(self) -> None: ...

    def close(self) -> None: ...

    def require(self) -> ServedVersion:
        assert self._free.wait(60)
        assert self.current is not None
        return self.current

    @contextmanager
    def held(self) -> Iterator[None]:
        self._free.clear()
        yield
        self._free.set()

    def release(self) -> None:
        self._free.set()


def champion_of(champion: Champion) -> Any:
    return SharedChampion(champion)


def model_folder(home: Path, version: int) -> Path:
    client = connect(home).client
    source = client.get_model_version_download_uri("macrec-demo", str(version))
    return Path(urlparse(source).path)


def set_champion(home: Path, version: int) -> None:
    connect(home).client.set_registered_model_alias("macrec-demo", "champion", version)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with three versions: as registered, with code of its own that marks its answers, and with broken code."""
    with plain_environment():
        home = tmp_path_factory.mktemp("home")
        bundle = write_trained_bundle(tmp_path_factory.mktemp("trained") / "parts")
        tracker = open_tracking(home)
        assert [register(tracker, bundle) for _ in range(3)] == [1, 2, 3]
        for version, replacement in ((2, '"none by version 2" if len(history)'), (3, "this is not Python")):
            folder = model_folder(home, version)
            package = folder / "code" / "macrec_pipeline"
            code = package / "recommender" / "bundle" / "bundle.py"
            text = code.read_text(encoding="utf-8")
            assert text.count('"none" if len(history)') == 1
            code.write_text(text.replace('"none" if len(history)', replacement), encoding="utf-8")
            write_code_digests(package, folder / "artifacts" / "code.json")  # as if registered with this code
        set_champion(home, 1)
        yield home


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the service keeps the files of the versions that it runs."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def champion(home: Path, scratch: Path) -> Champion:
    return registered_champion(URI, home, SETTINGS, scratch=scratch)


@pytest.fixture(scope="module")
def client(champion: Champion) -> Iterator[TestClient]:
    with TestClient(create_app(champion, SETTINGS), raise_server_exceptions=False) as client:
        wait_for_version(client, 1)
        yield client


@pytest.fixture(autouse=True)
def _version_1(home: Path, client: TestClient) -> Iterator[None]:
    yield
    set_champion(home, 1)
    wait_for_version(client, 1)


def wait_for_version(client: TestClient, version: int) -> None:
    end = time.monotonic() + 120
    while client.get("/ready").json()["version"] != version:
        assert time.monotonic() < end, client.get("/ready").json()
        time.sleep(0.05)


def recorded_requests(number: int) -> Iterator[tuple[str, str]]:
    """Draw bodies in all of MLflow's forms: right ones, and wrong ones of every kind."""
    draw = random.Random(7)
    cells: list[Any] = [["item-3"], ["item-1", "item-4", "unknown"], [], None, "item-1", [1, 2], ["item-1", None], 3]
    for _ in range(number):
        rows = []
        for _ in range(draw.randint(1, 4)):
            row: dict[str, Any] = {"history": draw.choice(cells[:4] if draw.random() < 0.8 else cells)}
            if draw.random() < 0.3:
                row["excluded"] = draw.choice([None, ["item-2"], []])
            if draw.random() < 0.2:
                row["user_id"] = draw.choice(["u1", 7, None])
            rows.append(row)
        names = sorted({name for row in rows for name in row})
        split = {"columns": names, "data": [[row.get(name) for name in names] for row in rows]}
        form = draw.choice(["dataframe_records", "dataframe_split", "inputs", "instances", "rows"])
        payload: dict[str, Any] = {form: split if form == "dataframe_split" else rows}
        if draw.random() < 0.6:
            params = {"k": [1, 5, 12, 0, "many"], "route": ["fused", "text", "audio"], "exclude_seen": [True, False, 1]}
            params |= {"rules": [{}, {"allowed": ["item-5", "item-6"]}, {"allowed": "item-5"}, None], "other": [1]}
            name = draw.choice(list(params))
            payload["params"] = {name: draw.choice(params[name])}
        body = json.dumps(payload)
        content_type = "application/json"
        if draw.random() < 0.05:
            body, content_type = draw.choice(
                [
                    (body[:-1], content_type),
                    ("history\nitem-1\n", "text/csv"),
                    (body, "text/plain"),
                    ("[]", content_type),
                ]
            )
        yield body, content_type


def in_order(text: str) -> str:
    """Sort the names in braces: MLflow prints sets, in an order that differs between processes."""
    return re.sub(r"\{'[\w', ]*'\}", lambda match: str(sorted(match[0].strip("{}").split(", "))), text)


def test_invocations_answer_as_mlflows_own_server(home: Path, client: TestClient) -> None:
    """200 requests, right and wrong, have the status and the body that `mlflow models serve` gives them.

    The exception is `rules: null`, which MLflow refuses. Here it is the default, as null is for all other parameters.
    """
    statuses, num_null_rules = Counter(), 0
    with TestClient(
        mlflow.pyfunc.scoring_server.init(load_model(URI, home)), raise_server_exceptions=False
    ) as mlflow_client:
        for body, content_type in recorded_requests(200):
            headers = {"Content-Type": content_type}
            accepted = body.replace('"params": {"rules": null}', '"params": {}')
            expected = mlflow_client.post("/invocations", content=accepted, headers=headers)
            num_null_rules += accepted != body
            found = client.post("/invocations", content=body, headers=headers)
            assert (found.status_code, in_order(found.text)) == (expected.status_code, in_order(expected.text)), body
            statuses[found.status_code] += 1
    assert statuses[200] > 80
    assert statuses[400] > 40
    assert num_null_rules >= 3


def test_one_user_by_plain_json(client: TestClient) -> None:
    """`/recommend` gives k items, applies rules, takes null as the default, and falls back for an unknown history."""
    answer = client.post("/recommend", json={"history": ["item-3", "item-4"], "k": 5})
    assert answer.status_code == 200
    assert answer.headers["X-Model-Version"] == "1"
    assert len(answer.json()["item_ids"]) == len(answer.json()["scores"]) == 5
    assert answer.json()["fallback"] == "none"
    ruled = {"history": None, "k": 5, "route": None, "exclude_seen": None, "allowed": ["item-2", "item-7", "other"]}
    answer = client.post("/recommend", json=ruled)
    assert sorted(answer.json()["item_ids"]) == ["item-2", "item-7"]
    assert answer.json()["fallback"] == "popularity"


def test_an_explanation_is_added_on_request(home: Path, client: TestClient) -> None:
    """`/recommend` and `/invocations` give the same explanations, and without them the same items and scores."""
    body = {"history": ["item-3", "item-4"], "k": 5}
    plain = client.post("/recommend", json=body).json()
    assert plain == client.post("/recommend", json=body | {"explain": None}).json()
    explained = client.post("/recommend", json=body | {"explain": True}).json()
    explanations = explained.pop("explanations")
    assert explained == plain
    assert len(explanations) == 5
    for explanation in explanations:
        assert explanation["route"] in ("text", "image")
        assert explanation["scores"].keys() == {"text", "image"}
        for shared in explanation["shared_codes"].values():
            assert shared["item_id"] in ("item-3", "item-4")
            assert 1 <= len(shared["codes"]) <= 2
    (fallback,) = client.post("/recommend", json={"history": [], "k": 1, "explain": True}).json()["explanations"]
    assert fallback == {"route": "popular", "scores": {}, "shared_codes": {}}
    form = {"dataframe_records": [{"history": body["history"]}], "params": {"k": 5, "explain": True}}
    (by_mlflow,) = client.post("/invocations", json=form).json()["predictions"]
    assert by_mlflow["explanations"] == explanations


def test_lists_are_diverse_on_request(client: TestClient) -> None:
    """A limit per prefix gives one item for each of the three first codes, and the most for a popular list as well."""
    for history in (["item-3", "item-4"], []):
        body = {"history": history, "k": 3, "max_per_prefix": 1, "route": "text" if history else None}
        items = client.post("/recommend", json=body).json()["item_ids"]
        assert sorted(int(item.removeprefix("item-")) // 4 for item in items) == [0, 1, 2]
        form = {
            "dataframe_records": [{"history": history}],
            "params": {key: body[key] for key in ("k", "max_per_prefix")},
        }
        form["params"] |= {"route": body["route"], "diversity": None}
        assert client.post("/invocations", json=form).json()["predictions"][0]["item_ids"] == items
    plain = client.post("/recommend", json={"history": ["item-3"], "k": 6}).json()
    assert client.post("/recommend", json={"history": ["item-3"], "k": 6, "diversity": 0}).json() == plain


def test_similar_items_of_an_item(client: TestClient) -> None:
    """They are those with the most leading codes in common, under the rules; an unknown item is a 404."""
    answer = client.post("/similar", json={"item_id": "item-5", "k": 3, "method": None})
    assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, "1")
    # item-4, -6 and -7 share the first of two codes with item-5 in both modalities; the more popular one comes first
    expected = {"item_ids": ["item-7", "item-6", "item-4"], "scores": [0.5, 0.5, 0.5], "method": "prefix"}
    assert answer.json() == expected
    ruled = client.post("/similar", json={"item_id": "item-5", "k": 9, "allowed": ["item-5", "item-4", "item-11"]})
    assert ruled.json()["item_ids"] == ["item-4", "item-11"]
    assert len(client.post("/similar", json={"item_id": "item-5", "k": 12}).json()["item_ids"]) == 11
    for body, status, text in (
        ({"item_id": "item_5"}, 404, "no item 'item_5'. Did you mean `item-5`"),
        ({"item_id": "item-5", "method": "latent"}, 422, "This version supports prefix."),
        ({"item_id": "item-5", "method": "taste"}, 422, "latent"),
        ({"item_id": "item-5", "k": 0}, 422, "greater than or equal to 1"),
        ({"item_id": "item-5", "k": 13}, 422, "at most 12 (`max_k`)"),
        ({"item_id": "item-5", "excluded": ["x"] * 21}, 422, "at most 20 (`max_rule_items`)"),
        ({"item_id": "item-5", "allowed_categories": ["no such"]}, 422, "Unknown category 'no such'"),
        ({"k": 3}, 422, "item_id"),
    ):
        answer = client.post("/similar", json=body)
        assert (answer.status_code, text in answer.text) == (status, True), answer.text
    metrics = client.get("/metrics").text
    assert 'macrec_requests_total{endpoint="/similar",status="404"} 1.0' in metrics


def test_a_version_whose_code_is_older_says_that_it_has_no_similar_items(
    home: Path, tmp_path: Path, champion: Champion
) -> None:
    """Its other answers are as before. Limits below the size of the trial request do not keep it from starting."""
    folder = tmp_path / "version"
    shutil.copytree(model_folder(home, 1), folder)
    script = folder / "pyfunc_model.py"
    script.write_text(script.read_text(encoding="utf-8").replace("def similar(", "def not_yet("), encoding="utf-8")
    limits = Limits(max_rows=1, max_k=2, max_history=1, max_rule_items=1)
    version = ServedVersion.start(folder, version=9, digest="", limits=limits, threads=1, load_seconds=300)
    requests = [Message({"kind": "similar"}, b'{"item_id": "item-5"}'), Message({"kind": "recommend"}, b'{"k": 2}')]
    similar, recommended = version.answer(requests)
    version.stop()
    assert (similar.head["status"], recommended.head["status"]) == (501, 200)
    assert "Train and promote a new version" in json.loads(similar.body)["detail"]


@pytest.mark.parametrize(
    ("request_", "status", "text"),
    [
        ({"history": "item-1"}, 422, "history"),
        ({"hist": ["item-1"]}, 422, "hist"),
        ({"history": [], "explain": "why"}, 422, "explain"),
        ({"history": [], "diversity": 1.5}, 422, "less than or equal to 1"),
        ({"history": [], "max_per_category": 1, "max_per_prefix": 1}, 422, "Only one of `max_per_category`"),
        ({"history": [], "max_per_prefix": 1, "prefix_length": 3}, 422, "semantic IDs have only 2 codes"),
        ({"history": [], "k": 0}, 422, "greater than or equal to 1"),
        ({"history": [], "k": 13}, 422, "at most 12 (`max_k`)"),
        ({"history": [], "route": "audio"}, 422, "`route` must be one of fused, text, image"),
        ({"history": ["x"] * 51}, 422, "at most 50 (`max_history`)"),
        ({"history": [], "allowed": ["x"] * 21}, 422, "at most 20 (`max_rule_items`)"),
        ({"history": [], "allowed_categories": ["no such"]}, 422, "Unknown category 'no such'"),
        ({"history": ["x" * 20_001]}, 413, "20,000 bytes (`max_body_bytes`)"),
    ],
)
def test_wrong_and_large_requests_say_what_is_expected(
    client: TestClient, request_: dict[str, Any], status: int, text: str
) -> None:
    answer = client.post("/recommend", json=request_)
    assert answer.status_code == status
    assert text in answer.text


def test_many_rows_are_refused(client: TestClient) -> None:
    """MLflow's server would answer them, in any number."""
    rows = [{"history": ["item-1"]}] * 41
    answer = client.post("/invocations", json={"dataframe_records": rows})
    assert (answer.status_code, answer.json()["detail"]) == (
        413,
        "The request has 41 rows; the service accepts at most 40 (`max_rows`). Send several requests.",
    )


def test_requests_at_the_same_time_are_answered_together(champion: Champion) -> None:
    """Each gets its own answer, also beside a wrong one, and all of them make one batch."""
    settings = SETTINGS.model_copy(update={"batch_window_ms": 300})
    with TestClient(create_app(champion_of(champion), settings), raise_server_exceptions=False) as client:
        bodies = [{"history": [item], "k": 2} for item in ITEM_IDS[:6]] + [{"history": [], "route": "audio"}]
        with ThreadPoolExecutor(len(bodies)) as pool:
            answers = list(pool.map(lambda body: client.post("/recommend", json=body), bodies))
        assert [answer.status_code for answer in answers] == [200] * 6 + [422]
        alone = [client.post("/recommend", json=body).json() for body in bodies[:6]]
        assert [answer.json()["item_ids"] for answer in answers[:6]] == [answer["item_ids"] for answer in alone]
        metrics = client.get("/metrics").text
        assert 'macrec_batch_requests_bucket{le="4.0"} 6.0' in metrics  # those that were alone
        assert "macrec_batch_requests_count 7.0" in metrics


@pytest.mark.slow
def test_swaps_under_load_fail_no_request_and_mix_no_versions(home: Path, client: TestClient) -> None:
    """During 20 swaps, each answer comes from the code of the version that it names, and none fails.

    Two clients ask all the time, with a short pause after each answer: without one, they would take the processor from
    the process that loads the next version, and most of the test would be waiting for it.
    """
    stop = threading.Event()
    seen: list[tuple[int, str, str]] = []

    def ask() -> None:
        while not stop.wait(PAUSE_SECONDS):
            answer = client.post("/recommend", json={"history": ["item-3"], "k": 3})
            seen.append((answer.status_code, answer.headers.get("X-Model-Version", ""), answer.json().get("fallback")))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for swap in range(20):
            set_champion(home, 2 - swap % 2)
            wait_for_version(client, 2 - swap % 2)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(seen) == {(200, "1", "none"), (200, "2", "none by version 2")}
    assert len(seen) > 20 * REQUESTS_PER_SWAP
    assert "macrec_model_swaps_total 20.0" in client.get("/metrics").text


def test_a_version_that_does_not_load_leaves_the_old_one_in_service(
    home: Path, client: TestClient, scratch: Path
) -> None:
    """The readiness and the metrics say so, its files are removed, and a rollback needs nothing else."""
    set_champion(home, 3)
    end = time.monotonic() + 60
    while (ready := client.get("/ready").json())["failure"] is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert (ready["ready"], ready["version"], ready["failure"]["version"]) == (True, 1, 3)
    assert not (scratch / "version-3").exists()
    assert ready["failure"]["reason"].startswith("Version 3 cannot be served: SyntaxError: ")
    assert client.post("/recommend", json={"history": ["item-3"]}).headers["X-Model-Version"] == "1"
    assert "macrec_model_failures_total 1.0" in client.get("/metrics").text
    set_champion(home, 1)
    while client.get("/ready").json()["failure"] is not None:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_killed_model_process_is_replaced(champion: Champion, client: TestClient) -> None:
    """The request that finds it dead is answered by a new process of the same version."""
    assert champion.current is not None
    os.kill(champion.current.process_id, signal.SIGKILL)
    answer = client.post("/recommend", json={"history": ["item-3"], "k": 3})
    assert (answer.status_code, answer.headers["X-Model-Version"]) == (200, "1")


def test_metrics_and_the_access_log_name_no_ids(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """They count requests, users, fallbacks and unknown items."""
    with caplog.at_level("INFO", logger="macrec_pipeline.access"):
        client.post("/recommend", json={"history": ["secret-item", "item-3"], "k": 3})
        client.post("/recommend", json={"history": ["secret-item"], "k": 3})
        client.get("/secret-path")
    text = client.get("/metrics").text
    for name in (
        "macrec_unknown_items_total",
        "macrec_fallback_rows_total",
        "macrec_rows_total",
        "macrec_model_version 1.0",
    ):
        assert f"\n{name}" in text
    assert 'macrec_requests_total{endpoint="/recommend",status="200"}' in text
    assert 'macrec_request_seconds_bucket{endpoint="/recommend",le="0.1"}' in text
    assert "secret" not in text + caplog.text
    entry = json.loads(caplog.records[0].getMessage())
    assert entry.keys() == {"time", "method", "path", "status", "ms", "version", "batch", "rows"}


def test_a_full_queue_answers_503(champion: Champion) -> None:
    """Requests beyond the queue are refused at once, with a time to come back, and the others are answered."""
    settings = SETTINGS.model_copy(update={"batch_window_ms": 1000, "max_batch": 2, "max_queue": 1})
    slow = champion_of(champion)
    app = create_app(slow, settings)
    with (
        TestClient(app, raise_server_exceptions=False) as client,
        slow.held(),
        ThreadPoolExecutor(8) as pool,
    ):
        waiting = [pool.submit(client.post, "/recommend", json={"history": []}) for _ in range(8)]
        time.sleep(1.5)
        slow.release()
        answers = [each.result() for each in waiting]
    refused = [answer for answer in answers if answer.status_code == 503]
    assert 0 < len(refused) < 8
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}
    assert {answer.status_code for answer in answers} == {200, 503}


def test_the_page_of_the_api_loads_nothing_from_elsewhere(client: TestClient) -> None:
    """It describes every endpoint, its examples work, and its policy keeps a browser from loading anything else."""
    answer = client.get("/docs", headers={"Host": "shop.example"})
    assert answer.status_code == 200
    assert re.findall(r"(?:src|href)=\S+", answer.text) == ['href="openapi.json">openapi.json</a>']
    assert not re.search(r"https?://(?!shop\.example)|//cdn|@import|url\(|<link", answer.text)
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for path in client.get("/openapi.json").json()["paths"]:
        assert f" {path}</h2>" in answer.text
    examples = re.findall(r"curl http://\S+?(/\w+) -H \S+ \S+ -d '(.*?)'</pre>", answer.text)
    assert {"/recommend", "/invocations"} <= {path for path, _ in examples}
    for path, body in examples:
        if path in ("/recommend", "/invocations"):
            assert client.post(path, json=json.loads(html.unescape(body))).status_code == 200, body
    assert client.get("/redoc").status_code == 404
