"""Assets with one row per item know which catalogue they belong to, and are never combined with another one."""

from pathlib import Path

import dagster as dg
import numpy as np
import polars as pl
import pytest

from macrec_pipeline.defs.assets.interactions import clean_tables, histories, raw_interactions, raw_items
from macrec_pipeline.defs.assets.sasrec import sasrec
from macrec_pipeline.defs.assets.semantic_ids import pseudo_labels
from macrec_pipeline.defs.manifest_keys import CATALOGUE
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import StorageError
from macrec_pipeline.storage import AssetStore, embedding_table

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
UP_TO_HISTORIES = [raw_interactions, raw_items, clean_tables, histories]


def materialize(settings: Settings, partition: str, assets: list[dg.AssetsDefinition]) -> AssetStore:
    dg.materialize(assets, partition_key=partition, resources={"settings": settings}, run_config=QUIET)
    return AssetStore(Path(settings.home), partition)


def test_the_item_order_is_passed_downstream(settings: Settings, partition: str) -> None:
    """Tables and folders made from `items` carry its digest. The log refers to items by ID and has none."""
    small = Settings(home=settings.home, data=settings.data, overrides=["sasrec.max_epochs=1", "sasrec.d_model=8"])
    store = materialize(small, partition, [*UP_TO_HISTORIES, sasrec])
    order = store.manifest("items").details[CATALOGUE]
    assert store.manifest("histories").details[CATALOGUE] == order
    assert store.manifest("sasrec").details[CATALOGUE] == order
    assert CATALOGUE not in store.manifest("interactions").details
    assert materialize(small, partition, UP_TO_HISTORIES).manifest("items").details[CATALOGUE] == order


def test_inputs_from_different_catalogues_are_refused_by_name(settings: Settings, partition: str) -> None:
    """An item is removed and `items` is rebuilt, but `histories` is not: the error names both digests."""
    store = materialize(settings, partition, UP_TO_HISTORIES)
    before = store.manifest("items").details[CATALOGUE]
    data = Path(settings.data)
    for name in ("items.csv", "log.csv"):
        lines = (data / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (data / name).write_text("".join(line for line in lines if "i05" not in line), encoding="utf-8")
    after = materialize(settings, partition, UP_TO_HISTORIES[:-1]).manifest("items").details[CATALOGUE]
    assert after != before
    with pytest.raises(StorageError, match=r"different catalogues") as raised:
        materialize(settings, partition, [sasrec])
    for text in (f"catalogue {before[:12]}: histories", f"catalogue {after[:12]}: items", f"macrec run {partition}"):
        assert text in str(raised.value)
    assert not store.has("sasrec")


def test_embeddings_of_equally_many_other_items_are_refused(settings: Settings, partition: str) -> None:
    """The shapes fit, so no other check would notice."""
    store = AssetStore(Path(settings.home), partition)
    items = pl.DataFrame({"item_index": range(8), "item_id": [f"i{item}" for item in range(8)]})
    vectors = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    table = embedding_table(items, vectors=vectors, imputed=np.zeros(8, dtype=np.bool_))
    for route, order in (("text", "a" * 64), ("image", "b" * 64)):
        store.write_table(f"{route}_embeddings", table, details={CATALOGUE: order})
    with pytest.raises(StorageError, match=r"catalogue b{12}: image_embeddings; catalogue a{12}: text_embeddings"):
        materialize(settings, partition, [pseudo_labels])
    store.write_table("image_embeddings", table, details={CATALOGUE: "a" * 64})
    materialize(settings, partition, [pseudo_labels])
    assert store.manifest("pseudo_labels").details[CATALOGUE] == "a" * 64
