"""Data sets: each YAML file in `datasets/` describes one, and each one is a static partition of every asset.

The input is a YAML file, the output a validated `DatasetSpec`. Paths in a file are relative to the data folder
(`MACREC_DATA`) and must not lead out of it.
"""

import codecs
import os
import re
from collections.abc import Mapping
from importlib.metadata import EntryPoints, entry_points
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self
from zoneinfo import ZoneInfo

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator

from macrec_pipeline.config import PipelineConfig, Route, Section
from macrec_pipeline.config.validation_messages import describe_validation_error
from macrec_pipeline.config.yaml_text import load_yaml
from macrec_pipeline.errors import ConfigError, UnknownDatasetError, did_you_mean
from macrec_pipeline.presets import SettingsLayer, resolve_config

READER_ENTRY_POINTS = "macrec_pipeline.readers"
"""The entry point group in which an installed package declares its readers."""

_CRON_RANGES = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 6))
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def _check_data_path(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError("must be a relative path that stays inside the data folder")
    return path


def _check_cron(text: str) -> str:
    fields = text.split()
    if len(fields) != len(_CRON_RANGES):
        raise ValueError(
            "must have five fields (minute, hour, day, month, weekday), as in '0 3 * * 1' for Mondays at 3 a.m."
        )
    for field, (low, high) in zip(fields, _CRON_RANGES, strict=True):
        for part in field.split(","):
            match = re.fullmatch(r"(?:\*|(\d+)(?:-(\d+))?)(?:/[1-9]\d*)?", part)
            ends = [int(number) for number in match.groups() if number] if match else [high + 1]
            if not all(low <= end <= high for end in ends) or ends != sorted(ends):
                raise ValueError(f"must consist of *, numbers and ranges, but {part!r} is none from {low} to {high}")
    return " ".join(fields)


def _check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise ValueError("must be an IANA time zone, such as Europe/Berlin") from None
    return name


def _check_encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name)
        "".encode(name)  # refuses codecs that are not about text, such as base64
    except (LookupError, TypeError):
        raise ValueError(
            "must be the name of a text encoding, such as utf-8, cp1252, latin-1, utf-16 or shift_jis"
        ) from None
    return codec.name


def _read_separator(separator: Any) -> Any:
    """Accept a tab that is written as a backslash and a t, as YAML leaves it outside double quotes."""
    return "\t" if separator == "\\t" else separator


def _check_separator(separator: str) -> str:
    if any(character in separator for character in '\r\n"\0'):
        raise ValueError("must not contain quotes, line breaks or null characters")
    return separator


def _check_time_format(time_format: str) -> str:
    directives = set(re.findall(r"%-?\.?\d?(.)", time_format))
    unknown = directives - set("YymbBdeHIMSfpzjTDFRs")
    if unknown or not directives & set("YyDFs"):
        raise ValueError("must be a strptime format with a year, such as %Y%m%d or %d.%m.%Y %H:%M")
    return time_format


def _read_quote(quote: Any) -> Any:
    return "none" if quote is None else quote


DataPath = Annotated[str, AfterValidator(_check_data_path)]
ColumnRef = str | int
ImageTemplate = DataPath
FilePrefix = Annotated[str, Field(pattern=r"^[\w.-]+$")]
TimestampUnit = Literal["s", "ms", "us", "iso"]

_COLUMN = (
    "name of the column, its position from 0 in a file without header, or the path of a field in JSON lines, as in "
    "item.id."
)
RULE_NAMES = ("allowed", "excluded", "allowed_categories", "excluded_categories")
"""The rules of a user, as in `recommender/retrieval/eligible_items.py`."""
_IMAGE = "File of an item's image, with {item_id} in it, as in posters/{item_id}.jpg."
_FOLDER = "Folder of the files, relative to the data folder."


class FlagColumns(Section):
    """Several 0/1 columns that are read as one text: the names of the columns that are set."""

    label: str = Field(description="Text in front of the names, as in Genres.")
    flags: tuple[str, ...] = Field(min_length=1, description="Names of the columns, each holding 0 or 1.")


