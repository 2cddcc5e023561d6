"""A run that is killed in every stage in turn, and gone on from each time, ends with the bytes of one that was not."""

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
    """What happened: the stages in the order in which they were killed, and the runs of Dagster."""

    killed: list[str]
    runs: list[dict[str, Any]]
    first_steps: list[tuple[str, int, int]]
    home: Path
    reference: Path

    def files(self, asset: str) -> tuple[dict[str, str], dict[str, str]]:
        """The hashes of an asset's files, with and without the kills."""
        one, other = (AssetStore(home, "tiny").manifest(asset).files for home in (self.home, self.reference))
        return one, other

    def registered(self) -> list[dict[str, Any]]:
        """What the last registration says, with and without the kills."""
        folders = (AssetStore(home, "tiny").folder("registered_model") for home in (self.home, self.reference))
        return [json.loads((folder / "registration.json").read_text(encoding="utf-8")) for folder in folders]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """One run without a kill, and as many as there are stages with one, each gone on from."""
    folder = tmp_path_factory.mktemp("killed")
    (folder / "datasets").mkdir()
    (folder / "datasets" / "tiny.yaml").write_text(DATASET, encoding="utf-8")
    own = {"MACREC_DATA": str(folder / "data"), "MACREC_DATASETS": str(folder / "datasets"), "HF_HUB_OFFLINE": "1"}
    foreign = ("DAGSTER_HOME", "MLFLOW_", "MACREC_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    reference, home = folder / "reference", folder / "home"
    command = [sys.executable, "-m", "tests.faults.killed_everywhere", str(reference), str(home)]
    done = subprocess.run(
        command, env=kept | own, cwd=CHECKOUT, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return Chain(**json.loads(done.stdout.splitlines()[-1]), home=home, reference=reference)


@pytest.mark.parametrize("stage", KILLS)
def test_a_stage_that_was_killed(stage: str, chain: Chain) -> None:
    """Its run is closed, the next goes on from it, the stage is made after all, and its files have the same bytes."""
    place = chain.killed.index(stage)
    before, after = chain.runs[place], chain.runs[place + 1]
    assert before["status"] == "CANCELED"
    assert after["lineage"] == [before["id"], chain.runs[0]["id"]]
    assert stage not in before["made"] or KILLS[stage][0] not in (HALF_WRITTEN, NOT_REPORTED)
    assert any(stage in run["made"] for run in chain.runs[place + 1 :])
    if stage not in NAMES_ITS_RUN:
        one, other = chain.files(stage)
        assert one == other


def test_it_ends(chain: Chain) -> None:
    """After as many kills as there are stages the last run succeeds."""
    assert sorted(chain.killed) == sorted(KILLS)
    assert [run["status"] for run in chain.runs] == ["CANCELED"] * len(KILLS) + ["SUCCESS"]
    assert not list(chain.home.glob("tiny/.versions/*/writing-*"))


def test_what_was_finished_is_not_made_again(chain: Chain) -> None:
    """Every asset is made once, or again only because the run died before its blocking check had been heard."""
    made = [asset for run in chain.runs for asset in run["made"]]
    assert set(made) == set(ASSETS)
    assert sorted(asset for asset in made if asset not in CHECKED) == sorted(set(ASSETS) - CHECKED)
    again = [{*one["made"]} & {*other["made"]} for one, other in pairwise(chain.runs)]
    assert set().union(*again) <= CHECKED
    assert all(asset not in chain.runs[-1]["made"] for asset in ASSETS if asset != "registered_model")


def test_training_goes_on_after_its_last_epoch(chain: Chain) -> None:
    """Killed in its last epoch, a training does not begin with its first again."""
    for stage in ("sasrec", "recommender"):
        (first, _), (second, total) = [(done, total) for name, done, total in chain.first_steps if name == stage]
        assert first < total / 2 < second


def test_the_model_is_the_same(chain: Chain) -> None:
    """All that is served and measured has the bytes of the run without a kill."""
    for asset in ASSETS:
        if asset not in NAMES_ITS_RUN:
            one, other = chain.files(asset)
            assert one == other, asset
    reports = chain.files("evaluation_report")
    assert len({files["metrics.json"] for files in reports}) == 1
    assert len({registered["bundle_digest"] for registered in chain.registered()}) == 1
