"""The whole pipeline on a tiny shop, run as a person would: everything is tracked, served, and survives a kill.

Each run is a separate process of the `macrec` command, with its state and data in the test's folder.
"""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from macrec_pipeline.recommender import RecommenderBundle, load_item_embeddings
from macrec_pipeline.storage import AssetStore
from macrec_pipeline.tracking.store import connect
from tests.s3_server import S3Server

ASSETS = (
    "raw_interactions",
    "raw_items",
    "interactions",
    "items",
    "quarantine",
    "histories",
    "text_embeddings",
    "image_embeddings",
    "sasrec",
    "pseudo_labels",
    "quantizer",
    "semantic_ids",
    "recommender",
    "predictions",
    "evaluation_report",
    "champion_comparison",
    "refitted_recommender",
    "champion_refit",
    "registered_model",
)
# Their bytes depend on the run: the report prints its IDs and date, the registration its version.
NAMES_ITS_RUN = ("evaluation_report", "registered_model")
SECONDS = 600
DATASET = """
name: tiny
title: A tiny shop
preset: demo
k_core: 3
source: {reader: demo, folder: shop, num_items: 60, num_users: 80, seed: 3}
overrides:
  text_encoder: {max_tokens: 32}
  pseudo_labels: {num_clusters: 8}
  sasrec: {d_model: 16, max_epochs: 2}
  quantizer: {codebook_size: 8, projection_dim: 32, hidden_dims: [32], latent_dim: 8, num_epochs: 20, batch_size: 64}
  recommender:
    {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_encoder_layers: 1, num_decoder_layers: 1, num_epochs: 3,
     batch_size: 512}
  decoding: {beam_width: 10}
  evaluation: {bootstrap_samples: 50, num_sample_users: 3}
"""


