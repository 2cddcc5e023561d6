"""Append mode, run through the assets: which IDs are kept, assigned, retired or refused. Embeddings are random."""

import hashlib
import json
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl
import pytest
import torch

from macrec_pipeline.config import ROUTES, Route
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.ids import continuity
from macrec_pipeline.defs.manifest_keys import CATALOGUE, MADE_BY
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import SemanticIdError
from macrec_pipeline.recommender import RecommenderBundle
from macrec_pipeline.runtime.time_units import DAY_MS
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
    """Runs assets on a data set whose embeddings are written directly to the store."""

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
        self, *, encoder: str = "random", dimensions: int = 8, modalities: tuple[Route, ...] = ROUTES
    ) -> None:
        assert self.run(*INGESTION).success
        items = self.store.read_table("items")
        details = {CATALOGUE: self.store.manifest("items").details[CATALOGUE], MADE_BY: encoder}
        for modality in ROUTES:
            vectors = np.stack([_vector(modality, item_id, dimensions) for item_id in items["item_id"]])
            table = embedding_table(items, vectors=vectors, imputed=np.zeros(items.height, dtype=np.bool_))
            written = table if modality in modalities else EMBEDDINGS.empty()
            self.store.write_table(f"{modality}_embeddings", written, details=details)

    def change_items(self, *, remove: str, add: str) -> None:
        """Replace an item of the catalogue, and remove the old one from the log too."""
        log = Path(self.data) / "log.csv"
        rows = [line for line in log.read_text(encoding="utf-8").splitlines() if line.split(",")[1] != remove]
        log.write_text("\n".join(rows) + "\n", encoding="utf-8")
        path = Path(self.data) / "items.csv"
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith(f"{remove},")]
        path.write_text("\n".join([*lines, f"{add},New"]) + "\n", encoding="utf-8")

    def ids(self) -> dict[str, tuple[list[int], list[int]]]:
        table = self.store.read_table("semantic_ids")
        return {row[0]: (row[1], row[2]) for row in table.select("item_id", "text_codes", "image_codes").iter_rows()}

    def metadata(self, result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
        (event,) = [each for each in result.get_asset_materialization_events() if each.asset_key == dg.AssetKey(asset)]
        return {name: value.value for name, value in event.step_materialization_data.materialization.metadata.items()}


def _vector(modality: str, item_id: str, dimensions: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(f"{modality}/{item_id}".encode()).digest()[:4], "little")
    return np.random.default_rng(seed).normal(size=dimensions).astype(np.float32)


def _error(result: dg.ExecuteInProcessResult) -> str:
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    error = failure.step_failure_data.error
    assert error is not None
    return str(error.cause.message if error.cause else error.message)


@pytest.fixture
def first_week(settings: Settings, partition: str, instance: dg.DagsterInstance) -> Week:
    """IDs are assigned for the first time. Append mode is already on, but there is nothing to append to."""
    week = Week(settings, partition, instance)
    week.ingest_and_embed()
    result = week.run(*TRAINING, overrides=APPEND)
    assert result.success
    assert week.metadata(result, "semantic_ids")["identity_reason"] == "there is no semantic_ids yet to continue from"
    return week


@pytest.mark.slow
def test_the_second_week_keeps_assigns_and_retires_ids(first_week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    """One item is added in the middle of the index and one is removed: the other IDs stay, and training starts warm."""
    week, store = first_week, first_week.store
    assert week.run("recommender", overrides=APPEND).success
    before, quantizer = week.ids(), store.manifest("quantizer").files
    first_bundle = RecommenderBundle.load(store.folder("recommender") / "bundle")
    parts = first_bundle.description["parts"]
    assert {f"quantizer/{name}": digest for name, digest in quantizer.items()}.items() <= parts.items()
    week.change_items(remove="i11", add="i04x")
    monkeypatch.setattr(continuity, "today", lambda: 77 * DAY_MS)
    week.ingest_and_embed()
    result = week.run(*TRAINING, "recommender", overrides=APPEND)
    assert result.success
    after = week.ids()
    assert {item: codes for item, codes in after.items() if item != "i04x"} == {
        item: codes for item, codes in before.items() if item != "i11"
    }
    assert list(after).index("i04x") == 5
    assert store.manifest("quantizer").files == quantizer
    assert store.read_table("pseudo_labels").is_empty(), "a quantizer that is kept needs no clusters"
    assert store.manifest("pseudo_labels").details["skipped"].startswith("identity.mode is append")
    retired = store.read_beside("semantic_ids", "retired_ids")
    assert retired.select("item_id", "retired_at").rows() == [("i11", 77 * DAY_MS)]
    assert retired["text_codes"].to_list() == [before["i11"][0]]
    metadata = week.metadata(result, "semantic_ids")
    assert (metadata["new_items"], metadata["retired_ids"], metadata["known_items"], metadata["moved_share"]) == (
        1,
        1,
        11,
        0.0,
    )
    assert (metadata["cold_items"], metadata["text_drift_share"]) == (1, 0.0)
    assert week.metadata(result, "recommender")["warm_start"] == "taken over"
    bundle = RecommenderBundle.load(store.folder("recommender") / "bundle")
    (answer,) = bundle.recommend_ids([["i00", "i02"]], k=12)
    assert "i04x" in answer.item_ids
    assert "i11" not in answer.item_ids
    _assert_a_consumer_assigns_the_same_id(week, first_bundle)
    _assert_a_third_run_changes_nothing(week)
    _assert_new_ids_mean_a_cold_start(week)


def _assert_a_consumer_assigns_the_same_id(week: Week, bundle: RecommenderBundle) -> None:
    """It needs only the first week's bundle and the new item's embeddings, before any run has seen the item."""
    item_ids = week.store.read_table("items")["item_id"].to_list()
    vectors = {name: vectors_of(week.store.read_table(f"{name}_embeddings")) for name in ROUTES}
    new, folder = [item_ids.index("i04x")], bundle.quantizer_folder
    assert folder is not None
    found = ids_of_new_items(
        FittedQuantizer.load(folder, device=torch.device("cpu")),
        vectors["text"][new],
        vectors["image"][new],
        taken=bundle.codes,
        device=torch.device("cpu"),
        collaborative_vectors=Anchors.load(folder).for_items(item_ids, vectors)[new],
    )
    assert tuple(found[modality][0].tolist() for modality in ROUTES) == week.ids()["i04x"]


def _assert_a_third_run_changes_nothing(week: Week) -> None:
    digest = week.store.manifest("semantic_ids").digest
    assert week.run("quantizer", "semantic_ids", overrides=APPEND).success
    assert week.store.manifest("semantic_ids").digest == digest


def _assert_new_ids_mean_a_cold_start(week: Week) -> None:
    """An item without interactions has a random SASRec embedding, which must not become an anchor either."""
    result = week.run("quantizer", "semantic_ids", "recommender", overrides=("recommender.warm_start=true", "seed=8"))
    assert result.success
    anchors = json.loads((week.store.folder("quantizer") / "anchors.json").read_text(encoding="utf-8"))
    assert anchors == [f"i{item:02d}" for item in range(11)]
    assert week.metadata(result, "semantic_ids")["moved_share"] > 0
    assert "assigned from scratch" in week.metadata(result, "recommender")["warm_start"]
    assert not week.store.read_beside("semantic_ids", "retired_ids").height


@pytest.mark.slow
def test_mismatches_are_refused_in_append_mode(first_week: Week) -> None:
    """If sizes, encoder or quantizer have changed, `append` fails with advice, and `auto` starts over with a reason."""
    week = first_week
    auto = ("identity={mode: auto, limits: {max_gini: {value: 0.99}}}",)
    refused = week.run("quantizer", overrides=(*APPEND, "quantizer.codebook_size=7"))
    assert "codebook_size 6, but quantizer.codebook_size is 7" in _error(refused)
    assert "identity.mode=new" in _error(refused)
    week.ingest_and_embed(dimensions=9)
    assert "8 dimensions, but they now have 9" in _error(week.run("pseudo_labels", "quantizer", overrides=APPEND))
    week.ingest_and_embed(modalities=("text",))
    fewer = "fitted to image and text embeddings, but the catalogue has text embeddings."
    assert fewer in _error(week.run("pseudo_labels", "quantizer", overrides=APPEND))
    week.ingest_and_embed(encoder="another")
    assert week.run("pseudo_labels", overrides=APPEND).success
    assert "encoder of text and image has changed" in _error(week.run("quantizer", overrides=APPEND))
    result = week.run("quantizer", "semantic_ids", overrides=(*auto, "seed=6"))
    assert result.success
    metadata = week.metadata(result, "semantic_ids")
    assert metadata["identity"] == "new"
    assert "encoder of text and image has changed" in metadata["identity_reason"]
    assert week.run("quantizer", overrides=("seed=9",)).success
    assert "made with identity.mode=new" in _error(week.run("semantic_ids", overrides=APPEND))
    assert "made with another quantizer" in _error(week.run("quantizer", overrides=APPEND))


@pytest.mark.slow
def test_a_quantizer_without_pseudo_labels_computes_them(first_week: Week) -> None:
    """If append mode skipped the asset `pseudo_labels`, a new quantizer still has the same bytes as with it."""
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
def test_a_bundle_needs_the_quantizer_that_assigned_its_ids(first_week: Week) -> None:
    """A quantizer that is newer than the IDs would assign IDs to new items that do not fit the model."""
    assert first_week.run("quantizer", overrides=("seed=8",)).success
    message = _error(first_week.run("recommender"))
    assert "semantic_ids of" in message
    assert "were made with another quantizer" in message
    assert "macrec run" in message
    assert not first_week.store.has("recommender")


@pytest.mark.slow
def test_an_item_that_leaves_the_catalogue_is_remembered(first_week: Week, monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its ID and its place in histories and is not recommended; when it comes back, it is as before."""
    week, store = first_week, first_week.store
    before, catalogue = week.ids(), Path(week.data) / "items.csv"
    files = {name: store.manifest(name).files for name in ("raw_items", "items", "histories")}
    assert all(list(each) == [f"{name}.parquet"] for name, each in files.items()), "no side tables without need"
    full = catalogue.read_text(encoding="utf-8")
    catalogue.write_text(full.replace("i04,Item 4\n", ""), encoding="utf-8")
    monkeypatch.setattr(continuity, "today", lambda: 77 * DAY_MS)
    for _ in range(2):
        week.ingest_and_embed()
        assert store.read_beside("items", "unlisted_items").rows() == [(4, "i04", 77 * DAY_MS)]
        monkeypatch.setattr(continuity, "today", lambda: 78 * DAY_MS)
    assert store.read_table("quarantine").filter(pl.col("table") == "raw_interactions").is_empty()
    assert store.manifest("histories").files == files["histories"]
    overrides = (*APPEND, "decoding.top_k=10")
    assert week.run(*TRAINING, "recommender", "predictions", overrides=overrides).success
    assert week.ids() == before
    bundle = RecommenderBundle.load(store.folder("recommender") / "bundle")
    assert bundle.listed is not None
    assert np.flatnonzero(~bundle.listed).tolist() == [4]
    predictions, histories = store.read_table("predictions"), store.read_table("histories")
    assert 4 not in predictions["item_indices"].explode().to_list()
    is_target = histories["item_indices"].list.last() == 4
    assert 0 < is_target.sum() < histories.height
    assert set(predictions["user_index"]) == set(histories.filter(~is_target)["user_index"])

    catalogue.write_text(full, encoding="utf-8")
    week.ingest_and_embed()
    assert {name: store.manifest(name).files for name in files} == files
    assert week.run(*TRAINING, overrides=APPEND).success
    assert week.ids() == before


@pytest.mark.slow
def test_auto_mode_follows_the_limits_and_checks_block_or_warn(
    first_week: Week, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the limit IDs are appended. Beyond it, or if no code is free, all are new. A limit may block or warn."""
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
    assert "neighbour_agreement is" in week.metadata(beyond, "semantic_ids")["identity_reason"]
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
