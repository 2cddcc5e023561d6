"""Fixtures for the tests of tracking: a home with a ready database, and a fake bundle that needs no training."""

import json
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # MLflow warns about its own code while it is imported
    import mlflow.pyfunc.scoring_server  # noqa: F401

import macrec_pipeline.recommender.retrieval.eligible_items  # noqa: F401, before the package is replaced
from macrec_pipeline.errors import RequestError
from macrec_pipeline.recommender.retrieval.diversity import DiversityOptions
from macrec_pipeline.tracking import Tracker, open_tracking


@contextmanager
def plain_environment() -> Iterator[None]:
    """Remove all MLflow and MACRec variables from the environment, and restore the environment afterwards."""
    before = dict(os.environ)
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "MACREC_"))]:
        del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def isolated_environment() -> Iterator[None]:
    """Keep settings of the machine out of the tests, and settings of a test out of the others."""
    with plain_environment():
        yield


@pytest.fixture(scope="session")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a database with `open_tracking`, once for all tests."""
    home = tmp_path_factory.mktemp("fresh")
    with plain_environment():
        open_tracking(home)
    return home / "mlflow" / "mlflow.db"


@pytest.fixture
def home(tmp_path: Path, fresh_database: Path) -> Path:
    """Create a home with an empty store. Its name contains a space, which must be quoted in URIs."""
    folder = tmp_path / "a home"
    (folder / "mlflow").mkdir(parents=True)
    shutil.copyfile(fresh_database, folder / "mlflow" / "mlflow.db")
    return folder


@pytest.fixture
def tracker(home: Path) -> Tracker:
    return open_tracking(home)


@dataclass(frozen=True)
class FakeAnswer:
    item_ids: list[str]
    scores: list[float]
    fallback: str


class FakeBundle:
    """A bundle that recommends its items in order and remembers the last request."""

    def __init__(self, item_ids: list[str], answers: bool) -> None:
        self.item_ids, self._answers = item_ids, answers
        self.num_items, self.routes = len(item_ids), ["text", "image"]
        self.last_request: dict = {}
        self.diversity = DiversityOptions(0.25, max_per_prefix=2, prefix_length=3)

    @classmethod
    def load(cls, folder: Path, *, device: str | None = None) -> "FakeBundle":
        content = json.loads((Path(folder) / "bundle.json").read_text())
        return cls(content["item_ids"], content.get("answers", True))

    def recommend_ids(
        self,
        histories,
        *,
        k=10,
        route="fused",
        exclude_seen=False,
        beam_width=None,
        rules=None,
        rules_of_rows=None,
        explain=False,
        diversity=None,
    ):
        self.last_request = {
            "histories": histories,
            "k": k,
            "route": route,
            "exclude_seen": exclude_seen,
            "beam": beam_width,
        }
        self.rules = rules, rules_of_rows
        self.requested_diversity = diversity
        if not self._answers:
            raise RequestError("the fake bundle rejects every request")
        fallbacks = ["none" if set(history) & set(self.item_ids) else "popularity" for history in histories]
        scores = [1.0 / (rank + 1) for rank in range(k)]
        return [FakeAnswer(self.item_ids[:k], scores, fallback) for fallback in fallbacks]


@pytest.fixture
def fake_recommender(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the recommender package, so that these tests train nothing."""
    package, module = ModuleType("macrec_pipeline.recommender"), ModuleType("macrec_pipeline.recommender.bundle.bundle")
    module.RecommenderBundle = FakeBundle  # type: ignore[attr-defined]
    package.bundle = module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "macrec_pipeline.recommender", package)
    monkeypatch.setitem(sys.modules, "macrec_pipeline.recommender.bundle.bundle", module)


@pytest.fixture
def bundle_folder(tmp_path: Path, fake_recommender: None) -> Path:
    folder = tmp_path / "fake bundle"
    folder.mkdir()
    (folder / "bundle.json").write_text(json.dumps({"item_ids": [f"item-{index}" for index in range(12)]}))
    return folder
