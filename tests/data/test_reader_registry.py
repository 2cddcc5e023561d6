"""Finding a reader by name, import path or entry point, and the example in docs/data.md."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import ValidationError

from macrec_pipeline.data.images.addresses import image_template_of
from macrec_pipeline.data.readers.indexed import IndexedReader
from macrec_pipeline.data.readers.precomputed import precomputed_embeddings, precomputed_semantic_ids
from macrec_pipeline.data.readers.reader import raw_table
from macrec_pipeline.data.readers.registry import (
    BUILT_IN_READERS,
    open_reader,
    raw_interaction_parts,
    read_raw_interactions,
    read_raw_items,
    source_files,
    validate_source,
)
from macrec_pipeline.datasets import BUILT_IN_READER_NAMES, DatasetSpec, load_dataset
from macrec_pipeline.errors import ConfigError, MissingFileError, SchemaError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

_DOCS = Path(__file__).resolve().parents[2] / "docs" / "data.md"
_READER = """
from pathlib import Path
import polars as pl
from pydantic import BaseModel, Field
from macrec_pipeline.data.readers.reader import Reader, raw_table
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

class Tiny(Reader):
    def __init__(self, options, data_dir):
        self.options, self.data_dir = options, data_dir
    def interaction_parts(self):
        columns = pl.DataFrame({"user_id": ["u"], "item_id": ["i"], "timestamp": [1]})
        yield raw_table(RAW_INTERACTIONS, columns, file="log")
    def items(self):
        return raw_table(RAW_ITEMS, pl.DataFrame({"item_id": ["i"]}), file="items")
    def problems(self):
        return []
    def source_files(self):
        return [Path("log")]

class WithOptions(Tiny):
    class options_model(BaseModel):
        folder: str
        limit: int = Field(5, ge=1)

class WithImages(Tiny):
    def image_template(self):
        return self.options["images"]

class Incomplete(Reader):
    def items(self):
        raise NotImplementedError
    def problems(self):
        return []

class Unrelated:
    pass

class OneArgument(Tiny):
    def __init__(self, options):
        pass

class OtherColumns(Tiny):
    def interaction_parts(self):
        yield pl.DataFrame({"user": ["u"]})

function = print
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module with readers that can be imported during the test."""
    name = "my_test_readers"
    (tmp_path / f"{name}.py").write_text(_READER)
    (tmp_path / "my_broken_module.py").write_text("raise RuntimeError('no\\nlicence')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for each in (name, "my_broken_module"):
        sys.modules.pop(each, None)


def _spec(reader: str, **options: Any) -> DatasetSpec:
    return DatasetSpec.model_validate({"name": "shop", "title": "Shop", "source": {"reader": reader, **options}})


def _documented_blocks(language: str) -> list[str]:
    (section,) = re.findall(r"^## Write your own reader\n(.*?)^## ", _DOCS.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", section, re.MULTILINE | re.DOTALL)


def test_the_documented_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader and the YAML file of docs/data.md read a small export, and name what is missing."""
    (code,), (yaml,) = _documented_blocks("python"), _documented_blocks("yaml")
    (tmp_path / "my_shop.py").write_text(code)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "orders.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_shop", raising=False)
    spec = load_dataset("orders", tmp_path / "datasets")
    assert spec.reader_name == "my_shop:OrdersReader"
    assert "orders.ndjson does not exist" in validate_source(spec, tmp_path)[0]
    with pytest.raises(MissingFileError, match="MACREC_DATA"):
        source_files(spec, tmp_path)

    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "orders.ndjson").write_text(
        '{"customer": "ann", "sku": "A", "ordered_at": 1500000000000, "quantity": 2}\n'
        '{"customer": "bob", "sku": "B", "ordered_at": 1500000000001, "quantity": 1}\n'
        '{"customer": "bob", "sku": "A", "ordered_at": null, "quantity": 3}\n'
    )
    (tmp_path / "export" / "products.ndjson").write_text(
        '{"sku": "A", "name": "Ball", "about": "Soft"}\n{"sku": "B", "name": "Kite", "about": null}\n'
    )
    assert validate_source(spec, tmp_path) == []
    assert source_files(spec, tmp_path) == [tmp_path / "export" / f"{name}.ndjson" for name in ("orders", "products")]
    assert read_raw_interactions(spec, tmp_path).rows() == [
        ("ann", "A", None, 1_500_000_000_000, "export/orders.ndjson", 1, None),
        ("bob", "A", None, None, "export/orders.ndjson", 3, None),
    ]
    assert read_raw_items(spec, tmp_path).select("item_id", "title", "text", "source_row").rows() == [
        ("A", "Ball", "Ball. Soft", 1),
        ("B", "Kite", "Kite", 2),
    ]
    with pytest.raises(ConfigError, match=r"unknown option `source\.min_quantiti`\. Did you mean `min_quantity`"):
        validate_source(_spec("my_shop:OrdersReader", folder="export", min_quantiti=2), tmp_path)


