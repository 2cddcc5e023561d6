"""The embedding assets: what an earlier version holds is not encoded again, whatever became of that version."""

from pathlib import Path

import dagster as dg
import polars as pl
import pytest

from macrec_pipeline.defs.assets.embeddings import text_embeddings
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.schemas import ITEMS
from macrec_pipeline.storage import AssetStore

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def encoded_of(settings: Settings, partition: str, texts: list[str | None]) -> int:
    """Materialize `text_embeddings` of items with these texts; how many were encoded."""
    store = AssetStore(Path(settings.home), partition)
    items = pl.DataFrame({"item_index": range(len(texts)), "item_id": [f"i{i}" for i in range(len(texts))]})
    rest = {"title": None, "image_path": None, "num_interactions": 1}
    items = items.with_columns(pl.Series("text", texts), **{name: pl.lit(value) for name, value in rest.items()})
    store.write_table("items", items.select(*ITEMS.columns).cast(ITEMS.columns))
    result = dg.materialize(
        [text_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
    )
    (made,) = result.asset_materializations_for_node("text_embeddings")
    encoded = made.metadata["encoded"].value
    assert isinstance(encoded, int)
    return encoded


def test_the_second_run_encodes_what_is_new(settings: Settings, partition: str) -> None:
    """Nothing of an unchanged catalogue, whose version keeps its digest; one text where one was added."""
    store = AssetStore(Path(settings.home), partition)
    assert encoded_of(settings, partition, ["a guitar", "strings", None]) == 2
    first = store.manifest("text_embeddings")
    assert encoded_of(settings, partition, ["a guitar", "strings", None]) == 0
    assert store.manifest("text_embeddings").digest == first.digest
    assert encoded_of(settings, partition, ["strings", "a drum", "a guitar"]) == 1
    assert not list(Path(settings.home).rglob("*.safetensors")), "what an attempt keeps goes when it has ended"


@pytest.mark.parametrize("damage", ["table", "manifest"])
def test_a_damaged_version_is_made_anew(settings: Settings, partition: str, damage: str) -> None:
    """The stage that would repair it does not fail of it."""
    store = AssetStore(Path(settings.home), partition)
    assert encoded_of(settings, partition, ["a guitar", "strings"]) == 2
    name = "text_embeddings.parquet" if damage == "table" else "manifest.json"
    path = store.location("text_embeddings").resolve() / name
    path.write_bytes(path.read_bytes()[:-9])
    assert encoded_of(settings, partition, ["a guitar", "strings"]) == 2
    assert store.read_table("text_embeddings").height == 2
