"""Append mode through the assets: what a second week keeps, gives, retires and refuses; embeddings are made up."""

import hashlib
import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
import torch

from macrec_pipeline.config import ROUTES, Route
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.asset_context import CATALOGUE
from macrec_pipeline.defs.assets.embeddings import MADE_BY
from macrec_pipeline.defs.ids import continuity
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.schemas import EMBEDDINGS
from macrec_pipeline.semantic_ids import Anchors, FittedQuantizer, ids_of_new_items
from macrec_pipeline.storage import AssetStore, embedding_table, vectors_of

INGESTION = ["raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories"]
TRAINING = ["sasrec", "pseudo_labels", "quantizer", "semantic_ids"]
SMALL = (
    "cleaning.keep_items_without_interactions=true",
    "quantizer={method: residual_k_means, num_levels: 2, codebook_size: 6, collaborative_input_weight: 0.5}",
    "sasrec={d_model: 8, max_epochs: 1}",
    "recommender={d_model: 8, d_ff: 16, d_kv: 4, num_heads: 2, num_epochs: 1}",
)
APPEND = ("identity.mode=append", "recommender.warm_start=true")
QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}


class Week:
    """One run of the assets on a data set whose embeddings are written by hand."""

    def __init__(self, settings: Settings, partition: str, instance: dg.DagsterInstance) -> None:
        self.home, self.data = str(settings.home), str(settings.data)
        self.settings, self.partition, self.instance = settings, partition, instance
        self.store: AssetStore = settings.store(partition)

    def run(self, *assets: str, overrides: tuple[str, ...] = ()) -> dg.ExecuteInProcessResult:
        config = {"home": self.home, "data": self.data, "overrides": [*SMALL, *overrides]}
        return defs.resolve_job_def("full_pipeline").execute_in_process(
            instance=self.instance,
            partition_key=self.partition,
            asset_selection=[dg.AssetKey(name) for name in assets],
            run_config={"resources": {"settings": {"config": config}}, "loggers": QUIET},
            raise_on_error=False,
        )

    def ingest_and_embed(
        self, *, encoder: str = "drawn", dimensions: int = 8, routes: tuple[Route, ...] = ROUTES
    ) -> None:
        assert self.run(*INGESTION).success
        items = self.store.read_table("items")
        details = {CATALOGUE: self.store.manifest("items").details[CATALOGUE], MADE_BY: encoder}
        for route in ROUTES:
            vectors = np.stack([_vector(route, item_id, dimensions) for item_id in items["item_id"]])
            table = embedding_table(items, vectors=vectors, imputed=np.zeros(items.height, dtype=np.bool_))
            kept = table if route in routes else EMBEDDINGS.empty()
            self.store.write_table(f"{route}_embeddings", kept, details=details)

    def change_items(self, *, lose: str, bring: str) -> None:
        path = Path(self.data) / "items.csv"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(f"{lose},")]
        path.write_text("\n".join([*lines, f"{bring},New"]) + "\n", encoding="utf-8")

    def ids(self) -> dict[str, tuple[list[int], list[int]]]:
        table = self.store.read_table("semantic_ids")
        return {row[0]: (row[1], row[2]) for row in table.select("item_id", "text_codes", "image_codes").iter_rows()}

    def facts(self, result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
        (event,) = [each for each in result.get_asset_materialization_events() if each.asset_key == dg.AssetKey(asset)]
        return {name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()}


def _vector(route: str, item_id: str, dimensions: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(f"{route}/{item_id}".encode()).digest()[:4], "little")
    return np.random.default_rng(seed).normal(size=dimensions).astype(np.float32)


def _error(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    return str(error.cause.message if error.cause else error.message)


@pytest.fixture
def first_week(settings: Settings, partition: str, instance: dg.DagsterInstance) -> Week:
    """Quantized and assigned; append is asked for from the first day, and there is nothing to append to."""
    week = Week(settings, partition, instance)
    week.ingest_and_embed()
    result = week.run(*TRAINING, overrides=APPEND)
    assert result.success
    assert week.facts(result, "semantic_ids")["identity_reason"] == "there is no semantic_ids yet to go on from"
    return week


@pytest.mark.slow
def test_the_second_week_keeps_gives_and_retires(first_week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    """One item comes, in the middle of the index, one goes: IDs stay, training starts warm, the new one is served."""
    week, store = first_week, first_week.store
    assert week.run("recommender", overrides=APPEND).success
    before, quantizer = week.ids(), store.manifest("quantizer").files
    first_bundle = RecommenderBundle.load(store.folder("recommender") / "bundle")
    parts = first_bundle.description["parts"]
    assert {f"quantizer/{name}": digest for name, digest in quantizer.items()}.items() <= parts.items()
    week.change_items(lose="i11", bring="i04x")
    monkeypatch.setattr(continuity, "today", lambda: 77 * 86_400_000)
    week.ingest_and_embed()
    result = week.run(*TRAINING, "recommender", overrides=APPEND)
    assert result.success
    after = week.ids()
    assert {item: codes for item, codes in after.items() if item != "i04x"} == {
        item: codes for item, codes in before.items() if item != "i11"
    }
    assert list(after).index("i04x") == 5
    assert store.manifest("quantizer").files == quantizer
    assert store.read_table("pseudo_labels").is_empty(), "nothing is clustered for a quantizer that is kept"
    assert store.manifest("pseudo_labels").details["skipped"].startswith("identity.mode is append")
    retired = store.read_beside("semantic_ids", "retired_ids")
    assert retired.select("item_id", "retired_at").rows() == [("i11", 77 * 86_400_000)]
    assert retired["text_codes"].to_list() == [before["i11"][0]]
    facts = week.facts(result, "semantic_ids")
    assert (facts["new_items"], facts["retired_ids"], facts["known_items"], facts["moved_share"]) == (1, 1, 11, 0.0)
    assert (facts["cold_items"], facts["text_drift_share"]) == (1, 0.0)
    assert week.facts(result, "recommender")["warm_start"] == "taken over"
    bundle = RecommenderBundle.load(store.folder("recommender") / "bundle")
    (answer,) = bundle.recommend_ids([["i00", "i02"]], k=12)
    assert "i04x" in answer.item_ids
    assert "i11" not in answer.item_ids
    _a_consumer_gives_the_same_id(week, first_bundle)
    _nothing_changes_in_a_third_run(week)
    _an_anew_run_starts_cold(week)


def _a_consumer_gives_the_same_id(week: Week, bundle: RecommenderBundle) -> None:
    """From the bundle of the first week and the new item's embeddings, before any run has seen the item."""
    item_ids = week.store.read_table("items")["item_id"].to_list()
    vectors = {route: vectors_of(week.store.read_table(f"{route}_embeddings")) for route in ROUTES}
    new, folder = [item_ids.index("i04x")], bundle.quantizer_folder
    assert folder is not None
    found = ids_of_new_items(
        FittedQuantizer.load(folder, device=torch.device("cpu")),
        vectors["text"][new],
        vectors["image"][new],
        taken=bundle.codes,
        device=torch.device("cpu"),
        collaborative_vectors=Anchors.load(folder).of(item_ids, vectors)[new],
    )
    assert tuple(found[route][0].tolist() for route in ROUTES) == week.ids()["i04x"]


def _nothing_changes_in_a_third_run(week: Week) -> None:
    digest = week.store.manifest("semantic_ids").digest
    assert week.run("quantizer", "semantic_ids", overrides=APPEND).success
    assert week.store.manifest("semantic_ids").digest == digest


def _an_anew_run_starts_cold(week: Week) -> None:
    """And what SASRec says of the untouched item, which is noise, anchors nothing."""
    result = week.run("quantizer", "semantic_ids", "recommender", overrides=("recommender.warm_start=true", "seed=8"))
    assert result.success
    anchors = json.loads((week.store.folder("quantizer") / "anchors.json").read_text(encoding="utf-8"))
    assert anchors == [f"i{item:02d}" for item in range(11)]
    assert week.facts(result, "semantic_ids")["moved_share"] > 0
    assert "made anew" in week.facts(result, "recommender")["warm_start"]
    assert not week.store.read_beside("semantic_ids", "retired_ids").height


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(first_week: Week) -> None:
    """Other sizes, another encoder, another quantizer: append says what to do, auto quantizes anew and says why."""
    week = first_week
    auto = ("identity={mode: auto, limits: {max_gini: {value: 0.99}}}",)
    refused = week.run("quantizer", overrides=(*APPEND, "quantizer.codebook_size=7"))
    assert "codebook_size 6, but quantizer.codebook_size is 7" in _error(refused)
    assert "identity.mode=new" in _error(refused)
    week.ingest_and_embed(dimensions=9)
    assert "8 numbers, and they have 9" in _error(week.run("pseudo_labels", "quantizer", overrides=APPEND))
    week.ingest_and_embed(routes=("text",))
    fewer = "knows image and text embeddings, and the catalogue has text."
    assert fewer in _error(week.run("pseudo_labels", "quantizer", overrides=APPEND))
    week.ingest_and_embed(encoder="another")
    assert week.run("pseudo_labels", overrides=APPEND).success
    assert "encoder of text and image is another one" in _error(week.run("quantizer", overrides=APPEND))
    result = week.run("quantizer", "semantic_ids", overrides=(*auto, "seed=6"))
    assert result.success
    facts = week.facts(result, "semantic_ids")
    assert facts["identity"] == "new"
    assert "encoder of text and image is another one" in facts["identity_reason"]
    assert week.run("quantizer", overrides=("seed=9",)).success
    assert "made with identity.mode=new" in _error(week.run("semantic_ids", overrides=APPEND))
    assert "made with another quantizer" in _error(week.run("quantizer", overrides=APPEND))


@pytest.mark.slow
def test_a_quantizer_without_pseudo_labels_makes_them(first_week: Week) -> None:
    """Appending skipped them; a quantizer that is then made anew has the bytes that it has with the asset's."""
    method = "quantizer={method: cross_modal, num_levels: 2, codebook_size: 6, latent_dim: 4, num_epochs: 2}"
    files = {}
    for mode in ("new", "append"):
        overrides = (method, "pseudo_labels.num_clusters=4", f"identity.mode={mode}")
        assert first_week.run("pseudo_labels", overrides=overrides).success
        labels = first_week.store.read_table("pseudo_labels")
        assert (labels.height > 0) == (mode == "new")
        assert first_week.run("quantizer", overrides=(*overrides[:2], "identity.mode=new")).success
        files[mode] = first_week.store.manifest("quantizer").files
    assert files["new"] == files["append"]


@pytest.mark.slow
def test_a_bundle_has_the_quantizer_of_its_ids_or_is_not_made(first_week: Week) -> None:
    """A quantizer that came after the IDs cannot give new items any that fit."""
    assert first_week.run("quantizer", overrides=("seed=8",)).success
    message = _error(first_week.run("recommender"))
    assert "semantic_ids of" in message
    assert "were made with another quantizer" in message
    assert "macrec run" in message
    assert not first_week.store.has("recommender")


@pytest.mark.slow
def test_auto_goes_by_the_limits_and_checks_block_or_warn(first_week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the limit it appends; beyond it, or with a full table, all is made anew; a check stops only if told to."""
    week = first_week
    digest = week.store.manifest("quantizer").digest

    def limited(value: float, action: str = "warn", mode: str = "auto") -> tuple[str, ...]:
        limit = json.dumps({"value": value, "action": action})
        return (f"identity={{mode: {mode}, limits: {{min_neighbour_agreement: {limit}}}}}", "seed=5")

    def verdict(result: dg.ExecuteInProcessResult) -> tuple[bool, str]:
        (check,) = [
            each for each in result.get_asset_check_evaluations() if each.check_name == "quality_is_within_limits"
        ]
        return check.passed, check.severity.value

    within = week.run("quantizer", "semantic_ids", overrides=limited(0.0))
    assert within.success
    assert verdict(within)[0]
    assert week.store.manifest("quantizer").digest == digest
    beyond = week.run("quantizer", "semantic_ids", overrides=limited(1.1))
    assert beyond.success
    assert verdict(beyond) == (False, "WARN")
    assert week.store.manifest("quantizer").digest != digest
    assert "neighbour_agreement is" in week.facts(beyond, "semantic_ids")["identity_reason"]
    blocked = week.run("semantic_ids", "recommender", overrides=limited(1.1, "block", "append"))
    assert verdict(blocked) == (False, "ERROR")
    assert not blocked.success
    assert not week.store.has("recommender")
    digest = week.store.manifest("quantizer").digest

    def no_room(*_: object) -> None:
        raise SemanticIdError("no room")

    monkeypatch.setattr(continuity, "append_ids", no_room)
    assert week.run("quantizer", overrides=(*limited(0.0), "seed=7")).success
    assert week.store.manifest("quantizer").digest != digest