def test_a_reader_without_options_model_receives_a_plain_mapping(module: str, tmp_path: Path) -> None:
    """Every key under `source` but `reader` is an option, also one that looks like a setting of a built-in reader."""
    spec = _spec(f"{module}:Tiny", text_embeddings="x", options={"a": 1})
    reader: Any = open_reader(spec, tmp_path)
    assert reader.options == {"text_embeddings": "x", "options": {"a": 1}}
    assert reader.data_dir == tmp_path
    items = read_raw_items(spec, tmp_path)
    assert items["item_id"].to_list() == ["i"]
    assert precomputed_semantic_ids(spec, tmp_path, items) is None
    assert precomputed_embeddings(spec, tmp_path, items, "text") is None


def test_a_spec_with_a_custom_reader_survives_serialization(module: str) -> None:
    """Validating the dumped spec gives an equal spec."""
    spec = _spec(f"{module}:Tiny", folder="x")
    assert DatasetSpec.model_validate(spec.model_dump()) == spec
    assert DatasetSpec.model_validate_json(spec.model_dump_json()) == spec


def test_options_are_validated_with_the_model_of_the_reader(module: str, tmp_path: Path) -> None:
    """The reader receives the validated model; the message of an error names each wrong option."""
    reader: Any = open_reader(_spec(f"{module}:WithOptions", folder="x", limit="7"), tmp_path)
    assert (reader.options.folder, reader.options.limit) == ("x", 7)
    with pytest.raises(ConfigError, match=r"options are invalid. `folder` is missing.*`limit` must be .*at least 1"):
        open_reader(_spec(f"{module}:WithOptions", limit=0), tmp_path)
    with pytest.raises(ConfigError, match=r"unknown option `source.foldr`. Did you mean `folder`\? .*: folder, limit"):
        open_reader(_spec(f"{module}:WithOptions", foldr="x"), tmp_path)


def _declare(folder: Path, distribution: str, *entry_points: str) -> None:
    info = folder / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("\n".join(["[macrec_pipeline.readers]", *entry_points]) + "\n")


