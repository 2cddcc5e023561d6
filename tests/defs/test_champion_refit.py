"""The refit of a champion whose challenger was refused: what it learns, its IDs, and that promotion is not affected."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from safetensors.numpy import load_file

from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.tracking.registry import EVALUATED_DIGEST_TAG, bundle_digest
from macrec_pipeline.tracking.store import connect
from tests.defs.test_continuity import APPEND, TRAINING, Week, _error
from tests.defs.test_refit import COLLABORATIVE, SERVING, version, write_report

AUTOMATIC = (*COLLABORATIVE, "promotion.automatic=true")
"""With ten users no challenger can pass, because 30 are required."""
NEW_IDS = ("identity.mode=new", "seed=8")


@pytest.fixture
def week(settings: Settings, partition: str, instance: dg.DagsterInstance) -> Week:
    """One week with a champion, version 1, and then the delivery of the next week: a new item and new interactions."""
    week = Week(settings, partition, instance)
    week.ingest_and_embed()
    result = week.run(*TRAINING, "recommender", overrides=AUTOMATIC)
    assert result.success, _error(result)
    write_report(week)
    result = week.run(*SERVING, overrides=AUTOMATIC)
    assert result.success, _error(result)
    assert week.metadata(result, "champion_refit")["skipped"] == "there is no champion yet"
    deliver(week, item="i04x", time=1_700_000_000)
    week.ingest_and_embed()
    return week


def deliver(week: Week, *, item: str, time: int) -> None:
    """Add an item to the catalogue, and let every user choose it."""
    catalogue, log = Path(week.data) / "items.csv", Path(week.data) / "log.csv"
    catalogue.write_text(catalogue.read_text(encoding="utf-8") + f"{item},New\n", encoding="utf-8")
    users = sorted({line.split(",")[0] for line in log.read_text(encoding="utf-8").splitlines()[1:]})
    rows = [f"{user},{item},{time + number}" for number, user in enumerate(users)]
    log.write_text(log.read_text(encoding="utf-8") + "\n".join(rows) + "\n", encoding="utf-8")


def serve(week: Week, *overrides: str) -> dict[str, Any]:
    """Train, compare and register; returns the registration."""
    result = week.run(*TRAINING, "recommender", overrides=(*AUTOMATIC, *overrides))
    assert result.success, _error(result)
    write_report(week)
    result = week.run(*SERVING, overrides=(*AUTOMATIC, *overrides))
    assert result.success, _error(result)
    path = week.store.folder("registered_model") / "registration.json"
    registration: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return registration


def aliases(week: Week) -> dict[str, int]:
    found = connect(week.settings.home_folder()).client.get_registered_model(f"macrec-{week.partition}").aliases
    return {alias: int(number) for alias, number in found.items()}


def ids(week: Week, number: int) -> dict[str, tuple[tuple[int, ...], ...]]:
    """The semantic IDs that a version serves."""
    with week.settings.tracker().bundle(week.partition, number) as folder:
        return RecommenderBundle.load(folder).semantic_ids


def evaluated_digest(week: Week, number: int) -> str:
    with week.settings.tracker().bundle(week.partition, number, evaluated=True) as folder:
        RecommenderBundle.load(folder)
        return bundle_digest(folder)


def test_a_champion_that_stays_learns_everything(week: Week) -> None:
    """The refused challenger keeps its alias; the champion is a new version with the same evaluated model and IDs."""
    registration = serve(week, *APPEND)
    assert registration["status"] == "refused"
    assert registration["champion"].endswith("/3")
    assert aliases(week) == {"challenger": 2, "champion": 3}
    interactions = week.store.read_table("interactions").height
    items = week.store.read_table("items")["item_id"].to_list()
    assert "i04x" in items
    with week.settings.tracker().bundle(week.partition, 3) as folder:
        bundle = RecommenderBundle.load(folder)
        assert load_file(folder / "semantic_ids.safetensors")["popularity"].sum() == interactions
        assert bundle.item_ids == items
        answers = bundle.recommend_ids([["i00", "i01"]], k=len(items))
        assert "i04x" in answers[0].item_ids
    before, after = ids(week, 1), ids(week, 3)
    assert {item: after[item] for item in before} == before
    assert after["i04x"] == ids(week, 2)["i04x"], "the next challenger that is promoted moves no ID"

    assert evaluated_digest(week, 3) == evaluated_digest(week, 1) != evaluated_digest(week, 2)
    found = version(week, 3)
    assert found.tags[EVALUATED_DIGEST_TAG] == evaluated_digest(week, 1)
    assert found.tags["macrec.promotion"] == "refit of the champion"
    assert found.tags["macrec.refit.evaluated_version"] == "1"
    assert found.tags["metric.ndcg_10"] == version(week, 1).tags["metric.ndcg_10"]
    decision = found.tags["macrec.decision"]
    assert ": champion as the refit of version 1. The challenger was refused: The comparison has " in decision
    assert "when version 1 was registered. This version is a later refit of that model" in found.description
    assert f"on all {interactions} interactions" in found.description


def test_promotion_never_sees_the_refit(week: Week) -> None:
    """The champion's figures, the evidence and the verdict are the same with a strong refit and without one."""
    strong = "refit={method: continue, epoch_share: 1.0, learning_rate_share: 1.0}"
    serve(week, *APPEND, strong)
    assert aliases(week)["champion"] == 3
    figures = []
    for champion in (3, 1):
        week.settings.tracker().promote(week.partition, version=champion)
        result = week.run("champion_comparison", overrides=(*AUTOMATIC, *APPEND))
        assert result.success, _error(result)
        metadata = week.metadata(result, "champion_comparison")
        assert metadata["champion"] == champion
        names = [name for name in metadata if name.startswith(("champion.", "pooled.", "ndcg_10"))]
        figures.append({name: metadata[name] for name in names if "milliseconds" not in name and "bytes" not in name})
    assert figures[0] == figures[1]
    evidence = json.loads((week.store.folder("champion_comparison") / "evidence.json").read_text(encoding="utf-8"))
    assert evidence["champion"] == evaluated_digest(week, 1)


