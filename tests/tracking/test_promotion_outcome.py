"""The decision about a new version: every outcome of a comparison, races, and what is recorded on the version."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient

from macrec_pipeline.errors import ChampionMovedError, TrackingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.runtime.text_sanitizing import as_markdown
from macrec_pipeline.tracking import PromotionProposal, RegisteredVersion, Tracker, load_model
from macrec_pipeline.tracking.store import connect

PASSED = PromotionProposal(
    over=1,
    passed=True,
    automatic=True,
    reason="It is not worse.",
    figures={"ndcg_10.difference": 0.125, "champion.hr_10": 0.5},
    card="**A shop**\n",
)


@pytest.fixture
def client(home: Path) -> MlflowClient:
    return connect(home).client


@pytest.fixture
def model(tracker: Tracker, client: MlflowClient) -> str:
    """Create a registered model without versions, in a store that has the experiment."""
    with tracker.asset_run(dataset="demo", asset="registered_model", dagster_run_id="r", config=resolve_config("demo")):
        pass
    client.create_registered_model("macrec-demo")
    return "macrec-demo"


def new_version(client: MlflowClient, model: str) -> RegisteredVersion:
    """Create an empty version with the aliases that `register` sets."""
    number = int(client.create_model_version(model, "file:///nowhere").version)
    aliases = ("challenger",) if number > 1 else ("challenger", "champion")
    for alias in aliases:
        client.set_registered_model_alias(model, alias, str(number))
    return RegisteredVersion(model, number, f"models:/{model}/{number}", aliases, "", "")


def champion(client: MlflowClient) -> int:
    return int(client.get_model_version_by_alias("macrec-demo", "champion").version)


def test_a_challenger_that_passed_is_promoted(tracker: Tracker, client: MlflowClient, model: str) -> None:
    """Alias, tags, figures and description change as with `macrec promote`, and a rollback reverts the promotion."""
    new_version(client, model)
    outcome = tracker.decide_promotion(new_version(client, model), "demo", PASSED)
    assert (outcome.status, outcome.aliases) == ("promoted", ("challenger", "champion"))
    assert outcome.decision == "Promoted over version 1. It is not worse."
    assert champion(client) == 2
    found = client.get_model_version("macrec-demo", "2")
    card, decision = found.description.split("\n\nDecisions, the newest last:\n\n- ")
    assert card == "**A shop**"
    assert decision.endswith(r"promoted over version 1\. It is not worse\.")
    assert found.tags["macrec.decision"].endswith("promoted over version 1. It is not worse.")
    assert (found.tags["macrec.promotion"], found.tags["macrec.compared_with"]) == ("promoted", "1")
    assert (found.tags["compare.ndcg_10.difference"], found.tags["compare.champion.hr_10"]) == ("0.125", "0.5")
    assert tracker.rollback("demo").champion.version == 1


@pytest.mark.parametrize(
    ("changes", "status", "decision"),
    [
        ({"passed": False}, "refused", "Not promoted over version 1. It is not worse."),
        (
            {"automatic": False},
            "advised",
            "May replace version 1, but a person must promote it with `macrec promote demo --version 2`. "
            "It is not worse.",
        ),
        ({"passed": False, "automatic": False}, "refused", "Not promoted over version 1. It is not worse."),
        (
            {"over": None},
            "not compared",
            "Not promoted, because it was not compared with the champion. It is not worse.",
        ),
    ],
)
def test_a_challenger_that_is_not_promoted(
    tracker: Tracker, client: MlflowClient, model: str, changes: dict[str, Any], status: str, decision: str
) -> None:
    """The champion stays, and the version has the reason in its description and tags. A person can still promote it."""
    new_version(client, model)
    outcome = tracker.decide_promotion(new_version(client, model), "demo", replace(PASSED, **changes))
    assert (outcome.status, outcome.decision, outcome.aliases) == (status, decision, ("challenger",))
    assert champion(client) == 1
    found = client.get_model_version("macrec-demo", "2")
    assert found.description.splitlines()[-1].endswith(as_markdown(decision))
    assert found.tags["macrec.decision"].endswith(decision)
    assert (found.tags["macrec.promotion"], found.tags.get("macrec.compared_with")) == (
        status,
        None if status == "not compared" else "1",
    )
    assert tracker.promote("demo", reason="<b>I</b> like it").champion.version == 2
    *_, first_line, second_line = client.get_model_version("macrec-demo", "2").description.splitlines()
    assert first_line == found.description.splitlines()[-1]
    assert second_line.endswith(r"promoted over version 1\. &lt;b&gt;I&lt;/b&gt; like it")


def test_the_first_version_is_always_champion(tracker: Tracker, client: MlflowClient, model: str) -> None:
    """There was no champion to compare with, and without one services would have no model."""
    outcome = tracker.decide_promotion(
        new_version(client, model), "demo", replace(PASSED, over=None, passed=False, reason="")
    )
    assert (outcome.status, outcome.decision) == ("first version", "Champion, because there was none.")
    assert client.get_model_version("macrec-demo", "1").tags["macrec.promotion"] == "first version"


def test_a_champion_that_changed_meanwhile_stays(tracker: Tracker, client: MlflowClient, model: str) -> None:
    """If a person moved the alias in the UI, the comparison does not apply to the new champion: no promotion."""
    for _ in range(2):
        new_version(client, model)
    challenger = new_version(client, model)
    client.set_registered_model_alias("macrec-demo", "champion", "2")
    outcome = tracker.decide_promotion(challenger, "demo", PASSED)
    assert outcome.status == "champion moved"
    assert outcome.decision == (
        "Not promoted: it was compared with version 1. The champion of macrec-demo is now version 2, not version 1. "
        "It is not worse."
    )
    assert champion(client) == 2
    with pytest.raises(ChampionMovedError):
        tracker.promote("demo", version=3, over=1)
    assert tracker.promote("demo", version=3, over=2).changed


def test_only_one_of_several_concurrent_runs_is_promoted(tracker: Tracker, client: MlflowClient, model: str) -> None:
    """All were compared with version 1 and passed; all but the first find another champion."""
    new_version(client, model)
    challengers = [new_version(client, model) for _ in range(4)]
    ready, outcomes = threading.Barrier(len(challengers)), []

    def decide(version: RegisteredVersion) -> None:
        ready.wait()
        outcomes.append((tracker.decide_promotion(version, "demo", PASSED).status, version.version))

    threads = [threading.Thread(target=decide, args=(version,)) for version in challengers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    promoted = [number for status, number in outcomes if status == "promoted"]
    assert sorted(status for status, _ in outcomes) == ["champion moved"] * 3 + ["promoted"]
    assert promoted == [champion(client)]
    assert json.loads(client.get_registered_model("macrec-demo").tags["macrec.champions"]) == [1, *promoted]


def register(tracker: Tracker, folder: Path) -> RegisteredVersion:
    with tracker.asset_run(
        dataset="demo", asset="registered_model", dagster_run_id="r", config=resolve_config("demo")
    ) as run:
        return tracker.register(folder, dataset="demo", metrics={}, dagster_run_id="r", run_id=run.run_id)


def test_a_consumer_that_loads_during_promotions(tracker: Tracker, home: Path, bundle_folder: Path) -> None:
    """A consumer that loads by alias repeatedly always gets a complete model, while automatic promotions change it."""
    versions = []
    for name in ("first", "second", "third"):
        (bundle_folder / "bundle.json").write_text(json.dumps({"item_ids": [name]}))
        versions.append(register(tracker, bundle_folder))
    seen, done, all_promoted = [], threading.Event(), threading.Event()

    def consume() -> None:
        while not done.is_set():
            is_last = all_promoted.is_set()
            answer = load_model("models:/macrec-demo@champion", home).predict(
                pd.DataFrame({"history": [["first"]]}), params={"k": 1}
            )
            seen.append(answer["item_ids"][0][0])
            if is_last:
                done.set()

    consumer = threading.Thread(target=consume)
    consumer.start()
    for version in versions[1:]:
        assert tracker.decide_promotion(version, "demo", replace(PASSED, over=version.version - 1)).status == "promoted"
    all_promoted.set()
    consumer.join(timeout=60)
    assert done.is_set()
    assert sorted(seen, key=["first", "second", "third"].index) == seen
    assert seen[-1] == "third"


def test_the_bundle_of_a_version_is_the_one_that_was_registered(tracker: Tracker, bundle_folder: Path) -> None:
    """A version's bundle has the registered bytes; changed or deleted files raise an error with the version number."""
    assert tracker.champion("demo") is None
    registered = register(tracker, bundle_folder)
    assert tracker.champion("demo") == registered.version == 1
    with tracker.bundle("demo", 1) as folder:
        assert (folder / "bundle.json").read_bytes() == (bundle_folder / "bundle.json").read_bytes()
    assert not folder.exists()
    with pytest.raises(TrackingError, match="macrec-demo has no version 2"), tracker.bundle("demo", 2):
        pass
    store = Path(tracker.uri.removeprefix("sqlite:///")).parent
    (stored,) = (path for path in store.rglob("bundle.json") if path.parent.name == "bundle")
    stored.write_text(json.dumps({"item_ids": ["other"]}))
    with pytest.raises(TrackingError, match=r"version 1 in .* is not the one that was registered"):
        tracker.bundle("demo", 1).__enter__()
    stored.unlink()
    stored.parent.rmdir()
    with pytest.raises(TrackingError, match="bundle of macrec-demo version 1"):
        tracker.bundle("demo", 1).__enter__()
