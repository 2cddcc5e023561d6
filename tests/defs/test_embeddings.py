"""The embedding assets: the previous version is reused where it can be, and missing data is not passed over."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pytest
from PIL import Image

from macrec_pipeline.defs.assets.embeddings import image_embeddings, text_embeddings
from macrec_pipeline.defs.manifest_keys import GIVEN
from macrec_pipeline.defs.resources import Settings
from macrec_pipeline.embeddings import image_encoders
from macrec_pipeline.errors import DataError, EncoderError
from macrec_pipeline.schemas import EMBEDDINGS, ITEMS, UNLISTED_ITEMS
from macrec_pipeline.storage import AssetStore

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def count_encoded(settings: Settings, partition: str, texts: list[str | None]) -> int:
    """Materialize `text_embeddings` for items with these texts; returns how many were encoded."""
    store = AssetStore(Path(settings.home), partition)
    items = pl.DataFrame({"item_index": range(len(texts)), "item_id": [f"i{i}" for i in range(len(texts))]})
    rest = {"title": None, "image_path": None, "categories": None, "num_interactions": 1}
    items = items.with_columns(pl.Series("text", texts), **{name: pl.lit(value) for name, value in rest.items()})
    store.write_table("items", items.select(*ITEMS.columns).cast(ITEMS.columns))
    result = dg.materialize(
        [text_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
    )
    (materialization,) = result.asset_materializations_for_node("text_embeddings")
    encoded = materialization.metadata["encoded"].value
    assert isinstance(encoded, int)
    return encoded


def test_the_second_run_encodes_only_new_texts(settings: Settings, partition: str) -> None:
    """An unchanged catalogue is not encoded and keeps its digest; one added text is encoded alone."""
    store = AssetStore(Path(settings.home), partition)
    assert count_encoded(settings, partition, ["a guitar", "strings", None]) == 2
    first = store.manifest("text_embeddings")
    assert count_encoded(settings, partition, ["a guitar", "strings", None]) == 0
    assert store.manifest("text_embeddings").digest == first.digest
    assert count_encoded(settings, partition, ["strings", "a drum", "a guitar"]) == 1
    assert not list(Path(settings.home).rglob("*.safetensors")), "files of an attempt are deleted when it has ended"


@pytest.mark.parametrize("damage", ["table", "manifest"])
def test_a_damaged_version_is_encoded_again(settings: Settings, partition: str, damage: str) -> None:
    """A damaged previous version must not make the asset fail that would replace it."""
    store = AssetStore(Path(settings.home), partition)
    assert count_encoded(settings, partition, ["a guitar", "strings"]) == 2
    name = "text_embeddings.parquet" if damage == "table" else "manifest.json"
    path = store.location("text_embeddings").resolve() / name
    path.write_bytes(path.read_bytes()[:-9])
    assert count_encoded(settings, partition, ["a guitar", "strings"]) == 2
    assert store.read_table("text_embeddings").height == 2


def embed_items_without_images(settings: Settings, partition: str) -> Any:
    """Materialize `image_embeddings` for two items with a text but no image; returns the materialization."""
    store = AssetStore(Path(settings.home), partition)
    rows = [{"item_index": i, "item_id": f"i{i}", "text": "a guitar", "num_interactions": 1} for i in range(2)]
    store.write_table("items", pl.DataFrame(rows, schema=ITEMS.columns))
    return dg.materialize(
        [image_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
    ).asset_materializations_for_node("image_embeddings")[0]


def test_images_that_have_disappeared_are_an_error(settings: Settings, partition: str) -> None:
    """A folder that is not mounted must not turn a two-route model into a one-route one, unless a setting says so."""
    store = AssetStore(Path(settings.home), partition)
    assert "one route, text" in embed_items_without_images(settings, partition).metadata["skipped"].value
    store.write_table("image_embeddings", EMBEDDINGS.empty(), details={"made_by": "an image encoder"})
    with pytest.raises(
        DataError, match=r"No item of .* has an image, but the previous image_embeddings.*routes=\[text\]"
    ):
        embed_items_without_images(settings, partition)
    text_only = Settings(home=settings.home, data=settings.data, overrides=["routes=[text]"])
    assert embed_items_without_images(text_only, partition).metadata["skipped"].value == "routes is text"


def test_provided_ids_need_no_image(settings: Settings, partition: str) -> None:
    """A data set that provides its semantic IDs has both routes, whatever its items lack."""
    path = Path(os.environ["MACREC_DATASETS"]) / f"{partition}.yaml"
    source = "{reader: indexed, folder: x, prefix: X, text_index: t.json, image_index: i.json}"
    path.write_text(f"name: {partition}\ntitle: Given\npreset: demo\nsource: {source}\n", encoding="utf-8")
    assert embed_items_without_images(settings, partition).metadata["skipped"].value == GIVEN


def test_a_route_in_the_settings_must_have_data(settings: Settings, partition: str) -> None:
    """If the settings name both routes, a catalogue without images is an error."""
    both = Settings(home=settings.home, data=settings.data, overrides=["routes=[text, image]"])
    with pytest.raises(EncoderError, match="none of the 2 items has one"):
        embed_items_without_images(both, partition)


def test_an_unreadable_image_is_flagged_and_its_row_says_why(settings: Settings, partition: str) -> None:
    """The run continues, the item's vector is imputed, and the report counts unreadable images."""
    store, data = AssetStore(Path(settings.home), partition), Path(str(settings.data))
    for name, content in (("cut.jpg", b""), ("page.jpg", b"<html>404</html>")):
        (data / name).write_bytes(content)
    for name, colour in (("good.png", "red"), ("other.png", "blue")):
        Image.new("RGB", (9, 9), colour).save(data / name)
    names = ["good.png", "cut.jpg", None, "other.png", "page.jpg"]
    rows = [{"item_index": i, "item_id": f"i{i}", "image_path": name} for i, name in enumerate(names)]
    items = pl.DataFrame(rows, schema=ITEMS.columns).with_columns(num_interactions=pl.lit(1, dtype=pl.Int64))
    store.write_table("items", items)
    materialization = dg.materialize(
        [image_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
    ).asset_materializations_for_node("image_embeddings")[0]
    table = store.read_table("image_embeddings")
    assert table["imputed"].to_list() == [False, True, True, False, True]
    problems = table["problem"].to_list()
    assert [problem is not None for problem in problems] == [False, True, False, False, True]
    assert problems[1] == "the file is empty (0 bytes)"
    assert "not an image in a known format" in problems[4]
    assert materialization.metadata["num_unreadable"].value == 2


def test_an_item_that_has_left_keeps_the_vector_of_its_image(settings: Settings, partition: str) -> None:
    """The shop deletes the image with the item: the vector of the previous version stays, without a problem."""
    store, data = AssetStore(Path(settings.home), partition), Path(settings.data)
    for item, colour in enumerate(("red", "blue", "green")):
        Image.new("RGB", (8, 8), colour).save(data / f"i{item}.png")
    rows = [{"item_index": i, "item_id": f"i{i}", "image_path": f"i{i}.png", "num_interactions": 1} for i in range(3)]
    items = pl.DataFrame(rows, schema=ITEMS.columns)

    def embed() -> pl.DataFrame:
        dg.materialize([image_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET)
        return store.read_table("image_embeddings")

    store.write_table("items", items)
    before = embed()
    (data / "i1.png").unlink()
    unlisted = pl.DataFrame([(1, "i1", 0)], schema=UNLISTED_ITEMS.columns, orient="row")
    store.write_table("items", items, beside={"unlisted_items": unlisted})
    assert embed().equals(before)
    assert embed().equals(before), "and the week after, too"
    store.write_table("items", items)
    assert embed()["imputed"].to_list() == [False, True, False], "an item of the catalogue needs its image"


def test_another_transform_of_images_warns_and_encodes_again(
    settings: Settings, partition: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same weights with another crop: the warning and the metadata name both transforms, and no vector is kept."""
    store, data = AssetStore(Path(settings.home), partition), Path(str(settings.data))
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (9, 9), colour).save(data / name)
    rows = [{"item_index": i, "item_id": f"i{i}", "image_path": name} for i, name in enumerate(["a.png", "b.png"])]
    items = pl.DataFrame(rows, schema=ITEMS.columns).with_columns(num_interactions=pl.lit(1, dtype=pl.Int64))
    store.write_table("items", items)

    def materialized() -> dict[str, Any]:
        result = dg.materialize(
            [image_embeddings], partition_key=partition, resources={"settings": settings}, run_config=QUIET
        )
        return {
            key: value.value
            for key, value in result.asset_materializations_for_node("image_embeddings")[0].metadata.items()
        }

    first = materialized()
    assert (first["encoded"], "transform_before" in first, caplog.messages) == (2, False, [])
    assert first["transform"] == "timm: shorter side to 256, centre crop of 224 x 224, bicubic; mean 0.5, std 0.5"
    assert store.manifest("image_embeddings").details["transform"]["words"] == first["transform"]
    assert materialized()["encoded"] == 0
    monkeypatch.setitem(image_encoders.PREPROCESSING, "crop_pct", 0.7)
    second = materialized()
    assert second["encoded"] == 2
    assert second["transform_before"] == first["transform"]
    assert second["transform"].startswith("timm: shorter side to 320,")
    (warning,) = [message for message in caplog.messages if "other images than before" in message]
    assert first["transform"] in warning
    assert second["transform"] in warning
    assert "transform_before" not in materialized()
