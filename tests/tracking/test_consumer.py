"""The registered model as a service sees it: a fresh process without Dagster, polars or this checkout."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.tracking import Tracker
from tests.tracking.served import write_trained_bundle


@pytest.fixture(scope="module")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_bundle(tmp_path_factory.mktemp("trained") / "made")


CONSUMER = """
import json, sys
for name in ("dagster", "polars", "pydantic_settings", "faiss", "typer"):
    sys.modules[name] = None  # importing it fails
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/macrec-demo@champion")
rows = pd.DataFrame({"history": [["item-3", "unknown", "item-4"], ["unknown"], None]})
answers = {
    route: model.predict(rows, params={"k": 5, "route": route, "beam_width": 2}).to_dict("list")
    for route in ("fused", "text", "image")
}
import macrec_pipeline
print(json.dumps({"answers": answers, "package": macrec_pipeline.__file__}))
"""


def test_a_consumer_in_a_fresh_process(tracker: Tracker, home: Path, trained_bundle: Path, tmp_path: Path) -> None:
    """`models:/macrec-demo@champion` answers as the bundle does, from its own copy of the code, in silence."""
    with tracker.asset_run(
        dataset="demo", asset="registered_model", dagster_run_id="run-1", config=resolve_config("demo")
    ) as run:
        made = tracker.register(
            trained_bundle, dataset="demo", metrics={"hr_10": 0.5}, dagster_run_id="run-1", run_id=run.run_id
        )
    assert made.aliases == ("challenger", "champion")
    environment = {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER, tracker.uri],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    assert str(home / "mlflow" / "artifacts") in said["package"]
    bundle = RecommenderBundle.load(trained_bundle)
    for route, answer in said["answers"].items():
        expected = bundle.recommend_ids(
            [["item-3", "unknown", "item-4"], ["unknown"], []], k=5, route=route, beam_width=2
        )
        assert answer["item_ids"] == [one.item_ids for one in expected]
        np.testing.assert_allclose(answer["scores"], [one.scores for one in expected], rtol=1e-5)
        assert answer["fallback"] == ["none", "popularity", "popularity"]