@dataclass(frozen=True)
class Shop:
    """The folders of the tiny shop: its YAML file and its data."""

    datasets: Path
    data: Path

    def environment(self, home: Path) -> dict[str, str]:
        added = {"MACREC_HOME": str(home), "MACREC_DATA": str(self.data), "MACREC_DATASETS": str(self.datasets)}
        removed = ("DAGSTER_HOME", "MLFLOW_", "MACREC_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
        return {**inherited, **added, "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}

    def start(self, home: Path, *arguments: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "macrec_pipeline.cli", "run", "tiny", *arguments],
            env=self.environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@dataclass(frozen=True)
class Run:
    """A finished run."""

    home: Path
    status: int
    out: str
    err: str
    url: str | None = None

    @property
    def store(self) -> AssetStore:
        return AssetStore(self.home, "tiny", url=self.url)

    def mlflow_runs(self, kind: str) -> list[Any]:
        client = connect(self.home, create=False).client
        experiment = client.get_experiment_by_name("macrec/tiny")
        assert experiment is not None
        return list(client.search_runs([experiment.experiment_id], f"tags.`macrec.kind` = '{kind}'"))


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "tiny.yaml").write_text(DATASET, encoding="utf-8")
    return Shop(folder / "datasets", folder / "data")


@pytest.fixture(scope="module")
def finished(shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An uninterrupted run of the whole pipeline, with which other runs are compared."""
    home = tmp_path_factory.mktemp("home")
    return _finish(shop.start(home), home)


def _finish(process: "subprocess.Popen[str]", home: Path) -> Run:
    out, err = process.communicate(timeout=SECONDS)
    return Run(home, process.returncode, out, err)


def _wait_for_output(process: "subprocess.Popen[str]", text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(f"the run ended before it printed {text!r}: {process.communicate(timeout=SECONDS)[1][-2000:]}")


def _dagster_statuses(shop: Shop, home: Path) -> list[str]:
    """Of all runs of the home's Dagster instance, oldest first; read in a separate process."""
    code = (
        "import dagster as dg, json\n"
        "with dg.DagsterInstance.get() as instance:\n"
        "    print(json.dumps([run.status.value for run in instance.get_runs(ascending=True)]))"
    )
    environment = {**shop.environment(home), "DAGSTER_HOME": str(home / "dagster")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    statuses: list[str] = json.loads(done.stdout)
    return statuses


@pytest.mark.slow
def test_every_asset_is_materialized_and_tracked(finished: Run, shop: Shop) -> None:
    """One command materializes every asset; each has a FINISHED MLflow child run below one FINISHED parent."""
    assert finished.status == 0, finished.err[-3000:]
    (parent,) = finished.mlflow_runs("pipeline")
    children = finished.mlflow_runs("asset")
    assert parent.info.status == "FINISHED"
    assert sorted(child.data.tags["macrec.asset"] for child in children) == sorted(ASSETS)
    for child in children:
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.data.params["quantizer.num_epochs"] == "20"
    recommender = next(child for child in children if child.data.tags["macrec.asset"] == "recommender")
    inputs = {name: finished.store.manifest(name).digest for name in ("histories", "items", "semantic_ids", "sasrec")}
    assert {name: recommender.data.params[f"input.{name}"] for name in inputs} == inputs
    assert _dagster_statuses(shop, finished.home) == ["SUCCESS"]


@pytest.mark.slow
def test_the_terminal_shows_metrics_and_where_the_results_are(finished: Run) -> None:
    """The terminal shows each system's metrics, the report, the MLflow store and the model, and no debug output."""
    for text in ("MACRec, fused", "text route", "image route", "SASRec", "item-kNN", "popularity", "HR@10", "NDCG@10"):
        assert text in finished.out
    for place in ("tiny/evaluation_report/report.html", "mlflow/mlflow.db", "models:/macrec-tiny/1", "@champion"):
        assert place in finished.out
    for stage in ("text embeddings", "image embeddings", "quantizer", "recommender", "decoding", "sasrec"):
        assert f"{stage}: " in finished.out
    assert "DEBUG" not in finished.err + finished.out
    allowed = "Warning: Check `macrec_beats_popularity` of evaluation_report failed"  # three epochs may lose
    lines = [line for line in finished.err.splitlines() if not line.startswith(allowed)]
    unreadable = [line for line in lines if line.startswith("shop/interactions.csv, column 'event_time': 1 of")]
    assert len(unreadable) == 1, "the demo shop's log has one time that cannot be read"
    lines.remove(unreadable[0])
    assert sorted(line.split()[0] for line in lines) == sorted(ASSETS)


@pytest.mark.slow
def test_metrics_and_report_are_at_documented_paths(finished: Run) -> None:
    """`metrics.json` and `report.html` have fixed paths, and every test user counts in every system."""
    folder = finished.home / "tiny" / "evaluation_report"
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    users = finished.store.read_table("histories").height
    assert metrics["dataset"] == "tiny"
    assert metrics["num_test_users"] == users
    for systems in (metrics["systems"], metrics["systems_excluding_seen"]):
        assert set(systems) == {"macrec", "macrec_text", "macrec_image", "popularity", "item_knn", "sasrec"}
        for values in systems.values():
            assert values["hr_10_ci"][0] <= values["hr_10"] <= values["hr_10_ci"][1]
    for route in ("text", "image"):
        assert metrics["collision_rate"][route]["after"] == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


@pytest.mark.slow
def test_the_registered_model_recommends_what_the_refit_does(finished: Run, shop: Shop) -> None:
    """A process that has only MLflow loads `@champion` and gets the items of the refitted bundle for each test user."""
    store = finished.store
    item_ids = store.read_table("items")["item_id"].to_list()
    inputs = [[item_ids[index] for index in row[:-1]] for row in store.read_table("histories")["item_indices"]]
    refit = RecommenderBundle.load(store.folder("refitted_recommender") / "bundle")
    top_k = len(store.read_table("predictions")["item_indices"][0])
    expected = [answer.item_ids for answer in refit.recommend_ids(inputs, k=top_k)]
    code = (
        "import json, sys\nsys.modules |= {'dagster': None, 'polars': None}\nimport mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model('models:/macrec-tiny@champion')\n"
        "request = json.load(sys.stdin)\n"
        "answers = model.predict(pd.DataFrame({'history': request['histories']}), params={'k': request['k']})\n"
        "print(json.dumps({'items': list(answers['item_ids']), 'fallback': list(answers['fallback'])}))"
    )
    environment = {
        **shop.environment(finished.home),
        "MLFLOW_TRACKING_URI": f"sqlite:///{finished.home / 'mlflow' / 'mlflow.db'}",
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps({"histories": inputs, "k": top_k}),
        env=environment,
        cwd=finished.home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.splitlines()[-1])
    assert answers["items"] == expected
    assert set(answers["fallback"]) == {"none"}


@pytest.mark.slow
def test_the_command_recommends_and_refuses_more_than_the_catalogue(finished: Run, shop: Shop) -> None:
    """`macrec recommend` shows k items, none of them forbidden by a rule.

    If k is larger than the catalogue, it fails with one line instead of showing fewer items.
    """
    item_ids = finished.store.read_table("items")["item_id"].to_list()

    def ask(k: int, *rules: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "macrec_pipeline.cli", "recommend", "--model", "models:/macrec-tiny@champion"]
        return subprocess.run(
            [*command, "--history", ",".join(item_ids[:2]), "-k", str(k), *rules],
            env=shop.environment(finished.home),
            capture_output=True,
            text=True,
            check=False,
        )

    answered, refused = ask(5, "--allow", ",".join(item_ids[:6]), "--exclude", item_ids[0]), ask(len(item_ids) + 1)
    assert answered.returncode == 0, answered.stderr
    assert set(_recommended(answered.stdout, 5)) == set(item_ids[1:6])
    of_shelf = ask(3, "--category", "Camping", "--exclude-category", "Camping tent")
    categories = dict(finished.store.read_table("items").select("item_id", "categories").iter_rows())
    found = [categories[item_id] for item_id in _recommended(of_shelf.stdout, 3)]
    assert all("Camping" in names and "Camping tent" not in names for names in found)
    assert refused.returncode == 2
    size = len(item_ids)
    message = f"macrec: `k` is {size + 1}, but must be between 1 and {size}, the size of the catalogue."
    assert refused.stderr.strip() == message


@pytest.mark.slow
def test_a_run_after_a_killed_one_has_the_same_bytes(finished: Run, shop: Shop, tmp_path: Path) -> None:
    """After SIGKILL during training, the next run closes what was left open and ends with identical bytes."""
    first = shop.start(tmp_path)
    _wait_for_output(first, "recommender: 1/")
    first.kill()
    first.communicate(timeout=SECONDS)
    killed = Run(tmp_path, first.returncode, "", "")
    assert not killed.store.has("recommender")
    assert {run.info.status for run in killed.mlflow_runs("pipeline")} == {"RUNNING"}

    second = _finish(shop.start(tmp_path), tmp_path)
    assert second.status == 0, second.err[-3000:]
    assert sorted(run.info.status for run in second.mlflow_runs("pipeline")) == ["FINISHED", "KILLED"]
    statuses = sorted((run.data.tags["macrec.asset"], run.info.status) for run in second.mlflow_runs("asset"))
    assert [pair for pair in statuses if pair[1] != "FINISHED"] == [("recommender", "KILLED")]
    assert _dagster_statuses(shop, tmp_path) == ["CANCELED", "SUCCESS"]
    _assert_same_bytes(finished, second)
    assert not list(tmp_path.glob("tiny/.versions/*/writing-*"))


@pytest.mark.slow
def test_tables_and_models_on_s3(
    finished: Run, shop: Shop, s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is killed and resumed leaves the same bytes at the URL, from which another machine recommends."""
    url, state, keys = s3.new_url(), tmp_path / "state", s3.environment
    environment = {**shop.environment(state), **keys, "MACREC_HOME": url, "MACREC_STATE": str(state)}
    monkeypatch.setattr(Shop, "environment", lambda *_: environment)
    first = shop.start(state)
    _wait_for_output(first, "recommender: 1/")
    first.kill()
    first.communicate(timeout=SECONDS)
    assert not AssetStore(state, "tiny", url=url).has("recommender")

    second = _finish(shop.start(state, "--resume"), state)
    assert second.status == 0, second.err[-3000:]
    assert "Assets left to materialize: 7" in second.err
    assert f"{url}/tiny" in second.out
    remote = Run(tmp_path / "remote", 0, "", "", url=url)
    _assert_same_bytes(finished, remote)
    bundle = RecommenderBundle.load(remote.store.folder("recommender") / "bundle", device=torch.device("cpu"))
    item_ids = remote.store.read_table("items")["item_id"].to_list()
    (answer,) = bundle.recommend_ids([item_ids[:3]], k=5)
    assert len(set(answer.item_ids)) == 5

    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += [s3.content(f"{url}/{name}") for name in s3.names(url)]
    assert not any(keys["AWS_SECRET_ACCESS_KEY"].encode() in content for content in written)
    assert not any(keys["AWS_ACCESS_KEY_ID"].encode() in content for content in written)


@pytest.mark.slow
def test_sasrec_works_as_a_third_route_in_the_whole_pipeline(finished: Run, shop: Shop, tmp_path: Path) -> None:
    """SASRec is trained once, used by the quantizer, weighted on validation data and served as a route of its own."""
    overrides = (
        "decoding.fusion=calibrated",
        "decoding.collaborative_route=true",
        "quantizer.collaborative_input_weight=0.5",
        "quantizer.collaborative_contrast_weight=0.1",
    )
    run = _finish(shop.start(tmp_path, *(word for setting in overrides for word in ("--set", setting))), tmp_path)
    assert run.status == 0, run.err[-3000:]
    assert run.store.manifest("sasrec").files == finished.store.manifest("sasrec").files
    assert run.store.manifest("quantizer").files != finished.store.manifest("quantizer").files
    quantizer = json.loads((run.store.folder("quantizer") / "quantizer.json").read_text(encoding="utf-8"))
    embeddings = load_item_embeddings(run.store.folder("sasrec"))
    assert embeddings is not None
    assert quantizer["collaborative_dim"] == embeddings.shape[1]
    bundle = run.store.folder("recommender") / "bundle"
    description = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    assert "sasrec.safetensors" in description["parts"]
    assert set(description["fusion"]["weights"]) == {"text", "image", "collaborative"}
    predictions = run.store.read_table("predictions")
    assert set(predictions["system"]) == {"macrec", "macrec_text", "macrec_image", "sasrec"}
    item_ids = run.store.read_table("items")["item_id"].to_list()
    inputs = run.store.read_table("histories")["item_indices"][0].to_list()[:-1]
    refit = RecommenderBundle.load(run.store.folder("refitted_recommender") / "bundle")
    (expected,) = refit.recommend_ids(
        [[item_ids[index] for index in inputs]], k=5, route="collaborative", exclude_seen=True
    )
    command = [sys.executable, "-m", "macrec_pipeline.cli", "recommend", "--model", "models:/macrec-tiny@champion"]
    history = ",".join(item_ids[index] for index in inputs)
    answered = subprocess.run(
        [*command, "--history", history, "-k", "5", "--route", "collaborative", "--exclude-seen"],
        env=shop.environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answered.returncode == 0, answered.stderr
    assert _recommended(answered.stdout, 5) == expected.item_ids


@pytest.mark.slow
def test_ctrl_c_closes_the_run_and_keeps_finished_assets(finished: Run, shop: Shop) -> None:
    """SIGINT during training prints one line and exits with status 130; the asset's previous version stays in place."""
    before = finished.store.manifest("recommender").digest
    process = shop.start(finished.home, "--only", "recommender", "--set", "seed=4")
    _wait_for_output(process, "recommender: 1/")
    process.send_signal(signal.SIGINT)
    interrupted = _finish(process, finished.home)
    assert interrupted.status == 130
    assert interrupted.err.splitlines() == ["macrec: Interrupted. Finished work is kept."]
    assert interrupted.store.manifest("recommender").digest == before
    assert sorted(run.info.status for run in interrupted.mlflow_runs("pipeline")) == ["FINISHED", "KILLED"]
    assert _dagster_statuses(shop, finished.home) == ["SUCCESS", "CANCELED"]


@pytest.mark.slow
def test_the_champion_is_evaluated_on_the_newest_files(finished: Run, shop: Shop) -> None:
    """One command cleans the files again and prints the champion's metrics; it registers nothing."""
    command = [sys.executable, "-m", "macrec_pipeline.cli", "evaluate-champion", "tiny"]
    done = subprocess.run(command, env=shop.environment(finished.home), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "macrec-tiny@champion is version 1, evaluated on" in done.stdout
    predicted = json.loads((finished.home / "tiny" / "evaluation_report" / "metrics.json").read_text(encoding="utf-8"))
    popularity = predicted["systems"]["popularity"]["ndcg_10"]
    assert f"; most popular items {popularity:.4f}" in done.stdout
    client = connect(finished.home, create=False).client
    assert [found.version for found in client.search_model_versions("name = 'macrec-tiny'")] == [1]


def _assert_same_bytes(one: Run, other: Run) -> None:
    for asset in ASSETS:
        if asset not in NAMES_ITS_RUN:
            assert one.store.manifest(asset).files == other.store.manifest(asset).files, asset
    reports = [run.store.manifest("evaluation_report").files for run in (one, other)]
    for file in ("metrics.json", "per_user.parquet"):
        assert reports[0][file] == reports[1][file], file
    registrations = [
        json.loads((run.store.folder("registered_model") / "registration.json").read_text(encoding="utf-8"))
        for run in (one, other)
    ]
    assert registrations[0]["bundle_digest"] == registrations[1]["bundle_digest"]


def _recommended(output: str, k: int) -> list[str]:
    """Return the item IDs that `macrec recommend` printed, best first; a long path beside one may span lines."""
    ranks, item_ids = zip(*re.findall(r"^(\d+) +(P\d+) ", output, re.MULTILINE), strict=True)
    assert ranks == tuple(str(rank) for rank in range(1, k + 1)), output
    return list(item_ids)
