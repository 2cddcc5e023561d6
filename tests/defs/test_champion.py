"""Comparing, evaluating and replacing the champion, with a tiny trained bundle and a real MLflow store."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion

from macrec_pipeline import terminal
from macrec_pipeline.config import DecodingConfig
from macrec_pipeline.defs.assets.champion import champion_comparison, champion_evaluation
from macrec_pipeline.defs.assets.registry import registered_model
from macrec_pipeline.defs.checks import CHECKS
from macrec_pipeline.defs.manifest_keys import REFIT_OF, SKIPPED
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import TrackingError
from macrec_pipeline.evaluation.promotion.evidence import WEEK_MS
from macrec_pipeline.recommender import FittedRecommender, RecommenderBundle, fit_recommender
from macrec_pipeline.schemas import HISTORIES, ITEMS
from macrec_pipeline.tracking.store import connect
from tests.tracking.served import CODES, NUM_CODES, NUM_ITEMS, TINY

NUM_USERS = 120
ITEM_IDS = [f"i{item:02d}" for item in range(NUM_ITEMS)]
HISTORIES_BY_INDEX = [[(user + step) % NUM_ITEMS for step in range(6)] for user in range(NUM_USERS)]
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@pytest.fixture(scope="module")
def fitted() -> FittedRecommender:
    rows = [np.array(row, dtype=np.int64) for row in HISTORIES_BY_INDEX]
    return fit_recommender(
        rows, CODES, CODES[::-1].copy(), codebook_size=NUM_CODES, config=TINY, seed=1, device=torch.device("cpu")
    )


@pytest.fixture
def shop(settings: Settings, partition: str) -> Settings:
    """A store with items, histories and a report; the data set's title is full of markup."""
    path = settings.data_folder().parent / "datasets" / f"{partition}.yaml"
    path.write_text(path.read_text().replace("A few lines", "'<b>Lines</b> *few* | [x](y)'"), encoding="utf-8")
    store = settings.store(partition)
    items = {"item_index": range(NUM_ITEMS), "item_id": ITEM_IDS}
    other_columns = {"title": None, "text": None, "image_path": None, "categories": None, "num_interactions": 1}
    literals = {name: pl.lit(value) for name, value in other_columns.items()}
    store.write_table("items", pl.DataFrame(items).with_columns(**literals).cast(ITEMS.columns))
    users = {"user_index": range(NUM_USERS), "user_id": [f"u{user:03d}" for user in range(NUM_USERS)]}
    times = [list(range(6))] * NUM_USERS
    rows = pl.DataFrame(
        users | {"item_indices": HISTORIES_BY_INDEX, "timestamps": times, "tested": True, "num_at_target_time": 1}
    )
    store.write_table("histories", rows.cast(HISTORIES.columns))
    with store.new_folder("evaluation_report") as folder:
        metrics = {"systems": {"macrec": {"hr_10": 0.625, "ndcg_10": 0.5, "hr_10_ci": [0, 1]}}}
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return settings


def make_bundle(
    shop: Settings, partition: str, fitted: FittedRecommender, *, item_ids: Sequence[str] = ITEM_IDS, note: str = ""
) -> None:
    """Write a new version of `recommender`; another note makes another bundle of the same model."""
    with shop.store(partition).new_folder("recommender") as folder:
        for part in ("weights", "bundle"):
            (folder / part).mkdir()
        fitted.save(folder / "weights")
        RecommenderBundle.write(
            folder / "bundle",
            recommender_folder=folder / "weights",
            item_ids=item_ids,
            popularity=np.ones(NUM_ITEMS, dtype=np.int64),
            text_codes=CODES,
            image_codes=CODES[::-1].copy(),
            codebook_size=NUM_CODES,
            decoding=DecodingConfig(beam_width=4).model_dump(),
            catalogue=[{"title": "", "image_path": None}] * NUM_ITEMS,
            provenance={"note": note},
        )
    details = {REFIT_OF: shop.store(partition).manifest("recommender").digest, SKIPPED: "this test needs no refit"}
    for asset in ("refitted_recommender", "champion_refit"):
        with shop.store(partition).new_folder(asset, details=details) as folder:
            (folder / "skipped.json").write_text("{}", encoding="utf-8")