class TableFile(Section):
    """Files of one kind: CSV, TSV, parquet or JSON lines."""

    file: DataPath = Field(
        description="Path of the file, relative to the data folder. Text files may be gzipped. It may also be a folder "
        "of files, or a pattern in which * stands for other characters, as in orders/2024-*.csv."
    )
    format: Literal["csv", "parquet", "jsonl"] | None = Field(
        None,
        description="Format of the files. null: parquet if the name ends in .parquet or .pq, jsonl (one JSON object "
        "per line) if it ends in .jsonl or .ndjson, else csv.",
    )
    separator: Annotated[str, BeforeValidator(_read_separator), AfterValidator(_check_separator)] = Field(
        ",",
        min_length=1,
        max_length=8,
        description="Text between the cells of a text file, as in , or \\t or ::. Unless it is set, .tsv files are "
        "split at tabs.",
    )
    header: bool = Field(True, description="Whether the first row of a text file holds the names of the columns.")
    encoding: Annotated[str, AfterValidator(_check_encoding)] = Field(
        "utf-8", description="Encoding of a text file, such as utf-8, cp1252 (Windows, Western Europe) or utf-16."
    )
    quote: Annotated[Literal["auto", '"', "'", "none"], BeforeValidator(_read_quote)] = Field(
        "auto",
        description="Character around cells that contain separators or line breaks. none: quotes are ordinary text. "
        "auto: double quotes, and an error where they may be ordinary text.",
    )
    escape: str | None = Field(
        None,
        pattern=r"^[^\w\s\"']$",
        description="Character that makes a following quote, separator or line break ordinary text, such as \\. "
        "null: a quote inside a quoted cell is doubled.",
    )

    null_words: tuple[str, ...] = Field(
        ("NULL", "null", "NaN", "nan", "None", "\\N", "<NA>", "NaT"),
        description="Cells that stand for a missing value. []: none does, as for a user who is called None.",
    )


class InteractionsTable(TableFile):
    """The interaction log, and the meaning of its columns."""

    user_id: ColumnRef = Field(description=f"User: {_COLUMN}")
    item_id: ColumnRef = Field(description=f"Item: {_COLUMN}")
    timestamp: ColumnRef = Field(description=f"Time of the interaction: {_COLUMN}")
    timestamp_unit: TimestampUnit = Field(
        "s",
        description="Unit of the times since 1970: seconds, milliseconds or microseconds; or iso for texts such as "
        "2018-01-31T10:00:00+02:00. Without a time zone they are UTC.",
    )
    timestamp_format: Annotated[str, AfterValidator(_check_time_format)] | None = Field(
        None,
        description="Format of times that are texts or numbers such as 20180131, in the notation of strptime: %Y%m%d. "
        "It replaces timestamp_unit.",
    )
    decimal: Literal[".", ","] = Field(".", description="Sign before the fraction of a rating, as in 4.5 or 4,5.")
    rating: ColumnRef | None = Field(None, description=f"Rating, for cleaning.min_rating: {_COLUMN}")
    event: ColumnRef | None = Field(None, description=f"Kind of the event, as in view or purchase: {_COLUMN}")
    events: tuple[str, ...] | dict[str, float] = Field(
        (),
        description="Kinds of events to keep, as in [purchase]. With weights, as in {view: 1, purchase: 3}, the weight "
        "of an event is its rating.",
    )

    @model_validator(mode="after")
    def _check_events(self) -> Self:
        if (self.event is None) != (not self.events):
            raise ValueError(
                "`event` and `events` belong together: `event` names the column, and `events` the kinds to keep, as in "
                "[purchase]"
            )
        if isinstance(self.events, dict) and self.rating is not None:
            raise ValueError(
                "`rating` and the weights of `events` exclude each other, because a weight is the rating of its event. "
                "Remove `rating`, or list the events without weights, as in [purchase]"
            )
        return self


