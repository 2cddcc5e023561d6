"""The refit through the assets: what it learns, what is registered, and that nothing honest ever starts from it."""

import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from mlflow.entities.model_registry import ModelVersion
from safetensors.numpy import load_file

from macrec_pipeline.defs.manifest_keys import WARM_STARTED
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.tracking.registry import EVALUATED_DIGEST_TAG, bundle_digest
from macrec_pipeline.tracking.store import connect
from tests.defs.test_continuity import APPEND, TRAINING, Week, _error

SERVING = ["champion_comparison", "refitted_recommender", "champion_refit", "registered_model"]
COLLABORATIVE = (
    "decoding={fusion: calibrated, collaborative_route: true, beam_width: 4, top_k: 10}",
    "evaluation.bootstrap_samples=20",
)
# A refit that memorizes the targets within a second.
STRONG = ("refit={method: continue, sasrec_method: continue, epoch_share: 1.0, learning_rate_share: 1.0}",)


@pytest.fixture
def week(settings: Settings, partition: str, instance: dg.DagsterInstance) -> Week:
    """Everything up to the evaluation, with a collaborative route."""
    week = Week(settings, partition, instance)
    week.ingest_and_embed()
    result = week.run(*TRAINING, "recommender", overrides=COLLABORATIVE)
    assert result.success, _error(result)
    write_report(week)
    return week


def write_report(week: Week) -> None:
    """Write metrics in place of a report, which needs more items than this catalogue has."""
    num_users = int(week.store.read_table("histories")["tested"].sum())
    metrics = {"systems": {"macrec": {"hr_10": 0.5, "ndcg_10": 0.25}}, "num_test_users": num_users}
    with week.store.new_folder("evaluation_report") as folder:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")


def served(week: Week) -> Path:
    return week.store.folder("refitted_recommender") / "bundle"


def evaluated(week: Week) -> Path:
    return week.store.folder("recommender") / "bundle"


def _counts(folder: Path) -> np.ndarray:
    """How often each item was learned."""
    counts: np.ndarray = load_file(folder / "semantic_ids.safetensors")["popularity"]
    return counts


def version(week: Week, number: int) -> ModelVersion:
    return connect(week.settings.home_folder()).client.get_model_version(f"macrec-{week.partition}", str(number))


def test_the_registered_bundle_is_the_refit_and_keeps_what_was_evaluated(week: Week) -> None:
    """The refit has learned every interaction, the version says so, and the evaluated bundle can be restored."""
    honest = week.store.manifest("recommender").files
    result = week.run(*SERVING, overrides=COLLABORATIVE)
    assert result.success, _error(result)
    assert week.store.manifest("recommender").files == honest
    interactions = week.store.read_table("interactions").height
    num_users = week.store.read_table("histories").height
    assert week.metadata(result, "refitted_recommender")["new_interactions"] == 2 * num_users
    assert _counts(served(week)).sum() == interactions
    assert _counts(evaluated(week)).sum() == interactions - 2 * num_users
    before, after = (RecommenderBundle.load(folder(week)).description for folder in (evaluated, served))
    assert after["fusion"] == before["fusion"], "the fusion weights are those that validation chose"
    different = {part for part in before["parts"] if before["parts"][part] != after["parts"][part]}
    assert different == {"model.safetensors", "sasrec.safetensors", "semantic_ids.safetensors"}

    found = version(week, 1)
    assert found.tags["macrec.bundle_digest"] == bundle_digest(served(week))
    assert found.tags[EVALUATED_DIGEST_TAG] == bundle_digest(evaluated(week))
    assert found.tags["macrec.refit.interactions"] == str(interactions)
    assert f"on the held-out targets of {num_users} users. This version is its refit" in found.description
    with week.settings.tracker().bundle(week.partition, 1) as folder:
        assert bundle_digest(folder) == bundle_digest(served(week))
    with week.settings.tracker().bundle(week.partition, 1, evaluated=True) as folder:
        assert bundle_digest(folder) == bundle_digest(evaluated(week))
        RecommenderBundle.load(folder)
    (kept,) = (path for path in Path(week.home).rglob("evaluated") if path.is_dir())
    assert {path.name for path in kept.iterdir()} == {*different, "bundle.json"}, "the rest is not stored twice"