def materialize(asset: dg.AssetsDefinition, shop: Settings, partition: str, *overrides: str) -> dict[str, Any]:
    """Materialize one asset from the stored inputs; returns its metadata as plain values."""
    settings = Settings(home=shop.home, data=shop.data, overrides=["evaluation.bootstrap_samples=50", *overrides])
    result = dg.materialize([asset], partition_key=partition, resources={"settings": settings}, run_config=QUIET)
    (materialization,) = result.asset_materializations_for_node(asset.op.name)
    return {name: value.value for name, value in materialization.metadata.items()}


def register(shop: Settings, partition: str, *overrides: str) -> dict[str, Any]:
    """Compare and register; returns the metadata of the registration."""
    materialize(champion_comparison, shop, partition, *overrides)
    return materialize(registered_model, shop, partition, *overrides)


def comparison(shop: Settings, partition: str) -> dict[str, Any]:
    path = shop.store(partition).folder("champion_comparison") / "comparison.json"
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def version(shop: Settings, partition: str, number: int) -> ModelVersion:
    return connect(shop.home_folder()).client.get_model_version(f"macrec-{partition}", str(number))


def test_from_the_first_version_to_a_successor(shop: Settings, partition: str, fitted: FittedRecommender) -> None:
    """A first version, one that a person has to promote, one that a rule refuses, and one that is promoted."""
    make_bundle(shop, partition, fitted)
    first = register(shop, partition)
    assert (first["promotion"], first["aliases"]) == ("first version", ["challenger", "champion"])
    assert comparison(shop, partition)["champion"] is None
    title = r"**&lt;b&gt;Lines&lt;/b&gt; \*few\* \| \[x\]\(y\)**"
    description = version(shop, partition, 1).description
    assert description.splitlines()[0] == title
    assert "| hr_10 | 0.6250 |" in description

    make_bundle(shop, partition, fitted, note="second")
    assert register(shop, partition)["promotion"] == "advised"
    refused = register(shop, partition, "promotion.automatic=true", "promotion.max_size_ratio=0.5")
    assert refused["promotion"] == "refused"
    assert version(shop, partition, 3).tags["macrec.decision"].endswith("champion's; at most 0.5 times is allowed.")
    promoted = register(shop, partition, "promotion.automatic=true")
    assert (promoted["promotion"], promoted["aliases"]) == ("promoted", ["challenger", "champion"])
    successor = version(shop, partition, 4)
    assert set(successor.aliases) == {"challenger", "champion"}
    figures = comparison(shop, partition)["figures"]
    assert figures["ndcg_10.difference"] == figures["ndcg_10.low"] == figures["moved_ids"] == 0  # the same model
    assert successor.tags["compare.challenger.ndcg_10"] == repr(figures["challenger.ndcg_10"])
    assert successor.description.startswith(f"{title}\n\n| | this version | champion (version 1) | difference |")
    assert (
        r"promoted over version 1\. On 120 test targets, the challenger's NDCG@10 is "
        in (successor.description.splitlines()[-1])
    )
    assert "| NDCG@10 | {0:.4f} | {0:.4f} | +0.0000 [+0.0000, +0.0000] |".format(figures["champion.ndcg_10"]) in (
        successor.description
    )
    assert successor.description.startswith(promoted["figures"])
    assert promoted["decision"].startswith("Promoted over version 1. On 120 test targets, ")
    assert figures["challenger.milliseconds"] > 0 < figures["champion.milliseconds"]
    registration = shop.store(partition).folder("registered_model") / "registration.json"
    assert json.loads(registration.read_text())["decision"] == promoted["decision"]


