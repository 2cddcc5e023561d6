"""A newcomer's first steps: `macrec ui` and a browser, without typing anything else into a terminal."""

import json
import os
import socket
import time
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from macrec_pipeline.defs.servers.local import Server, local_plans, serving
from macrec_pipeline.storage import AssetStore
from tests.ui.chromium import PROGRAM, Page, browser

JOB = "/locations/macrec_pipeline.definitions/jobs/full_pipeline"
RUN_SECONDS = 900.0
DATASET = """
name: tiny
title: A tiny shop
preset: demo
k_core: 2
source: {reader: demo, folder: shop, num_items: 40, num_users: 40, seed: 3}
overrides:
  text_encoder: {max_tokens: 32}
  pseudo_labels: {num_clusters: 4}
  sasrec: {enabled: false}
  quantizer: {method: residual_k_means, codebook_size: 8}
  recommender:
    {d_model: 16, d_ff: 32, d_kv: 8, num_heads: 2, num_encoder_layers: 1, num_decoder_layers: 1, num_epochs: 1,
     batch_size: 256}
  decoding: {beam_width: 10}
  evaluation: {bootstrap_samples: 50, num_sample_users: 3}
"""


@pytest.fixture
def dagster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The Dagster server of `macrec ui`, on a new home."""
    for name in [name for name in os.environ if name.startswith(("MACREC_", "DAGSTER_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "tiny.yaml").write_text(DATASET, encoding="utf-8")
    monkeypatch.setenv("MACREC_DATASETS", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    home = tmp_path / "home"
    home.mkdir()
    plans = local_plans(home, tmp_path / "data", port=_free_port(), mlflow_port=_free_port())
    with serving(plans, logs=home / "logs") as servers:
        yield servers[0]


@pytest.mark.slow
@pytest.mark.skipif(PROGRAM is None, reason="Chromium is not installed: apt-get install chromium")
def test_the_demo_is_materialized_and_inspected_in_the_browser(dagster: Server, tmp_path: Path) -> None:
    """Four clicks start the whole pipeline. The run's page says Success, and the report's page shows its metrics."""
    (tmp_path / "browser").mkdir()
    with browser(tmp_path / "browser") as page:
        page.open(dagster.url + JOB)
        page.click("Materialize all…")
        page.click("All")
        page.click("Launch 1 run")
        page.click("View")
        run = page.wait_for("location.pathname.split('/runs/')[1]", what="the page of the run")
        page.open("about:blank")  # the page of a run in progress uses half a processor
        assert _final_status(dagster, run) == "SUCCESS", (tmp_path / "home" / "logs" / "dagster.log").read_text()[
            -3000:
        ]
        page.open(f"{dagster.url}/runs/{run}")
        page.wait_for("document.body.innerText.split('\\n').includes('Success')", what="the run's success")
        assert "partition: tiny" in page.text()
        metadata = _metadata(page, dagster, "evaluation_report")
    metrics = json.loads((tmp_path / "home" / "tiny" / "evaluation_report" / "metrics.json").read_text())
    assert int(metadata["test_users"]) == metrics["num_test_users"] == 40
    for name in ("hr_10", "ndcg_10"):
        assert float(metadata[name]) == pytest.approx(metrics["systems"]["macrec"][name])
    manifest = AssetStore(tmp_path / "home", "tiny").manifest("evaluation_report")
    assert metadata["digest"] == manifest.digest


def _metadata(page: Page, dagster: Server, asset: str) -> dict[str, str]:
    """Return the metadata that an asset's page shows for its partition: each name with the line after it."""
    page.open(f"{dagster.url}/assets/{asset}?view=partitions&partition=tiny")
    page.wait_for("/\\nMetadata\\n[^]*\\nseconds\\n/.test(document.body.innerText)", what=f"the metadata of {asset}")
    text = page.text()
    assert "\nMaterialized\n" in text
    lines = [line for line in text.partition("\nMetadata\n")[2].splitlines() if line.strip()]
    return dict(pairwise(lines))


def _final_status(dagster: Server, run: str) -> str:
    """Wait for a run and return its status. The browser is not used, because it would slow the run down."""
    query = json.dumps({"query": f'{{runOrError(runId: "{run}") {{... on Run {{status}}}}}}'}).encode()
    deadline = time.monotonic() + RUN_SECONDS
    while time.monotonic() < deadline:
        request = urllib.request.Request(f"{dagster.url}/graphql", query, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            status: str = json.load(response)["data"]["runOrError"]["status"]
        if status in ("SUCCESS", "FAILURE", "CANCELED"):
            return status
        time.sleep(2)
    return "not finished"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
