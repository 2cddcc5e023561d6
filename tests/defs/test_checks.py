"""Asset checks: what they refuse, and that nothing downstream of a failed check is materialized."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.cleaning.result import CleaningResult
from macrec_pipeline.data.histories.build import build_histories
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
from macrec_pipeline.definitions import defs
from macrec_pipeline.defs.checks import CHECKS
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.storage import AssetStore, embedding_table

QUIET = {"console": {"config": {"log_level": "CRITICAL"}}}
INGESTED = ["raw_interactions", "raw_items", "interactions", "items", "quarantine", "histories"]


def _run(
    assets: list[str], settings: Settings, *, partition: str, instance: dg.DagsterInstance
) -> dg.ExecuteInProcessResult:
    config = {"home": settings.home, "data": settings.data}
    return defs.resolve_job_def("full_pipeline").execute_in_process(
        instance=instance,
        partition_key=partition,
        asset_selection=[dg.AssetKey(name) for name in assets],
        run_config={"resources": {"settings": {"config": config}}, "loggers": QUIET},
        raise_on_error=False,
    )


def _ingest(settings: Settings, partition: str) -> None:
    """Write clean tables to the store without a run."""
    spec, store, data = settings.spec(partition), settings.store(partition), settings.data_folder()
    tables = clean(read_raw_interactions(spec, data), read_raw_items(spec, data), settings.config(partition).cleaning)
    store.write_table("interactions", tables.interactions)
    store.write_table("items", tables.items)
    store.write_table("histories", build_histories(tables.interactions, tables.items))


def _check(
    asset: str, settings: Settings, *, partition: str, instance: dg.DagsterInstance, name: str | None = None
) -> dg.AssetCheckEvaluation:
    """Run only the checks of one asset, on the stored tables, and return the only one or the one with this name."""
    job = dg.define_asset_job("checks_alone", selection=dg.AssetSelection.checks_for_assets(asset))
    every_asset = [item for item in defs.assets or [] if isinstance(item, dg.AssetsDefinition)]
    alone = dg.Definitions(assets=every_asset, asset_checks=CHECKS, jobs=[job], resources={"settings": settings})
    result = alone.resolve_job_def("checks_alone").execute_in_process(
        instance=instance, tags={"dagster/partition": partition}, run_config={"loggers": QUIET}, raise_on_error=False
    )
    evaluations = result.get_asset_check_evaluations()
    (evaluation,) = [one for one in evaluations if name is None or one.check_name == name]
    return evaluation


def test_a_failing_check_stops_what_is_downstream_in_the_same_run(
    settings: Settings, partition: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If cleaning lets a bad time through, no history is built from it; the raw tables stay."""

    original = CleaningResult.interactions

    def with_a_future_time(log: CleaningResult) -> Iterator[pl.DataFrame]:
        late = pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(9_999_999_999_999).otherwise(pl.col("timestamp"))
        return (part.with_columns(timestamp=late) for part in original(log))

    monkeypatch.setattr(CleaningResult, "interactions", with_a_future_time)
    result = _run(INGESTED, settings, partition=partition, instance=instance)
    materialized = {
        event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key
    }
    evaluations = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not result.success
    assert materialized == set(INGESTED) - {"histories"}
    assert set(evaluations) == {"interactions_are_sound"}
    assert not evaluations["interactions_are_sound"].passed
    assert "timestamp in the future" in (evaluations["interactions_are_sound"].description or "")
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_sound_data_passes_every_check(settings: Settings, partition: str, instance: dg.DagsterInstance) -> None:
    """The same run with the real cleaning succeeds, so the test above fails for no other reason."""
    result = _run(INGESTED, settings, partition=partition, instance=instance)
    assert result.success
    assert len(result.get_asset_materialization_events()) == len(INGESTED)
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True] * 3
    for check in result.get_asset_check_evaluations():
        assert check.partition == partition


def _repeat_a_row(store: AssetStore) -> None:
    table = store.read_table("interactions")
    store.write_table("interactions", pl.concat([table[:1], table]))


def _drop_an_item(store: AssetStore) -> None:
    store.write_table("items", store.read_table("items")[:-1])


def _leak_the_target(store: AssetStore) -> None:
    items, times = pl.col("item_indices"), pl.col("timestamps")
    leaking = [pl.concat_list(column.list.slice(column.list.len() - 1, 1), column) for column in (items, times)]
    store.write_table("histories", store.read_table("histories").with_columns(*leaking))


def _embeddings(change: Callable[[np.ndarray], None]) -> Callable[[AssetStore], None]:
    def poison(store: AssetStore) -> None:
        items = store.read_table("items")
        vectors = np.random.default_rng(0).normal(size=(items.height, 4)).astype(np.float32)
        change(vectors)
        imputed = np.zeros(items.height, dtype=np.bool_)
        for route in ("text", "image"):
            store.write_table(f"{route}_embeddings", embedding_table(items, vectors=vectors, imputed=imputed))

    return poison