def test_evidence_is_pooled_until_the_champion_changes(
    shop: Settings, partition: str, fitted: FittedRecommender
) -> None:
    """Ten users have a new interaction 27 weeks later, so ten targets are added.

    The comparison of a model with itself adds nothing, and the evidence of another champion is dropped.
    """
    folder = shop.store(partition).location("champion_comparison")
    make_bundle(shop, partition, fitted)
    register(shop, partition)
    make_bundle(shop, partition, fitted, note="second")
    materialize(champion_comparison, shop, partition)
    histories = shop.store(partition).read_table("histories").to_dicts()
    for row in histories[:10]:
        row["item_indices"].append((row["item_indices"][-1] + 1) % NUM_ITEMS)
        row["timestamps"].append(27 * WEEK_MS)
    shop.store(partition).write_table("histories", pl.DataFrame(histories, schema=HISTORIES.columns))
    make_bundle(shop, partition, fitted, note="third")
    promoted = register(shop, partition, "promotion.automatic=true")
    figures = comparison(shop, partition)["figures"]
    assert (figures["pooled.num_targets"], figures["pooled.num_users"]) == (130, 120)
    assert figures["pooled.num_comparisons"] == 2
    assert figures["champion.weeks"] == pytest.approx(27, abs=0.01)
    assert promoted["promotion"] == "promoted"
    assert promoted["decision"].startswith("Promoted over version 1. On 130 test targets of 2 challengers, their ")
    before = pl.read_parquet(folder / "evidence.parquet")
    assert before.height == 130
    materialize(champion_comparison, shop, partition)  # the new champion with itself
    assert comparison(shop, partition)["figures"]["pooled.num_targets"] == 120
    assert pl.read_parquet(folder / "evidence.parquet").equals(before)
    make_bundle(shop, partition, fitted, note="fourth")
    materialize(champion_comparison, shop, partition)
    figures = comparison(shop, partition)["figures"]
    assert (figures["pooled.num_targets"], figures["champion.weeks"]) == (120, 0)


def test_damaged_evidence_does_not_block_a_comparison(
    shop: Settings, partition: str, fitted: FittedRecommender, caplog: pytest.LogCaptureFixture
) -> None:
    """The evidence starts again, and the log says so."""
    make_bundle(shop, partition, fitted)
    register(shop, partition)
    (shop.store(partition).location("champion_comparison") / "evidence.json").write_text("{}")
    materialize(champion_comparison, shop, partition)
    assert "The evidence of earlier comparisons with the champion is lost, and starts again" in caplog.text
    assert comparison(shop, partition)["figures"]["pooled.num_targets"] == NUM_USERS


def test_a_champion_of_another_catalogue_is_compared_by_item_id(
    shop: Settings, partition: str, fitted: FittedRecommender
) -> None:
    """The champion swaps the indices of two items, and knows a removed item instead of i00, which some users test."""
    make_bundle(shop, partition, fitted, item_ids=["gone", "i02", "i01", *ITEM_IDS[3:]])
    register(shop, partition)
    make_bundle(shop, partition, fitted)
    materialize(champion_comparison, shop, partition)
    figures = comparison(shop, partition)["figures"]
    targets = [ITEM_IDS[row[-1]] for row in HISTORIES_BY_INDEX]
    assert figures["champion.unknown_targets"] == targets.count("i00") / NUM_USERS > 0
    assert figures["challenger.unknown_targets"] == 0
    with shop.tracker().bundle(partition, 1) as folder:
        champion = RecommenderBundle.load(folder)
    answers = champion.recommend_ids([[ITEM_IDS[index] for index in row[:-1]] for row in HISTORIES_BY_INDEX], k=10)
    hits = sum(target in answer.item_ids for target, answer in zip(targets, answers, strict=True))
    assert figures["champion.hr_10"] == hits / NUM_USERS
    assert (figures["num_shared_items"], figures["moved_ids"]) == (11, 2 / 11)


def test_a_damaged_champion_does_not_block_its_successor(
    shop: Settings, partition: str, fitted: FittedRecommender, capsys: pytest.CaptureFixture[str]
) -> None:
    """The successor is registered as challenger; its tags and description say why it was not compared."""
    make_bundle(shop, partition, fitted)
    register(shop, partition)
    (stored,) = (path for path in (shop.home_folder() / "mlflow").rglob("catalogue.json"))
    stored.write_text(stored.read_text().replace("i03", "i99"))
    compared = materialize(champion_comparison, shop, partition, "promotion.automatic=true")
    assert "is not the one that was registered" in compared["nothing_compared"]
    last = materialize(registered_model, shop, partition, "promotion.automatic=true")
    assert (last["promotion"], last["aliases"]) == ("not compared", ["challenger"])
    successor = version(shop, partition, 2)
    assert "Version 1 is the champion, but it cannot be compared" in successor.tags["macrec.decision"]
    assert f"macrec rollback {partition}" in successor.tags["macrec.decision"]
    assert "Not promoted" in successor.description.splitlines()[-1]
    with pytest.raises(TrackingError, match="is not the one that was registered"):
        materialize(champion_evaluation, shop, partition)


