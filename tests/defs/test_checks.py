"""Asset checks: what they refuse, and that what they refuse goes no further."""

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
    """Clean tables in the store, without a run."""
    spec, store, data = settings.spec(partition), settings.store(partition), settings.data_folder()
    tables = clean(read_raw_interactions(spec, data), read_raw_items(spec, data), settings.config(partition).cleaning)
    store.write_table("interactions", tables.interactions)
    store.write_table("items", tables.items)
    store.write_table("histories", build_histories(tables.interactions, tables.items))


def _judge(asset: str, settings: Settings, *, partition: str, instance: dg.DagsterInstance) -> dg.AssetCheckEvaluation:
    """Run the checks of one asset alone, on the tables as they lie there."""
    job = dg.define_asset_job("checks_alone", selection=dg.AssetSelection.checks_for_assets(asset))
    every_asset = [item for item in defs.assets or [] if isinstance(item, dg.AssetsDefinition)]
    alone = dg.Definitions(assets=every_asset, asset_checks=CHECKS, jobs=[job], resources={"settings": settings})
    result = alone.resolve_job_def("checks_alone").execute_in_process(
        instance=instance, tags={"dagster/partition": partition}, run_config={"loggers": QUIET}, raise_on_error=False
    )
    (evaluation,) = result.get_asset_check_evaluations()
    return evaluation


def test_a_failing_check_stops_what_is_downstream_in_the_same_run(
    settings: Settings, partition: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cleaning that lets a bad time through is caught before a history is made of it; the raw tables stay."""

    honest = CleaningResult.interactions

    def careless(log: CleaningResult) -> Iterator[pl.DataFrame]:
        late = pl.when(pl.int_range(pl.len()) == pl.len() - 1).then(9_999_999_999_999).otherwise(pl.col("timestamp"))
        return (part.with_columns(timestamp=late) for part in honest(log))

    monkeypatch.setattr(CleaningResult, "interactions", careless)
    result = _run(INGESTED, settings, partition=partition, instance=instance)
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events() if event.asset_key}
    verdicts = {check.check_name: check for check in result.get_asset_check_evaluations()}
    assert not result.success
    assert made == set(INGESTED) - {"histories"}
    assert set(verdicts) == {"interactions_are_sound"}
    assert not verdicts["interactions_are_sound"].passed
    assert "timestamp in the future" in (verdicts["interactions_are_sound"].description or "")
    run = instance.get_run_by_id(result.run_id)
    assert run is not None
    assert run.tags["dagster/retry_on_asset_or_op_failure"] == "false"


def test_sound_data_passes_every_check(settings: Settings, partition: str, instance: dg.DagsterInstance) -> None:
    """The same run with the real cleaning goes through, so the test above does not fail for another reason."""
    result = _run(INGESTED, settings, partition=partition, instance=instance)
    assert result.success
    assert len(result.get_asset_materialization_events()) == len(INGESTED)
    assert [check.passed for check in result.get_asset_check_evaluations()] == [True] * 3
    for check in result.get_asset_check_evaluations():
        assert check.partition == partition


def _repeat_a_row(store: AssetStore) -> None:
    table = store.read_table("interactions")
    store.write_table("interactions", pl.concat([table[:1], table]))


def _lose_an_item(store: AssetStore) -> None:
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


def _not_a_number(vectors: np.ndarray) -> None:
    vectors[3, 1] = np.nan


def _all_the_same(vectors: np.ndarray) -> None:
    vectors[:] = 1.0


def _out_of_line(store: AssetStore) -> None:
    _embeddings(lambda vectors: None)(store)
    for route in ("text", "image"):
        table = store.read_table(f"{route}_embeddings")
        store.write_table(f"{route}_embeddings", table.with_columns(item_id=pl.col("item_id").reverse()))


@pytest.mark.parametrize(
    ("asset", "poison"),
    [
        ("interactions", _repeat_a_row),
        ("items", _lose_an_item),
        ("histories", _leak_the_target),
        ("text_embeddings", _embeddings(_not_a_number)),
        ("text_embeddings", _out_of_line),
        ("image_embeddings", _embeddings(_all_the_same)),
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
    """Whoever wrote the table: a check reads what lies there, blocks, and says what is wrong."""
    _ingest(settings, partition)
    poison(settings.store(partition))
    verdict = _judge(asset, settings, partition=partition, instance=instance)
    assert not verdict.passed
    assert verdict.blocking
    assert verdict.severity == dg.AssetCheckSeverity.ERROR
    assert len(verdict.description or "") > 20


def test_losing_to_popularity_warns_but_does_not_block(
    settings: Settings, partition: str, instance: dg.DagsterInstance
) -> None:
    """A short run may lose to the popular items: that is a warning, not a failure."""
    with settings.store(partition).new_folder("evaluation_report") as folder:
        text = '{"systems": {"macrec": {"ndcg_10": 0.01}, "popularity": {"ndcg_10": 0.02}}}'
        Path(folder, "metrics.json").write_text(text, encoding="utf-8")
    verdict = _judge("evaluation_report", settings, partition=partition, instance=instance)
    assert not verdict.passed
    assert not verdict.blocking
    assert verdict.severity == dg.AssetCheckSeverity.WARN
    assert "0.0100" in (verdict.description or "")
