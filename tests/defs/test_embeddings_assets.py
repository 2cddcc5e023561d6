"""The embedding assets: what an earlier version holds is not encoded again, whatever became of that version."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from PIL import Image

from macrec_pipeline.defs.asset_context import GIVEN
from macrec_pipeline.defs.assets.embeddings import image_embeddings, text_embeddings
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.errors import DataError, EncoderError
from macrec_pipeline.schemas import EMBEDDINGS, ITEMS
from macrec_pipeline.storage import AssetStore

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def encoded_of(settings: Settings, partition: str, texts: list[str | None]) -> int:
    """Materialize `text_embeddings` of items with these texts; how many were encoded."""
    store = AssetStore(Path(settings.home), partition)
    items = pl.DataFrame({"item_index": range(len(texts)), "item_id": [f"i{i}" for i in range(len(texts))]})
    rest = {"title": None, "image_path": None, "categories": None, "num_interactions": 1}
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


def lacking_pictures(settings: Settings, partition: str) -> Any:
    """Materialize `image_embeddings` of two items with a text and no picture; what the asset reports."""
    store = AssetStore(Path(settings.home), partition)
    rows = [{"item_index": i, "item_id": f"i{i}", "text": "a guitar", "num_interactions": 1} for i in range(2)]
    store.write_table("items", pl.DataFrame(rows, schema=ITEMS.columns))
    return dg.materialize(
        [image_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
    ).asset_materializations_for_node("image_embeddings")[0]


def test_pictures_that_have_gone_are_no_catalogue_without_pictures(settings: Settings, partition: str) -> None:
    """A folder that is not mounted would make a two-route model a one-route one; that has to be said by someone."""
    store = AssetStore(Path(settings.home), partition)
    assert "one route, text" in lacking_pictures(settings, partition).metadata["skipped"].value
    store.write_table("image_embeddings", EMBEDDINGS.empty(), details={"made_by": "an encoder, of pictures"})
    with pytest.raises(DataError, match=r"No item of .* has a picture, but the last image_embeddings.*routes=\[text\]"):
        lacking_pictures(settings, partition)
    said = Settings(home=settings.home, data=settings.data, overrides=["routes=[text]"])
    assert lacking_pictures(said, partition).metadata["skipped"].value == "routes is text"


def test_given_ids_of_both_routes_need_no_picture(settings: Settings, partition: str) -> None:
    """A data set that brings its semantic IDs has both routes, whatever its items lack."""
    path = Path(os.environ["MACREC_DATASETS"]) / f"{partition}.yaml"
    source = "{reader: indexed, folder: x, prefix: X, text_index: t.json, image_index: i.json}"
    path.write_text(f"name: {partition}\ntitle: Given\npreset: demo\nsource: {source}\n", encoding="utf-8")
    assert lacking_pictures(settings, partition).metadata["skipped"].value == GIVEN


def test_a_route_that_is_asked_for_must_be_there(settings: Settings, partition: str) -> None:
    """With both routes named, a catalogue without pictures is an error of its picture column."""
    both = Settings(home=settings.home, data=settings.data, overrides=["routes=[text, image]"])
    with pytest.raises(EncoderError, match="None of the 2 items names a picture"):
        lacking_pictures(both, partition)


def test_a_broken_picture_is_flagged_and_its_row_says_why(settings: Settings, partition: str) -> None:
    """The run goes on; the item's vector is imputed, and the report can count what was unreadable."""
    store, data = AssetStore(Path(settings.home), partition), Path(str(settings.data))
    for name, content in (("cut.jpg", b""), ("page.jpg", b"<html>404</html>")):
        (data / name).write_bytes(content)
    for name, colour in (("good.png", "red"), ("other.png", "blue")):
        Image.new("RGB", (9, 9), colour).save(data / name)
    names = ["good.png", "cut.jpg", None, "other.png", "page.jpg"]
    rows = [{"item_index": i, "item_id": f"i{i}", "image_path": name} for i, name in enumerate(names)]
    items = pl.DataFrame(rows, schema=ITEMS.columns).with_columns(num_interactions=pl.lit(1, dtype=pl.Int64))
    store.write_table("items", items)
    made = dg.materialize(
        [image_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
    ).asset_materializations_for_node("image_embeddings")[0]
    table = store.read_table("image_embeddings")
    assert table["imputed"].to_list() == [False, True, True, False, True]
    problems = table["problem"].to_list()
    assert [problem is not None for problem in problems] == [False, True, False, False, True]
    assert problems[1] == "the file is empty (0 bytes)"
    assert "not a picture in a known format" in problems[4]
    assert made.metadata["num_unreadable"].value == 2