def _set_nan(vectors: np.ndarray) -> None:
    vectors[3, 1] = np.nan


def _set_constant(vectors: np.ndarray) -> None:
    vectors[:] = 1.0


def _reverse_item_ids(store: AssetStore) -> None:
    _embeddings(lambda vectors: None)(store)
    for route in ("text", "image"):
        table = store.read_table(f"{route}_embeddings")
        store.write_table(f"{route}_embeddings", table.with_columns(item_id=pl.col("item_id").reverse()))


@pytest.mark.parametrize(
    ("asset", "poison"),
    [
        ("interactions", _repeat_a_row),
        ("items", _drop_an_item),
        ("histories", _leak_the_target),
        ("text_embeddings", _embeddings(_set_nan)),
        ("text_embeddings", _reverse_item_ids),
        ("image_embeddings", _embeddings(_set_constant)),
    ],
    ids=["repeated", "missing item", "leakage", "not a number", "out of line", "constant"],
)
def test_poisoned_tables_are_refused(
    asset: str,
    poison: Callable[[AssetStore], None],
    settings: Settings,
    partition: str,
    instance: dg.DagsterInstance,
) -> None:
    """The check reads the stored table, whatever wrote it, blocks, and says what is wrong and what to do."""
    _ingest(settings, partition)
    poison(settings.store(partition))
    verdict = _check(asset, settings, partition=partition, instance=instance)
    assert not verdict.passed
    assert verdict.blocking
    assert verdict.severity == dg.AssetCheckSeverity.ERROR
    problem, _, advice = (verdict.description or "").partition(" What to do: ")
    assert len(problem) > 20
    assert f"`macrec run {partition}`" in advice


def test_losing_to_popularity_warns_but_does_not_block(
    settings: Settings, partition: str, instance: dg.DagsterInstance
) -> None:
    """A short run may lose to the most popular items, so that is a warning and not a failure."""
    with settings.store(partition).new_folder("evaluation_report") as folder:
        text = '{"systems": {"macrec": {"ndcg_10": 0.01}, "popularity": {"ndcg_10": 0.02}}}'
        Path(folder, "metrics.json").write_text(text, encoding="utf-8")
    verdict = _check(
        "evaluation_report", settings, partition=partition, instance=instance, name="macrec_beats_popularity"
    )
    assert not verdict.passed
    assert not verdict.blocking
    assert verdict.severity == dg.AssetCheckSeverity.WARN
    assert "of the model is 0.0100, but the most popular items reach 0.0200." in (verdict.description or "")


@pytest.mark.parametrize(
    ("num_new", "allowed", "excluded", "passed"),
    [(0, 0, 0, True), (24, 0, 0, False), (24, 1, 0, True), (24, 0, 1, True)],
    ids=["no new items", "never recommended", "recommended", "recommended with seen items excluded"],
)
def test_new_items_that_are_never_recommended_are_a_warning(
    num_new: int,
    allowed: int,
    excluded: int,
    passed: bool,
    settings: Settings,
    partition: str,
    instance: dg.DagsterInstance,
) -> None:
    """The check warns if there are new items and MACRec recommends none of them to anyone in either setting.

    That a baseline recommends some makes no difference. The message has the figures and says what to do.
    """
    baseline = {"share": 0.5, "num_items": 7}
    new_items = {
        "num_items": num_new,
        "num_catalogue_items": 1600,
        "num_target_users": 31,
        "systems": {"macrec": {"share": 0.0, "num_items": allowed}, "popularity": baseline},
        "systems_excluding_seen": {"macrec": {"share": 0.0, "num_items": excluded}, "popularity": baseline},
    }
    systems = {"macrec": {"ndcg_10": 0.2}, "popularity": {"ndcg_10": 0.1}}
    with settings.store(partition).new_folder("evaluation_report") as folder:
        document = {"systems": systems, "num_test_users": 2500, "new_items": new_items}
        Path(folder, "metrics.json").write_text(json.dumps(document), encoding="utf-8")
    verdict = _check(
        "evaluation_report", settings, partition=partition, instance=instance, name="new_items_are_recommended"
    )
    assert (verdict.passed, verdict.blocking) == (passed, False)
    if not passed:
        assert verdict.severity == dg.AssetCheckSeverity.WARN
        message = verdict.description or ""
        assert "24 of the 1,600 items in the catalogue (1.5%) are new" in message
        assert "any of the 2,500 test users" in message
        assert "For 31 of these users" in message
        assert "`decoding.beam_width`" in message
