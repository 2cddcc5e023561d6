"""The registered model in a service that has only the model's own requirements and not this checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.tracking import Tracker
from tests.tracking.only_requirements import link_packages
from tests.tracking.served import NUM_ITEMS, write_trained_bundle


@pytest.fixture(scope="module")
def trained_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_bundle(tmp_path_factory.mktemp("trained") / "parts")


CONSUMER = """
import json, sys
from importlib.util import find_spec
import mlflow, pandas as pd
others = ("dagster", "polars", "pydantic_settings", "faiss", "macrec_pipeline")
absent = [name for name in others if not find_spec(name)]
model = mlflow.pyfunc.load_model("models:/macrec-demo@champion")
rows = pd.DataFrame({"history": [["item-3", "unknown", "item-4"], ["unknown"], None]})
answers = {
    route: model.predict(rows, params={"k": 5, "route": route, "beam_width": 2}).to_dict("list")
    for route in ("fused", "text", "image")
}
import macrec_pipeline
print(json.dumps({"answers": answers, "package": macrec_pipeline.__file__, "absent": absent}))
"""


@pytest.fixture
def champion(tracker: Tracker, home: Path, trained_bundle: Path) -> Path:
    """Register the bundle; return the folder of the registered model."""
    with tracker.asset_run(
        dataset="demo", asset="registered_model", dagster_run_id="run-1", config=resolve_config("demo")
    ) as run:
        version = tracker.register(
            trained_bundle, dataset="demo", metrics={"hr_10": 0.5}, dagster_run_id="run-1", run_id=run.run_id
        )
    assert version.aliases == ("challenger", "champion")
    (description,) = home.glob("mlflow/artifacts/demo/models/*/artifacts/MLmodel")
    return description.parent


def consume(champion: Path, tracker: Tracker, folder: Path, *arguments: str) -> str:
    """Run Python as a consumer does, and return its output; nothing may be printed on standard error."""
    requirements = [line for line in (champion / "requirements.txt").read_text().splitlines() if line]
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(link_packages(requirements, folder / "packages")),
        "PYTHONDONTWRITEBYTECODE": "1",
        "MLFLOW_TRACKING_URI": tracker.uri,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    }
    result = subprocess.run(
        [sys.executable, "-S", *arguments],  # -S: without this environment's own packages
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.slow
def test_a_consumer_in_a_clean_environment(
    champion: Path, tracker: Tracker, trained_bundle: Path, tmp_path: Path
) -> None:
    """`models:/macrec-demo@champion` recommends like the bundle, runs its own copy of the code, and prints nothing."""
    output = json.loads(consume(champion, tracker, tmp_path, "-c", CONSUMER))
    assert output["absent"] == ["dagster", "polars", "pydantic_settings", "faiss", "macrec_pipeline"]
    assert str(champion) in output["package"]
    bundle = RecommenderBundle.load(trained_bundle)
    for route, answer in output["answers"].items():
        expected = bundle.recommend_ids(
            [["item-3", "unknown", "item-4"], ["unknown"], []], k=5, route=route, beam_width=2
        )
        assert answer["item_ids"] == [one.item_ids for one in expected]
        np.testing.assert_allclose(answer["scores"], [one.scores for one in expected], rtol=1e-5)
        assert answer["fallback"] == ["none", "popularity", "popularity"]


@pytest.mark.slow
def test_the_batch_script_in_the_docs(champion: Path, tracker: Tracker, trained_bundle: Path, tmp_path: Path) -> None:
    """The script runs in a consumer's environment and recommends to every user, in the order of the file."""
    guide = Path(__file__).parents[2] / "docs" / "serving.md"
    (script,) = re.findall(r"^```python\n(\"\"\"histories.*?)^```", guide.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "recommend_all.py").write_text(script.replace('"k": 10', '"k": 3'))
    histories = [[f"item-{user % NUM_ITEMS}", "unknown"] for user in range(1_100)]
    histories[5] = None
    users = [f"user-{user}" for user in range(len(histories))]
    pd.DataFrame({"user_id": users, "history": histories}).to_parquet(tmp_path / "all.parquet")
    assert consume(champion, tracker, tmp_path, "recommend_all.py", "all.parquet", "found.parquet") == ""
    found = pd.read_parquet(tmp_path / "found.parquet")
    expected = RecommenderBundle.load(trained_bundle).recommend_ids(
        [history or [] for history in histories], k=3, exclude_seen=True
    )
    assert found["user_id"].tolist() == users
    assert [list(items) for items in found["item_ids"]] == [answer.item_ids for answer in expected]
    assert found["fallback"].value_counts().to_dict() == {"none": 1_099, "popularity": 1}
    assert not list(tmp_path.glob("*.part"))
