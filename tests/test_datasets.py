"""The YAML files of data sets: what they may contain, and the messages about what they may not."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from macrec_pipeline import datasets
from macrec_pipeline.datasets import (
    BUILT_IN_READER_NAMES,
    DatasetSpec,
    FlagColumns,
    InteractionsTable,
    ItemsTable,
    dataset_names,
    load_dataset,
)
from macrec_pipeline.errors import ConfigError, UnknownDatasetError

_YAML = "name: shop\ntitle: Shop\nsource: {reader: demo}\n"


def _load(folder: Path, text: str) -> DatasetSpec:
    (folder / "shop.yaml").write_text(text)
    return load_dataset("shop", folder)


@pytest.mark.parametrize("name", dataset_names())
def test_the_files_of_the_checkout_are_valid(name: str) -> None:
    """Each one resolves to settings, survives serialization and has a built-in reader."""
    spec = load_dataset(name)
    assert spec.reader_name in BUILT_IN_READER_NAMES
    assert DatasetSpec.model_validate(spec.model_dump()) == spec
    assert spec.config().cleaning.k_core == spec.k_core


def test_an_unknown_data_set_names_similar_ones_and_the_folder(tmp_path: Path) -> None:
    """The message says what exists, where it was looked for, and how to look elsewhere."""
    message = rf"no data set 'shp'\. The folder {tmp_path} holds: no YAML file\. Set MACREC_DATASETS"
    with pytest.raises(UnknownDatasetError, match=message):
        load_dataset("shp", tmp_path)
    (tmp_path / "shop.yaml").write_text(_YAML)
    with pytest.raises(UnknownDatasetError, match=rf"Did you mean `shop`\? The folder {tmp_path} holds: shop\."):
        load_dataset("shp", tmp_path)


def test_names_do_not_lead_out_of_the_folder(tmp_path: Path) -> None:
    """A name is only looked up among the files of the folder."""
    (tmp_path / "outside.yaml").write_text(_YAML)
    (tmp_path / "inside").mkdir()
    with pytest.raises(UnknownDatasetError):
        load_dataset("../outside", tmp_path / "inside")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "cannot be read as YAML"),
        ("name: other\ntitle: Shop\nsource: {reader: demo}\n", "the name in the file is 'other', .* named 'shop'"),
        ("name: shop\ntitle: Shop\n", "`source` (is missing|must be a mapping with `reader`)"),
        ("name: shop\ntitle: Shop\nsource: {folder: x}\n", "`reader` is missing; .* built-in reader .tables, demo"),
        ("name: shop\ntitle: Shop\nsource: {reader: 3}\n", "`reader` is 3; it must be"),
        (_YAML.replace("demo", "demo, num_item: 3"), r"`source\.num_item`\. Did you mean `source\.num_items`"),
        (_YAML.replace("demo", "demo, folder: /x"), r"`source\.folder` must be a relative path .* got '/x'"),
        (_YAML.replace("demo", "demo, folder: a/../../x"), "must be a relative path that stays inside"),
        (_YAML + "schedule: {cron: 0 3 * *}\n", r"`schedule\.cron` must have five fields"),
        (_YAML + "schedule: {cron: 0 25 * * *}\n", r"'25' is none from 0 to 23; got '0 25 \* \* \*'"),
        (_YAML + "schedule: {timezone: Mars/Olympus}\n", r"`schedule\.timezone` must be an IANA time zone"),
        (_YAML + "overrides: {recommender: {num_epoch: 3}}\n", r"Did you mean `recommender\.num_epochs`"),
    ],
)
def test_wrong_files_have_a_clear_message(tmp_path: Path, text: str, message: str) -> None:
    """The message names the setting, what was found and what was expected."""
    with pytest.raises(ConfigError, match=message):
        _load(tmp_path, text)


def test_a_data_set_file_overrides_its_preset(tmp_path: Path) -> None:
    """The shortcuts come before `overrides`, and the overrides of a run come last."""
    text = _YAML + "k_core: 3\nencoders: {text: 'packaged:x'}\noverrides: {cleaning: {k_core: 4}, seed: 5}\n"
    spec = _load(tmp_path, text)
    config = spec.config({"seed": 6})
    assert (config.cleaning.k_core, config.text_encoder.name, config.seed) == (4, "packaged:x", 6)
    assert [layer.values for layer in spec.layers()] == [
        {"cleaning": {"k_core": 3}},
        {"text_encoder": {"name": "packaged:x"}},
        {"cleaning": {"k_core": 4}, "seed": 5},
    ]


def _models() -> list[type[BaseModel]]:
    return [
        member
        for member in vars(datasets).values()
        if isinstance(member, type) and issubclass(member, BaseModel) and member.__module__ == datasets.__name__
    ]


@pytest.mark.parametrize("model", _models(), ids=lambda model: model.__name__)
def test_every_setting_has_a_description(model: type[BaseModel]) -> None:
    """A description is a sentence: it begins with a capital letter or a symbol, and ends with a period."""
    descriptions: dict[str, Any] = {name: field.description for name, field in model.model_fields.items()}
    assert descriptions
    for name, description in descriptions.items():
        assert description, name
        assert description[0] == description[0].upper(), name
        assert description.endswith("."), name


def test_columns_are_named_or_numbered() -> None:
    """A column is a name or a position; several 0/1 columns can be one text."""
    log = InteractionsTable(file="a.csv", user_id=0, item_id="item", timestamp=2)
    assert (log.user_id, log.item_id, log.rating) == (0, "item", None)
    items = ItemsTable(file="b.csv", item_id="id", title="t", texts=("about", {"label": "Genres", "flags": ("War",)}))
    assert items.texts == ("about", FlagColumns(label="Genres", flags=("War",)))