@pytest.mark.slow
def test_the_next_refits_start_from_the_evaluated_weights_again(week: Week) -> None:
    """Without new data there is no new refit. With new data the refit is that of version 1, and rollback goes back."""
    serve(week, *APPEND)
    result = week.run("champion_comparison", "champion_refit", overrides=(*AUTOMATIC, *APPEND))
    assert result.success, _error(result)
    assert week.metadata(result, "champion_refit")["skipped"] == (
        "version 3 has learned all interactions and items of today already"
    )
    deliver(week, item="i04y", time=1_750_000_000)
    week.ingest_and_embed()
    registration = serve(week, *APPEND)
    assert registration["champion"].endswith("/5")
    found = version(week, 5)
    assert found.tags["macrec.refit.evaluated_version"] == "1"
    assert evaluated_digest(week, 5) == evaluated_digest(week, 1)
    before, after = ids(week, 3), ids(week, 5)
    assert {item: after[item] for item in before} == before
    tracker = week.settings.tracker()
    assert tracker.rollback(week.partition).champion.version == 3
    assert tracker.promote(week.partition).champion.version == 4


def test_a_refused_retrain_with_new_ids_does_not_move_those_of_the_champion(week: Week) -> None:
    """The home has other IDs. The champion keeps its own, and its quantizer places the new item."""
    registration = serve(week, *NEW_IDS)
    assert registration["champion"].endswith("/3")
    before, challenger, after = ids(week, 1), ids(week, 2), ids(week, 3)
    assert {item: challenger[item] for item in before} != before, "otherwise this test could not tell them apart"
    assert {item: after[item] for item in before} == before
    for position in range(2):
        assert after["i04x"][position] not in {codes[position] for codes in before.values()}
    assert evaluated_digest(week, 3) == evaluated_digest(week, 1)


@pytest.mark.slow
def test_a_champion_whose_encoder_has_changed_stays_as_it_is(week: Week, caplog: pytest.LogCaptureFixture) -> None:
    """Its quantizer cannot place the new item. The challenger is registered, and the log says what was wrong."""
    week.ingest_and_embed(encoder="another", dimensions=6)
    assert "champion" not in serve(week, *NEW_IDS)
    assert aliases(week) == {"challenger": 2, "champion": 1}
    skipped = week.store.manifest("champion_refit").details["skipped"]
    assert "text embeddings with 8 dimensions, but they now have 6" in skipped
    assert "The champion, version 1, is not refitted, and stays as it is." in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("promotion.refit_champion=false", "promotion.refit_champion is false"),
        ("promotion.automatic=false", "promotion.automatic is false, so only a person changes the champion"),
        ("refit.enabled=false", "refit.enabled is false"),
        ("promotion={min_test_users: 2, max_loss_ndcg_10: 1, never_below_popularity: false}", "the challenger may"),
    ],
)
def test_when_the_champion_is_left_alone(week: Week, setting: str, reason: str) -> None:
    """Nothing is trained and no second version is registered."""
    registration = serve(week, *APPEND, setting)
    assert week.store.manifest("champion_refit").details["skipped"].startswith(reason)
    assert "champion" not in registration
    assert max(aliases(week).values()) == 2


@pytest.mark.slow
def test_another_champion_meanwhile_is_left_alone(week: Week) -> None:
    """A person has promoted the challenger after the comparison; the refit of the old champion is not used."""
    serve(week, *APPEND)
    refit = week.store.manifest("champion_refit").details
    assert refit["champion"] == 1
    week.settings.tracker().promote(week.partition, version=2)
    result = week.run("registered_model", overrides=(*AUTOMATIC, *APPEND))
    assert result.success, _error(result)
    decision = week.metadata(result, "registered_model")["champion_decision"]
    assert decision.startswith("The refit of version 1 is not used. The champion of ")
    assert aliases(week)["champion"] == 2


@pytest.mark.slow
def test_the_same_refit_twice_has_the_same_bytes(week: Week) -> None:
    """The refit does not depend on the time or on the run."""
    serve(week, *APPEND)
    first = week.store.manifest("champion_refit").files
    week.settings.tracker().promote(week.partition, version=1)
    result = week.run("champion_comparison", "champion_refit", overrides=(*AUTOMATIC, *APPEND))
    assert result.success, _error(result)
    assert week.store.manifest("champion_refit").files == first
    assert any(name.endswith("model.safetensors") for name in first)
