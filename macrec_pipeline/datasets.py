"""Data sets: the YAML files in `datasets/`, checked. A file is a data set, and a static partition of every asset.

Paths in a file are relative to the data folder (`MACREC_DATA`) and must stay inside it.
"""

import os
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import yaml
from pydantic import AfterValidator, Field, ValidationError

from macrec_pipeline.config import PipelineConfig, Section
from macrec_pipeline.errors import ConfigError, UnknownDatasetError
from macrec_pipeline.presets import describe_validation_error, resolve_config


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError("must be a relative path that stays inside the data folder")
    return path


def _cron(text: str) -> str:
    fields = text.split()
    if len(fields) != len(_CRON_RANGES):
        raise ValueError("must have five fields, minute hour day month weekday, as in '0 3 * * 1' for Mondays at three")
    for field, (low, high) in zip(fields, _CRON_RANGES, strict=True):
        for part in field.split(","):
            match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/[1-9]\d*)?", part)
            ends = [int(number) for number in match.groups() if number] if match else [high + 1]
            if not all(low <= end <= high for end in ends) or ends != sorted(ends):
                raise ValueError(f"{part!r} is no *, number or range from {low} to {high} in {text!r}")
    return " ".join(fields)


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("is no time zone of the IANA list, as Europe/Berlin is") from None
    return name


_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
DataPath = Annotated[str, AfterValidator(_inside)]
ColumnRef = Annotated[str | int, Field(description="a column's name, or its position from 0 in a file without header")]
ImageTemplate = Annotated[DataPath, Field(description="where an item's picture is, as in posters/{item_id}.jpg")]
FilePrefix = Annotated[str, Field(pattern=r"^[\w.-]+$")]
TimestampUnit = Literal["s", "ms", "us", "iso"]


class FlagColumns(Section):
    """Several 0/1 columns read as one text: the names of those that are set."""

    label: str = Field(description="written before the names, as in 'Genres'")
    flags: tuple[str, ...] = Field(min_length=1, description="column names, each 0 or 1")


class TableFile(Section):
    """A CSV, TSV or parquet file."""

    file: DataPath
    format: Literal["csv", "parquet"] | None = Field(None, description="None: from the file's ending")
    separator: str = Field(",", min_length=1, max_length=1)
    header: bool = True


class InteractionsTable(TableFile):
    """The interaction log and which column is what."""

    user_id: ColumnRef
    item_id: ColumnRef
    timestamp: ColumnRef
    timestamp_unit: TimestampUnit = "s"
    rating: ColumnRef | None = None


class ItemsTable(TableFile):
    """The item catalogue and which column is what."""

    item_id: ColumnRef
    title: ColumnRef
    texts: tuple[ColumnRef | FlagColumns, ...] = Field((), description="joined in this order after the title")
    image: ImageTemplate | None = None
    image_url: ColumnRef | None = Field(None, description="addresses that `macrec fetch images` loads pictures from")
    categories: ColumnRef | FlagColumns | None = Field(None, description="what rules of a request can name")
    categories_separator: str = Field("|", min_length=1, description="between the categories of one cell")


class TablesSource(Section):
    """Interactions and items as tables, pictures as files."""

    reader: Literal["tables"]
    interactions: InteractionsTable
    items: ItemsTable


class DemoSource(Section):
    """A generated shop, written as real files into the data folder when they are not there yet."""

    reader: Literal["demo"]
    folder: DataPath = "demo"
    num_items: int = Field(600, ge=40, le=100_000)
    num_users: int = Field(1500, ge=20, le=1_000_000)
    seed: int = Field(7, ge=0)


class IndexedSource(Section):
    """LC-Rec and MQL4GRec files: integer ids, ready-made embeddings and semantic IDs. Any may end in .gz."""

    reader: Literal["indexed"]
    folder: DataPath
    prefix: FilePrefix = Field(description="X in X.inter.json")
    text_index: str | None = Field(None, description="suffix of the index file of text IDs, as in index_lemb.json")
    image_index: str | None = Field(None, description="suffix of the index file of image IDs")
    text_embeddings: str | None = Field(None, description="suffix of the text embeddings, as in emb-llama-td.npy")
    image_embeddings: str | None = Field(None, description="suffix of the image embeddings")