class ItemsTable(TableFile):
    """The item catalogue, and the meaning of its columns."""

    item_id: ColumnRef = Field(description=f"Item, as in the interactions: {_COLUMN}")
    title: ColumnRef = Field(description=f"Title: {_COLUMN}")
    texts: tuple[ColumnRef | FlagColumns, ...] = Field(
        (), description="Columns whose texts follow the title in the text that is embedded, in this order."
    )
    image: ImageTemplate | tuple[ImageTemplate, ...] | None = Field(
        None,
        description=f"{_IMAGE} {{item_id[:3]}} is the beginning of the id, for subfolders. In a list, the first file "
        "that exists is used. null: the catalogue has no images.",
    )
    image_file: ColumnRef | None = Field(
        None, description="Column of the image files, as paths below image_folder. It takes the place of image."
    )
    image_folder: DataPath | None = Field(
        None, description="Folder of the files in the column image_file, relative to the data folder."
    )
    image_url: ColumnRef | None = Field(
        None, description="Column of the addresses from which `macrec fetch images` loads the images."
    )
    categories: ColumnRef | FlagColumns | None = Field(
        None, description="Column of the categories, which the business rules of a request can name."
    )
    categories_separator: str = Field("|", min_length=1, description="Text between the categories of one cell.")

    @model_validator(mode="after")
    def _check_images(self) -> Self:
        if (self.image_file is None) != (self.image_folder is None):
            raise ValueError("`image_file` and `image_folder` belong together: a column of files, and their folder")
        if self.image_file is not None and self.image is not None:
            raise ValueError("`image` and `image_file` exclude each other: set one of them")
        return self

    @property
    def image_templates(self) -> tuple[str, ...]:
        """Where the image of an item may be, the preferred place first."""
        return () if self.image is None else (self.image,) if isinstance(self.image, str) else self.image


class TablesSource(Section):
    """Interactions and items as tables, images as files."""

    reader: Literal["tables"] = Field(description="Name of the reader.")
    interactions: InteractionsTable = Field(description="The interaction log.")
    items: ItemsTable = Field(description="The item catalogue.")


class DemoSource(Section):
    """A generated shop, written into the data folder as real files unless it already exists."""

    reader: Literal["demo"] = Field(description="Name of the reader.")
    folder: DataPath = Field("demo", description="Folder for the generated files, relative to the data folder.")
    num_items: int = Field(600, ge=40, le=100_000, description="Number of items.")
    num_users: int = Field(1500, ge=20, le=1_000_000, description="Number of users.")
    seed: int = Field(7, ge=0, description="Seed of the generator. The same seed and sizes give the same files.")


class SequencesSource(Section):
    """Lines of a user and the user's items in time order, as in the benchmarks of S3-Rec."""

    reader: Literal["sequences"] = Field(description="Name of the reader.")
    file: DataPath = Field(
        description="Path of the file, relative to the data folder. It may be gzipped, with or without the ending .gz."
    )
    items: ItemsTable | None = Field(
        None, description="The item catalogue. null: the ids of the file are the items and their titles."
    )


class RecboleSource(Section):
    """The atomic files of RecBole: X.inter, and X.item if it exists. Any file may end in .gz."""

    reader: Literal["recbole"] = Field(description="Name of the reader.")
    folder: DataPath = Field(description=_FOLDER)
    prefix: FilePrefix = Field(description="Beginning of all file names: X of X.inter.")
    user_id: str = Field("user_id", description="Field of the user in X.inter, without its type.")
    item_id: str = Field("item_id", description="Field of the item in X.inter and X.item.")
    timestamp: str = Field("timestamp", description="Field of the time in X.inter.")
    timestamp_unit: TimestampUnit = Field("s", description="Unit of the times since 1970, as for the reader tables.")
    rating: str = Field("rating", description="Field of the rating in X.inter. Without this field, there are none.")
    title: str = Field("title", description="Field of the title in X.item.")
    texts: tuple[str, ...] = Field(
        (), description="Fields of X.item whose texts follow the title in the text that is embedded, in this order."
    )
    categories: str | None = Field(
        None, description="Field of X.item with the categories, separated by spaces. null: there are none."
    )
    image: ImageTemplate | None = Field(None, description=f"{_IMAGE} null: there are no images.")


