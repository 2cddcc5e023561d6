"""A run that is killed in every asset in turn, and resumed each time, ends with the bytes of an undisturbed run."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from macrec_pipeline.storage import AssetStore
from tests.faults.killed_everywhere import HALF_WRITTEN, KILLS, NOT_REPORTED
from tests.test_pipeline import ASSETS, DATASET, NAMES_ITS_RUN

CHECKED = {"interactions", "items", "quarantine", "histories", "text_embeddings", "image_embeddings", "semantic_ids"}
CHECKOUT = Path(__file__).resolve().parents[2]
SECONDS = 1500

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Chain:
    """What happened in a chain of killed and resumed runs.

    Attributes:
        killed: the assets in the order in which they were killed.
        runs: the Dagster runs, oldest first.
        first_steps: name, position and total of the first progress report of each training in each run.
        home: the state of the chain.
        reference: the state of a run without a kill.
    """

    killed: list[str]
    runs: list[dict[str, Any]]
    first_steps: list[tuple[str, int, int]]
    home: Path
    reference: Path

    def files(self, asset: str) -> tuple[dict[str, str], dict[str, str]]:
        """The hashes of an asset's files, with and without kills."""
        with_kills, without_kills = (
            AssetStore(home, "tiny").manifest(asset).files for home in (self.home, self.reference)
        )
        return with_kills, without_kills

    def registered(self) -> list[dict[str, Any]]:
        """The content of the registration, with and without kills."""
        folders = (AssetStore(home, "tiny").folder("registered_model") for home in (self.home, self.reference))
        return [json.loads((folder / "registration.json").read_text(encoding="utf-8")) for folder in folders]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """One run without a kill, and a chain of runs, each killed in another asset and resumed."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "tiny.yaml").write_text(DATASET, encoding="utf-8")
    added = {"MACREC_DATA": str(folder / "data"), "MACREC_DATASETS": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
    removed = ("DAGSTER_HOME", "MLFLOW_", "MACREC_")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(removed)}
    reference, home = folder / "reference", folder / "home"
    command = [sys.executable, "-m", "tests.faults.killed_everywhere", str(reference), str(home)]
    done = subprocess.run(
        command, env=inherited | added, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Chain(**json.loads(done.stdout.splitlines()[-1]), home=home, reference=reference)


@pytest.mark.parametrize("asset", KILLS)
def test_a_killed_asset_is_materialized_by_a_resumed_run(asset: str, chain: Chain) -> None:
    """The run of a killed asset is closed, the next run resumes it, and the asset's files have the expected bytes."""
    position = chain.killed.index(asset)
    killed, resumed = chain.runs[position], chain.runs[position + 1]
    assert killed["status"] == "CANCELED"
    assert resumed["lineage"] == [killed["id"], chain.runs[0]["id"]]
    assert asset not in killed["materialized"] or KILLS[asset][0] not in (HALF_WRITTEN, NOT_REPORTED)
    assert any(asset in run["materialized"] for run in chain.runs[position + 1 :])
    if asset not in NAMES_ITS_RUN:
        with_kills, without_kills = chain.files(asset)
        assert with_kills == without_kills


def test_the_chain_ends_with_success(chain: Chain) -> None:
    """After one kill per asset, the last run succeeds."""
    assert sorted(chain.killed) == sorted(KILLS)
    assert [run["status"] for run in chain.runs] == ["CANCELED"] * len(KILLS) + ["SUCCESS"]
    assert not list(chain.home.glob("tiny/.versions/*/writing-*"))


def test_finished_assets_are_not_materialized_again(chain: Chain) -> None:
    """Every asset is materialized once, or twice only if the run died before the result of its blocking check."""
    materialized = [asset for run in chain.runs for asset in run["materialized"]]
    assert set(materialized) == set(ASSETS)
    assert sorted(asset for asset in materialized if asset not in CHECKED) == sorted(set(ASSETS) - CHECKED)
    repeated = [{*one["materialized"]} & {*other["materialized"]} for one, other in pairwise(chain.runs)]
    assert set().union(*repeated) <= CHECKED
    assert all(asset not in chain.runs[-1]["materialized"] for asset in ASSETS if asset != "registered_model")


def test_training_resumes_after_its_last_epoch(chain: Chain) -> None:
    """A training that was killed in a late epoch does not start with its first epoch again."""
    for asset in ("sasrec", "recommender"):
        (first, _), (second, total) = [(done, total) for name, done, total in chain.first_steps if name == asset]
        assert first < total / 2 < second


def test_the_model_is_the_same(chain: Chain) -> None:
    """Everything that is served or measured has the bytes of the run without a kill."""
    for asset in ASSETS:
        if asset not in NAMES_ITS_RUN:
            with_kills, without_kills = chain.files(asset)
            assert with_kills == without_kills, asset
    reports = chain.files("evaluation_report")
    assert len({files["metrics.json"] for files in reports}) == 1
    assert len({registered["bundle_digest"] for registered in chain.registered()}) == 1
