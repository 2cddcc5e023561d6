"""A version runs with the code that it was registered with, or refuses; the pipeline's own commands use their own code.

Three versions of one bundle: 1 and 3 have the code of this checkout, and 2 has code that differs in one line.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from macrec_pipeline.cli import main
from macrec_pipeline.errors import TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.tracking import Tracker, load_model, open_tracking, packaging
from tests.tracking.conftest import plain_environment
from tests.tracking.served import write_trained_bundle

PACKAGE = Path(packaging.__file__).resolve().parents[1]
CHANGED = Path("recommender/bundle/bundle.py")
FALLBACK = '"none" if len(history)'

LOAD = """
import json, sys
import mlflow, pandas as pd
if sys.argv[1] == "installed first":
    import macrec_pipeline
answers = []
for version in sys.argv[2:]:
    try:
        model = mlflow.pyfunc.load_model(f"models:/macrec-demo/{version}")
        answers.append(model.predict(pd.DataFrame({"history": [["item-3"]]}), params={"k": 2})["fallback"][0])
    except mlflow.exceptions.MlflowException as error:
        answers.append(error.message)
print(json.dumps(answers))
"""


def register(tracker: Tracker, bundle: Path) -> int:
    with tracker.asset_run(
        dataset="demo", asset="registered_model", dagster_run_id="run-1", config=resolve_config("demo")
    ) as run:
        return tracker.register(bundle, dataset="demo", metrics={}, dagster_run_id="run-1", run_id=run.run_id).version


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    other = tmp_path_factory.mktemp("other") / PACKAGE.name
    shutil.copytree(PACKAGE, other, ignore=shutil.ignore_patterns("__pycache__"))
    text = (other / CHANGED).read_text(encoding="utf-8")
    assert text.count(FALLBACK) == 1
    (other / CHANGED).write_text(text.replace(FALLBACK, '"none by other code" if len(history)'), encoding="utf-8")
    with plain_environment(), pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("home")
        tracker = open_tracking(home)
        bundle = write_trained_bundle(tmp_path_factory.mktemp("trained") / "parts")
        assert register(tracker, bundle) == 1
        patch.setattr(packaging, "_PACKAGE", other)
        assert register(tracker, bundle) == 2
        patch.setattr(packaging, "_PACKAGE", PACKAGE)
        assert register(tracker, bundle) == 3
        yield home


def answers_of(home: Path, *arguments: str) -> list[str]:
    """Load versions in one new process, and return how each answers or refuses."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": open_tracking(home).uri, "PYTHONPATH": str(PACKAGE.parent)}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: list[str] = json.loads(done.stdout)
    return answers


def test_one_process_does_not_run_a_version_with_the_code_of_another(home: Path) -> None:
    """The second version refuses in a sentence that says what to do, and others still answer."""
    first, refused, same_code = answers_of(home, "fresh", "1", "2", "3")
    assert (first, same_code) == ("none", "none")
    assert refused.startswith("This version of the model was registered with other code than the package")
    assert f"{CHANGED} differs. " in refused
    assert "Load this version in a new process" in refused
    own_code, refused = answers_of(home, "fresh", "2", "1")
    assert own_code == "none by other code"
    assert f"{CHANGED} differs. " in refused


def test_an_installed_package_is_no_obstacle_unless_it_was_imported_and_differs(home: Path) -> None:
    """The code of the version comes first on the path; an imported package with the same code is as good."""
    same_code, refused = answers_of(home, "installed first", "1", "2")
    assert same_code == "none"
    assert f"imported from {PACKAGE}: {CHANGED} differs. " in refused


def test_the_pipeline_uses_versions_of_other_code(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """After an upgrade, the commands that read bundles still do: `macrec recommend`, comparison and evaluation."""
    with pytest.raises(TrackingError, match=f"{CHANGED} differs"):
        load_model("models:/macrec-demo/2", home)
    with pytest.raises(SystemExit) as ended:
        main(["recommend", "--model", "models:/macrec-demo/2", "--history", "item-3", "-k", "2", "--home", str(home)])
    out, _ = capsys.readouterr()
    assert (ended.value.code or 0, "Item " in out) == (0, True)
    with open_tracking(home).bundle("demo", 2, evaluated=True) as folder:  # as the two assets of the champion do
        (answer,) = RecommenderBundle.load(folder).recommend_ids([["item-3"]], k=2)
    assert answer.fallback == "none"