class MindSource(Section):
    """The Microsoft News data set (MIND): behaviors.tsv and news.tsv. Any file may end in .gz."""

    reader: Literal["mind"] = Field(description="Name of the reader.")
    folder: DataPath | tuple[DataPath, ...] = Field(
        description="Folder of the files, relative to the data folder; or several, which are read as one log."
    )
    history: bool = Field(
        True,
        description="Whether the news that a user had clicked before the first line are interactions too. They have no "
        "times, so they are placed one minute apart before that line.",
    )
    image: ImageTemplate | None = Field(None, description=f"{_IMAGE} null: there are no images.")

    @property
    def folders(self) -> tuple[str, ...]:
        """The folders, in the order in which they are read."""
        return (self.folder,) if isinstance(self.folder, str) else self.folder


class IndexedSource(Section):
    """LC-Rec and MQL4GRec files: integer ids, precomputed embeddings and semantic IDs. Any file may end in .gz."""

    reader: Literal["indexed"] = Field(description="Name of the reader.")
    folder: DataPath = Field(description=_FOLDER)
    prefix: FilePrefix = Field(description="Beginning of all file names: X of X.inter.json.")
    text_index: str | None = Field(
        None,
        description="Rest of the name of the file of text semantic IDs, as in index_lemb.json. null: there is no such "
        "file.",
    )
    image_index: str | None = Field(None, description="Rest of the name of the file of image semantic IDs. null: none.")
    text_embeddings: str | None = Field(
        None,
        description="Rest of the name of the file of text embeddings, as in emb-llama-td.npy. null: there is no such "
        "file.",
    )
    image_embeddings: str | None = Field(
        None, description="Rest of the name of the file of image embeddings. null: there is no such file."
    )

    @property
    def given_modalities(self) -> dict[Route, str]:
        """The modalities whose semantic IDs come with the data set, and the rest of the name of each index file."""
        files: dict[Route, str | None] = {"text": self.text_index, "image": self.image_index}
        return {modality: file for modality, file in files.items() if file is not None}


class AmazonSource(Section):
    """The settings that both editions of the Amazon reviews share. Any file may end in .gz."""

    folder: DataPath = Field(description=_FOLDER)
    prefix: FilePrefix = Field(description="Name of the category in the file names, as in Musical_Instruments.")
    image: ImageTemplate | None = Field(None, description=f"{_IMAGE} null: FOLDER/images/{{item_id}}.jpg.")

    @property
    def image_template(self) -> str:
        """Where images are read from and fetched to."""
        return self.image or f"{self.folder}/images/{{item_id}}.jpg"


class Amazon2018Source(AmazonSource):
    """Amazon reviews, 2018 edition: `X.csv` and `meta_X.json`."""

    reader: Literal["amazon2018"] = Field(description="Name of the reader.")
    texts: tuple[Literal["description", "feature", "brand", "category"], ...] = Field(
        ("description", "brand", "category"),
        description="Fields whose texts follow the title in the text that is embedded, in this order.",
    )


class Amazon2023Source(AmazonSource):
    """Amazon reviews, 2023 edition: `X.jsonl` and `meta_X.jsonl`."""

    reader: Literal["amazon2023"] = Field(description="Name of the reader.")
    texts: tuple[Literal["features", "description", "store", "categories"], ...] = Field(
        ("features", "description"),
        description="Fields whose texts follow the title in the text that is embedded, in this order.",
    )


class MovielensSource(Section):
    """MovieLens as GroupLens publishes it."""

    reader: Literal["movielens"] = Field(description="Name of the reader.")
    folder: DataPath = Field(description=_FOLDER)
    layout: Literal["100k", "1m", "latest"] = Field(
        description="File layout of the release: 100k; 1m, also for 10M; or latest, also for 20M, 25M and 32M."
    )
    image: ImageTemplate | None = Field(None, description=f"{_IMAGE} null: there are no images.")