def test_an_entry_point_gives_a_reader_a_short_name(module: str, tmp_path: Path) -> None:
    """An installed package declares it; two different readers of one name are refused."""
    _declare(tmp_path, "my-shop", f"tiny = {module}:Tiny", f"only-module = {module}")
    spec = _spec("tiny", folder="x")
    assert spec.reader_name == "tiny"
    assert type(open_reader(spec, tmp_path)).__name__ == "Tiny"
    with pytest.raises(ConfigError, match="the entry point names the module 'my_test_readers', but no class"):
        open_reader(_spec("only-module"), tmp_path)
    with pytest.raises(ValidationError, match=r"no reader 'tinny'\. Did you mean `tiny`.*declare: only-module, tiny"):
        _spec("tinny")
    _declare(tmp_path, "other-shop", f"tiny = {module}:WithImages")
    with pytest.raises(ConfigError, match=r"several installed packages .*my_test_readers:Tiny, my_test_readers:With"):
        open_reader(spec, tmp_path)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (
            "tabels",
            "there is no reader 'tabels'. Did you mean `tables`.*: tables, demo, .*give its import path",
        ),
        ("my module:Reader", "'my module:Reader' is not an import path such as my_package.my_module:MyReader"),
        ("module:", "'module:' is not an import path"),
    ],
)
def test_wrong_names_are_refused_when_the_file_is_loaded(tmp_path: Path, reader: str, message: str) -> None:
    """No code is imported for that, so a typing error is found by every command."""
    (tmp_path / "shop.yaml").write_text(f"name: shop\ntitle: Shop\nsource: {{reader: '{reader}'}}\n")
    with pytest.raises(ConfigError, match=rf"shop\.yaml is invalid\. .*{message}"):
        load_dataset("shop", tmp_path)


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("no_such_module:Reader", "no_such_module cannot be imported .ModuleNotFoundError: No module.*PYTHONPATH"),
        ("my_broken_module:Reader", "my_broken_module cannot be imported .RuntimeError: no licence"),
        ("my_test_readers:Tinny", "module my_test_readers has no class 'Tinny'. Did you mean `Tiny`"),
        ("my_test_readers:function", "my_test_readers:function is a builtin_function_or_method, expected a class"),
        (
            "my_test_readers:Incomplete",
            r"class Incomplete does not implement interaction_parts\(\), source_files\(\)\. A reader is a subclass of "
            "macrec_pipeline.data.readers.reader.Reader",
        ),
        ("my_test_readers:Unrelated", r"does not implement interaction_parts\(\), items\(\), .*image_template\(\)"),
        ("my_test_readers:OneArgument", "cannot be created .*must accept two positional arguments"),
    ],
)
def test_a_reader_that_cannot_be_used_is_a_clear_error(module: str, tmp_path: Path, reader: str, message: str) -> None:
    """The message names the data set, the reader and what to correct."""
    with pytest.raises(ConfigError, match=rf"Data set shop, reader '{reader}': .*{message}"):
        validate_source(_spec(reader), tmp_path)


def test_the_tables_of_a_reader_are_checked(module: str, tmp_path: Path) -> None:
    """A table with other columns is an error that names the data set, before anything is computed from it."""
    with pytest.raises(SchemaError, match=r"raw_interactions \(shop\): columns are \['user'\]"):
        list(raw_interaction_parts(_spec(f"{module}:OtherColumns"), tmp_path))


def test_a_custom_reader_says_where_images_belong(module: str, tmp_path: Path) -> None:
    """Without `image_template` there are no images to fetch."""
    spec = _spec(f"{module}:WithImages", images="export/{item_id}.png")
    assert image_template_of(spec, tmp_path) == "export/{item_id}.png"
    with pytest.raises(ConfigError, match=r"image path is 'export/a\.png', which is the same for all items"):
        image_template_of(_spec(f"{module}:WithImages", images="export/a.png"), tmp_path)
    with pytest.raises(ConfigError, match=r"shop has no image addresses .reader my_test_readers:Tiny"):
        image_template_of(_spec(f"{module}:Tiny"), tmp_path)


def test_every_built_in_source_has_a_reader() -> None:
    """The settings in `datasets` and the table of readers name the same readers."""
    assert tuple(BUILT_IN_READERS) == BUILT_IN_READER_NAMES
    spec = _spec("indexed", folder="x", prefix="X")
    assert isinstance(open_reader(spec, Path()), IndexedReader)


def test_raw_table_completes_and_checks_columns() -> None:
    """Missing nullable columns become null, rows are counted, and types are cast; other gaps are errors."""
    table = raw_table(
        RAW_INTERACTIONS,
        pl.DataFrame({"timestamp": pl.Series([5], dtype=pl.Int32), "user_id": [7], "item_id": ["a"]}),
        file="log",
        first_row=3,
    )
    assert table.rows() == [("7", "a", None, 5, "log", 3, None)]
    given = pl.DataFrame({"item_id": ["a"], "source_row": [9], "source_file": ["b"], "categories": [["x"]]})
    completed = raw_table(RAW_ITEMS, given, file="c").select("source_file", "source_row", "categories", "title")
    assert completed.rows() == [("b", 9, ["x"], None)]
    with pytest.raises(SchemaError, match=r"raw_interactions \(log\): .*conversion .*failed"):
        raw_table(RAW_INTERACTIONS, pl.DataFrame({"timestamp": ["soon"]}), file="log")