class AmazonSource(Section):
    """What both editions of the Amazon reviews have in common. Any file may end in .gz."""

    folder: DataPath
    prefix: FilePrefix = Field(description="X, as in Musical_Instruments")
    image: ImageTemplate | None = Field(None, description="None: FOLDER/images/{item_id}.jpg")

    @property
    def image_template(self) -> str:
        """Where pictures are, and where they are fetched to."""
        return self.image or f"{self.folder}/images/{{item_id}}.jpg"


class Amazon2018Source(AmazonSource):
    """Amazon reviews, edition of 2018: `X.csv` and `meta_X.json`."""

    reader: Literal["amazon2018"]
    texts: tuple[Literal["description", "feature", "brand", "category"], ...] = ("description", "brand", "category")


class Amazon2023Source(AmazonSource):
    """Amazon reviews, edition of 2023: `X.jsonl` and `meta_X.jsonl`."""

    reader: Literal["amazon2023"]
    texts: tuple[Literal["features", "description", "store", "categories"], ...] = ("features", "description")


class MovielensSource(Section):
    """MovieLens as GroupLens publishes it: 100K, 1M (and 10M), latest (and 20M, 25M, 32M)."""

    reader: Literal["movielens"]
    folder: DataPath
    layout: Literal["100k", "1m", "latest"]
    image: ImageTemplate | None = None


Source = Annotated[
    TablesSource | DemoSource | IndexedSource | Amazon2018Source | Amazon2023Source | MovielensSource,
    Field(discriminator="reader"),
]


class EncoderNames(Section):
    """Which encoders embed this catalogue; see `TextEncoderConfig.name` and `ImageEncoderConfig.name`."""

    text: str | None = None
    image: str | None = None


class Schedule(Section):
    """When a job is launched for a data set by itself."""

    cron: Annotated[str, AfterValidator(_cron)] = Field("0 3 * * 1", description="default: Mondays at three")
    timezone: Annotated[str, AfterValidator(_timezone)] = "UTC"
    job: Literal["refresh", "full_pipeline", "batch_recommendations", "evaluate_champion"] = "refresh"


class DatasetSpec(Section):
    """One data set, as its YAML file says it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="the same as the file's name")
    title: str
    source: Source
    preset: str = "default"
    k_core: int | None = Field(None, ge=1, description="overrides cleaning.k_core")
    encoders: EncoderNames = EncoderNames()
    overrides: dict[str, Any] = Field(default_factory=dict, description="{section: {field: value}}")
    schedule: Schedule | None = Field(None, description="None: only people launch something; {}: weekly refresh")
    on_new_data: Literal["refresh", "full_pipeline", "evaluate_champion"] | None = Field(
        None, description="the job that starts when the files of interactions or items hold something new"
    )

    def config(self, overrides: dict[str, Any] | None = None) -> PipelineConfig:
        """The resolved settings: preset, then this file, then `overrides`. Raises `ConfigError`."""
        layer: dict[str, Any] = {}
        if self.k_core is not None:
            layer["cleaning"] = {"k_core": self.k_core}
        for section, name in (("text_encoder", self.encoders.text), ("image_encoder", self.encoders.image)):
            if name is not None:
                layer[section] = {"name": name}
        return resolve_config(self.preset, layer, self.overrides, overrides or {})


def datasets_folder() -> Path:
    """`MACREC_DATASETS`, else `datasets/` of the working directory, else that of the checkout."""
    configured = os.environ.get("MACREC_DATASETS")
    if configured:
        return Path(configured)
    local = Path("datasets")
    return local if local.is_dir() else Path(__file__).resolve().parent.parent / "datasets"


def dataset_names(folder: Path | None = None) -> list[str]:
    """The names of all data sets, sorted; reads no file's content."""
    return sorted(path.stem for path in (folder or datasets_folder()).glob("*.yaml"))


def load_dataset(name: str, folder: Path | None = None) -> DatasetSpec:
    """Read and check one data set.

    Raises:
        UnknownDatasetError: there is no such file; lists those that are there.
        ConfigError: the file is not YAML, or a field is wrong; names the file and the field.
    """
    folder = folder or datasets_folder()
    names = dataset_names(folder)
    if name not in names:
        known = ", ".join(names) or "none"
        raise UnknownDatasetError(f"There is no data set {name!r} in {folder}. Known: {known}.")
    path = folder / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        spec = DatasetSpec.model_validate(content)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not readable as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ConfigError(f"{path} is wrong. {describe_validation_error(error)}") from None
    if spec.name != name:
        raise ConfigError(f"{path}: its name is {spec.name!r}, but the file's name says {name!r}. Make them the same.")
    spec.config()
    return spec