class CustomSource(Section):
    """A source with a reader of your own (docs/data.md). In the YAML file, the options stand beside `reader`."""

    reader: Literal["custom"] = Field("custom", description="Marks a source whose reader is not built in.")
    name: str = Field(description="Import path of the reader, or the name of an entry point.")
    options: dict[str, Any] = Field(default_factory=dict, description="Options of the reader, which it validates.")

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if ":" in self.name:
            if not _IMPORT_PATH.fullmatch(self.name):
                raise ValueError(
                    f"the reader {self.name!r} is not an import path such as my_package.my_module:MyReader"
                )
        elif self.name not in reader_entry_points().names:
            raise ValueError(unknown_reader_message(self.name))
        return self


BuiltInSource = (
    TablesSource
    | DemoSource
    | IndexedSource
    | SequencesSource
    | RecboleSource
    | MindSource
    | Amazon2018Source
    | Amazon2023Source
    | MovielensSource
)
BUILT_IN_READER_NAMES = (
    "tables",
    "demo",
    "indexed",
    "sequences",
    "recbole",
    "mind",
    "amazon2018",
    "amazon2023",
    "movielens",
)


def _separate_options(source: Any) -> Any:
    """Turn `{reader: my_module:MyReader, **options}`, as in a YAML file, into the fields of `CustomSource`."""
    if not isinstance(source, Mapping):
        return source
    name = source.get("reader")
    if not isinstance(name, str):
        found = "is missing" if name is None else f"is {name!r}"
        raise ValueError(
            f"`reader` {found}; it must be a built-in reader ({', '.join(BUILT_IN_READER_NAMES)}), an import path such "
            "as my_package.my_module:MyReader, or the name of an entry point"
        )
    if name in (*BUILT_IN_READER_NAMES, "custom"):
        return source
    return {"reader": "custom", "name": name, "options": {key: source[key] for key in source if key != "reader"}}


Source = Annotated[BuiltInSource | CustomSource, Field(discriminator="reader"), BeforeValidator(_separate_options)]


class EncoderNames(Section):
    """The encoders that embed this catalogue."""

    text: str | None = Field(None, description="Overrides text_encoder.name.")
    image: str | None = Field(None, description="Overrides image_encoder.name.")


class Schedule(Section):
    """When a job is launched automatically for a data set."""

    cron: Annotated[str, AfterValidator(_check_cron)] = Field(
        "0 3 * * 1", description="Times of the launches, as a cron line. The default is Mondays at 3 a.m."
    )
    timezone: Annotated[str, AfterValidator(_check_timezone)] = Field(
        "UTC", description="IANA time zone of the cron line, such as Europe/Berlin."
    )
    job: Literal["refresh", "full_pipeline", "batch_recommendations", "evaluate_champion"] = Field(
        "refresh", description="The job that is launched."
    )


class Retention(Section):
    """How much of a data set's past is kept. Versions in use and what they need are never removed."""

    cron: Annotated[str, AfterValidator(_check_cron)] | None = Field(
        "30 1 * * 0",
        description="Times at which the job `prune` is launched, as a cron line. The default is Sundays at 1:30 a.m. "
        "It applies if the file has a schedule, on_new_data or a section `retention`. null: only `macrec prune`.",
    )
    timezone: Annotated[str, AfterValidator(_check_timezone)] = Field(
        "UTC", description="IANA time zone of the cron line, such as Europe/Berlin."
    )
    versions: int = Field(
        8,
        ge=1,
        le=10_000,
        description="Number of newest model versions that are kept. Versions with an alias, such as champion or "
        "challenger, and those that `macrec rollback` may need are kept in addition.",
    )
    previous_champions: int = Field(
        3,
        ge=1,
        le=10_000,
        description="Number of former champions that are kept, counted from the champion backwards, so that "
        "`macrec rollback` can go back this many times.",
    )
    mlflow_runs: int = Field(
        30,
        ge=1,
        le=100_000,
        description="Number of newest pipeline runs that are kept in MLflow, each with the runs of its assets.",
    )
    mlflow_weeks: int = Field(
        26, ge=1, le=520, description="Weeks after which a pipeline run is removed from MLflow, however few there are."
    )
    artifact_weeks: int = Field(
        8,
        ge=1,
        le=520,
        description="Weeks after which the plots and files of a run are removed from MLflow. Its settings and metrics "
        "stay until the run is removed.",
    )
    dagster_runs: int = Field(
        30, ge=1, le=100_000, description="Number of newest runs that are kept in Dagster, each with its events."
    )
    dagster_weeks: int = Field(
        26,
        ge=1,
        le=520,
        description="Weeks after which a run, or a tick of a schedule or sensor, is removed from Dagster.",
    )
    backtest_weeks: int = Field(
        12, ge=1, le=520, description="Weeks after which the reports and tables of the last backtest are removed."
    )
    unsent_weeks: int = Field(
        8,
        ge=1,
        le=520,
        description="Weeks after which data that MLflow refused, or that could not be sent to it, is removed.",
    )