def test_a_comparison_of_another_bundle_does_not_count(
    shop: Settings, partition: str, fitted: FittedRecommender
) -> None:
    """A new bundle that is registered without a comparison does not get the verdict of the previous bundle."""
    make_bundle(shop, partition, fitted)
    register(shop, partition)
    materialize(champion_comparison, shop, partition)
    make_bundle(shop, partition, fitted, note="trained since")
    registered = materialize(registered_model, shop, partition, "promotion.automatic=true")
    assert registered["promotion"] == "not compared"
    assert "measured another bundle" in version(shop, partition, 2).tags["macrec.decision"]


def test_the_champion_is_evaluated_on_the_stored_histories(
    shop: Settings, partition: str, fitted: FittedRecommender
) -> None:
    """Metadata, the JSON document, the terminal and MLflow all show the same metrics."""
    with pytest.raises(TrackingError, match=f"macrec-{partition} has no champion yet: run `macrec run {partition}`"):
        materialize(champion_evaluation, shop, partition)
    make_bundle(shop, partition, fitted)
    register(shop, partition)
    materialize(champion_comparison, shop, partition)
    evaluated = materialize(champion_evaluation, shop, partition)
    figures = comparison(shop, partition)["figures"]
    for name in ("ndcg_10", "hr_10", "coverage", "unknown_targets"):
        assert evaluated[name] == figures[f"champion.{name}"]
    assert evaluated["popularity_ndcg_10"] == pytest.approx(figures["popularity_ndcg_10"])
    folder = shop.store(partition).folder("champion_evaluation")
    document = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    output = terminal.champion_lines(partition, document)
    assert f"macrec-{partition}@champion is version 1, evaluated on {NUM_USERS} test users." in output
    assert f"{evaluated['ndcg_10']:.4f}; most popular items {evaluated['popularity_ndcg_10']:.4f}" in output
    runs = connect(shop.home_folder()).client.search_runs(
        [connect(shop.home_folder()).client.get_experiment_by_name(f"macrec/{partition}").experiment_id],  # type: ignore[union-attr]
        "tags.`macrec.asset` = 'champion_evaluation' and attributes.status = 'FINISHED'",
    )
    assert [run.data.metrics["ndcg_10"] for run in runs] == [evaluated["ndcg_10"]]


@pytest.mark.parametrize(
    ("champion", "popularity", "passed"), [(0.2, 0.1, True), (0.1, 0.1, True), (0.0999, 0.1, False)]
)
def test_a_champion_below_popularity_is_a_warning(
    shop: Settings, partition: str, instance: dg.DagsterInstance, champion: float, popularity: float, passed: bool
) -> None:
    """The check says by how much and what a person can do, but it blocks nothing."""
    with shop.store(partition).new_folder("champion_evaluation") as folder:
        document = {"champion": 7, "ndcg_10": champion, "popularity_ndcg_10": popularity}
        Path(folder, "evaluation.json").write_text(json.dumps(document), encoding="utf-8")
    job = dg.define_asset_job("checks", selection=dg.AssetSelection.checks_for_assets("champion_evaluation"))
    checks = [check for check in CHECKS if {spec.asset_key for spec in check.check_specs} == {champion_evaluation.key}]
    alone = dg.Definitions([champion_evaluation], asset_checks=checks, jobs=[job], resources={"settings": shop})
    result = alone.resolve_job_def("checks").execute_in_process(
        instance=instance, tags={"dagster/partition": partition}, run_config=QUIET
    )
    (verdict,) = result.get_asset_check_evaluations()
    assert (verdict.passed, verdict.blocking, verdict.severity) == (passed, False, dg.AssetCheckSeverity.WARN)
    assert passed or "NDCG@10 of the champion (version 7) is 0.0999" in (verdict.description or "")
    assert passed or f"`macrec rollback {partition}`" in (verdict.description or "")