def test_without_a_refit_the_evaluated_bundle_is_registered(week: Week) -> None:
    """Nothing about the refit is stored in the version, and the evaluated bytes do not depend on the setting."""
    off = (*COLLABORATIVE, "refit.enabled=false")
    honest = week.store.manifest("recommender").files
    result = week.run("recommender", *SERVING, overrides=off)
    assert result.success, _error(result)
    assert week.store.manifest("recommender").files == honest
    assert list(week.store.manifest("refitted_recommender").files) == ["skipped.json"]
    found = version(week, 1)
    assert found.tags["macrec.bundle_digest"] == bundle_digest(evaluated(week))
    assert not [tag for tag in found.tags if "refit" in tag or tag == EVALUATED_DIGEST_TAG]
    assert "refit" not in found.description
    assert not [path for path in Path(week.home).rglob("evaluated") if path.is_dir()]
    with week.settings.tracker().bundle(week.partition, 1, evaluated=True) as folder:
        assert bundle_digest(folder) == bundle_digest(evaluated(week))


def test_the_next_refresh_starts_from_the_evaluated_weights(week: Week) -> None:
    """The next recommender has the same bytes whether a strong refit happened before or none.

    A user without new interactions has the same test target next week, so weights that learned it must not be used.
    """
    overrides = (*COLLABORATIVE, *APPEND)
    first = week.store.manifest("recommender").files
    assert week.run("recommender", *SERVING, overrides=(*COLLABORATIVE, "refit.enabled=false")).success
    assert week.run("recommender", overrides=overrides).success
    expected = week.store.manifest("recommender")
    assert expected.details[WARM_STARTED]
    assert expected.files != first

    assert week.run("recommender", *SERVING, overrides=(*COLLABORATIVE, *STRONG)).success
    assert week.store.manifest("recommender").files == first
    assert week.run("recommender", overrides=overrides).success
    assert week.store.manifest("recommender").files == expected.files


def test_the_champion_is_compared_as_it_was_evaluated(week: Week) -> None:
    """The same model a second time must be exactly as good as the champion, whose refit has memorized the targets."""
    strong = (*COLLABORATIVE, *STRONG)
    assert week.run(*SERVING, overrides=strong).success
    result = week.run("champion_comparison", overrides=strong)
    assert result.success
    metadata = week.metadata(result, "champion_comparison")
    assert metadata["champion"] == 1
    assert (metadata["ndcg_10.difference"], metadata["ndcg_10.low"], metadata["ndcg_10.high"]) == (0, 0, 0)

    items = week.store.read_table("items")["item_id"].to_list()
    histories = [[items[index] for index in row] for row in week.store.read_table("histories")["item_indices"]]

    def hits(folder: Path) -> int:
        answers = RecommenderBundle.load(folder).recommend_ids([history[:-1] for history in histories], k=1)
        return sum(answer.item_ids == [history[-1]] for answer, history in zip(answers, histories, strict=True))

    assert hits(served(week)) > hits(evaluated(week)), "otherwise this test could not tell them apart"


def test_a_refit_of_an_earlier_recommender_is_not_registered(week: Week) -> None:
    """The message names both and says what to do."""
    assert week.run("refitted_recommender", overrides=COLLABORATIVE).success
    again = ("recommender", "champion_comparison", "champion_refit")
    assert week.run(*again, overrides=(*COLLABORATIVE, "seed=4")).success
    message = _error(week.run("registered_model", overrides=COLLABORATIVE))
    assert "is not a refit of the present recommender" in message
    assert "Materialize `refitted_recommender` again" in message


def test_a_split_by_time_does_not_limit_what_is_learned(
    settings: Settings, partition: str, instance: dg.DagsterInstance
) -> None:
    """Interactions after the first of the test period are in no history, but the refit learns them, with one route."""
    log = [
        f"u{user},i{(user + 2 * step) % 12:02d},{1_600_000_000 + 1000 * step + user}"
        for user in range(10)
        for step in range(6)
    ]
    (settings.data_folder() / "log.csv").write_text("\n".join(["user,item,time", *log]) + "\n", encoding="utf-8")
    by_time = (
        "split={method: global_time, test_share: 0.4}",
        "evaluation.bootstrap_samples=20",
        "decoding={beam_width: 4, top_k: 10}",
        "sasrec.enabled=false",
        "quantizer.collaborative_input_weight=0",
    )
    week = Week(settings, partition, instance)
    week.ingest_and_embed(modalities=("text",))
    result = week.run("histories", overrides=by_time)
    assert result.success, _error(result)
    write_report(week)
    result = week.run(*TRAINING, "recommender", *SERVING, overrides=by_time)
    assert result.success, _error(result)
    interactions = week.store.read_table("interactions").height
    assert int(week.store.read_table("histories")["item_indices"].list.len().sum()) < interactions
    assert _counts(served(week)).sum() == interactions
    about: dict[str, Any] = json.loads((week.store.folder("refitted_recommender") / "refit.json").read_text())
    assert about["interactions"] == interactions
    new = week.metadata(result, "refitted_recommender")["new_interactions"]
    assert new == interactions - _counts(evaluated(week)).sum()
    assert RecommenderBundle.load(served(week)).routes == ["text"]