class StockTable(TableFile):
    """The items that may be recommended now, such as those in stock."""

    item_id: ColumnRef = Field(description=f"Item, as in the catalogue: {_COLUMN}")
    quantity: ColumnRef | None = Field(
        None,
        description=f"Quantity; an item counts only if it is above 0: {_COLUMN} null: every item of the file counts.",
    )
    decimal: Literal[".", ","] = Field(".", description="Sign before the fraction of a quantity, as in 4.5 or 4,5.")


class RulesTable(TableFile):
    """Rules for single users, which only take items away. A user may have several rows; their lists are joined."""

    user_id: ColumnRef = Field(description=f"User, as in the interactions: {_COLUMN}")
    allowed: ColumnRef | None = Field(None, description=f"Items that alone may be recommended: {_COLUMN}")
    excluded: ColumnRef | None = Field(None, description=f"Items that must not be recommended: {_COLUMN}")
    allowed_categories: ColumnRef | None = Field(
        None, description=f"Categories whose items alone may be recommended: {_COLUMN}"
    )
    excluded_categories: ColumnRef | None = Field(
        None, description=f"Categories whose items must not be recommended: {_COLUMN}"
    )
    list_separator: str = Field("|", min_length=1, description="Text between the items or categories of one cell.")

    @model_validator(mode="after")
    def _check_there_is_a_rule(self) -> Self:
        if not self.rule_columns:
            raise ValueError(f"at least one of {', '.join(RULE_NAMES)} must name a column")
        return self

    @property
    def rule_columns(self) -> dict[str, ColumnRef]:
        """The column of each rule that the file has."""
        return {name: column for name in RULE_NAMES if (column := getattr(self, name)) is not None}


class RecommendationFiles(Section):
    """Files that `macrec recommend-all` reads at each run, besides the log and the catalogue."""

    stock: StockTable | None = Field(
        None, description="The items that may be recommended now. null: every item of the catalogue."
    )
    rules: RulesTable | None = Field(None, description="Rules for single users. null: there are none.")


class DatasetSpec(Section):
    """One data set, as its YAML file describes it."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]*$",
        description="Name of the data set: lower-case letters, digits and hyphens, the same as the name of the file.",
    )
    title: str = Field(description="Title for people, shown by `macrec datasets`.")
    source: Source = Field(description="The reader of the data set, and where its files are.")
    preset: str = Field("default", description="Preset on which the settings of this data set are based.")
    k_core: int | None = Field(None, ge=1, description="Overrides cleaning.k_core.")
    encoders: EncoderNames = Field(EncoderNames(), description="The encoders that embed this catalogue.")
    overrides: dict[str, Any] = Field(
        default_factory=dict, description="Settings for this data set, as {section: {setting: value}}."
    )
    schedule: Schedule | None = Field(
        None,
        description="When a job is launched automatically. null: no job is launched on a schedule. {}: a refresh is "
        "launched every week.",
    )
    on_new_data: Literal["refresh", "full_pipeline", "evaluate_champion"] | None = Field(
        None,
        description="Job that is launched when the files of the interactions or items change. null: no job is "
        "launched.",
    )
    recommendations: RecommendationFiles = Field(
        RecommendationFiles(), description="Stock list and rules that `macrec recommend-all` reads at each run."
    )
    retention: Retention = Field(Retention(), description="How much of the past is kept, and when the rest is removed.")

    @property
    def reader_name(self) -> str:
        """The reader as the YAML file names it."""
        return self.source.name if isinstance(self.source, CustomSource) else self.source.reader

    @property
    def is_pruned_automatically(self) -> bool:
        """Whether `prune` is launched without a person: the data set runs unattended, or its file has `retention`."""
        is_unattended = bool(self.schedule or self.on_new_data or "retention" in self.model_fields_set)
        return is_unattended and self.retention.cron is not None

    def layers(self) -> list[SettingsLayer]:
        """Return the settings that this file puts on top of the preset, later ones winning."""
        encoders = {
            section: {"name": name}
            for section, name in (("text_encoder", self.encoders.text), ("image_encoder", self.encoders.image))
            if name is not None
        }
        return [
            SettingsLayer("k_core of the data set file", {"cleaning": {"k_core": self.k_core}} if self.k_core else {}),
            SettingsLayer("encoders of the data set file", encoders),
            SettingsLayer("data set file", self.overrides),
        ]

    def config(self, overrides: dict[str, Any] | None = None) -> PipelineConfig:
        """Resolve the settings: the preset, then this file, then `overrides`. Raise `ConfigError`."""
        return resolve_config(self.preset, *(layer.values for layer in self.layers()), overrides or {})


def reader_entry_points() -> EntryPoints:
    """Return the readers that installed packages declare. Imports none of them."""
    return entry_points(group=READER_ENTRY_POINTS)


def unknown_reader_message(name: str) -> str:
    """Return the sentences of an error about a reader name that is neither built in nor an entry point."""
    declared = sorted(reader_entry_points().names)
    suggestion = did_you_mean(name, [*BUILT_IN_READER_NAMES, *declared])
    return (
        f"there is no reader {name!r}.{suggestion} The built-in readers are: {', '.join(BUILT_IN_READER_NAMES)}. "
        f"Installed packages declare: {', '.join(declared) or 'none'}. To use a reader of your own, give its import "
        "path, as in my_package.my_module:MyReader"
    )


def datasets_folder() -> Path:
    """Return the folder of the YAML files.

    It is `MACREC_DATASETS` if that is set, else `datasets/` in the working directory, else `datasets/` in the checkout.
    """
    configured = os.environ.get("MACREC_DATASETS")
    if configured:
        return Path(configured)
    local = Path("datasets")
    return local if local.is_dir() else Path(__file__).resolve().parent.parent / "datasets"


def dataset_names(folder: Path | None = None) -> list[str]:
    """Return the names of all data sets, sorted, without reading the files."""
    return sorted(path.stem for path in (folder or datasets_folder()).glob("*.yaml"))


def load_dataset(name: str, folder: Path | None = None) -> DatasetSpec:
    """Read and validate one data set.

    Raises:
        UnknownDatasetError: there is no such file; lists the data sets that exist, and the folder.
        ConfigError: the file is not YAML, or a setting is wrong; names the file and the setting.
    """
    folder = folder or datasets_folder()
    names = dataset_names(folder)
    if name not in names:
        raise UnknownDatasetError(
            f"There is no data set {name!r}.{did_you_mean(name, names)} The folder {folder.resolve()} holds: "
            f"{', '.join(names) or 'no YAML file'}. Set MACREC_DATASETS to use another folder."
        )
    path = folder / f"{name}.yaml"
    try:
        content = load_yaml(path.read_text(encoding="utf-8"))
        spec = DatasetSpec.model_validate(content)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}. Save the file in UTF-8.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        raise ConfigError(f"{path} is invalid. {describe_validation_error(error, DatasetSpec)}") from None
    if spec.name != name:
        raise ConfigError(
            f"{path}: the name in the file is {spec.name!r}, but the file is named {name!r}. Make them the same."
        )
    try:
        spec.config()
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return spec
