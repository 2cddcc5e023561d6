"""Find the reader that a data set names, and read its files as the raw tables.

A data set's YAML file names its reader as `source.reader`: a built-in reader (`BUILT_IN_READERS`), an import path such
as `my_package.my_module:MyReader`, or the name of an entry point that an installed package declares in the group
`macrec_pipeline.readers`.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import BaseModel, ValidationError

from macrec_pipeline.config.validation_messages import describe_validation_error
from macrec_pipeline.data.readers.amazon import AmazonReader
from macrec_pipeline.data.readers.demo import DemoReader
from macrec_pipeline.data.readers.image_addresses import without_secret_parts
from macrec_pipeline.data.readers.indexed import IndexedReader
from macrec_pipeline.data.readers.mind import MindReader
from macrec_pipeline.data.readers.movielens import MovielensReader
from macrec_pipeline.data.readers.reader import Reader
from macrec_pipeline.data.readers.recbole import RecboleReader
from macrec_pipeline.data.readers.recommendation_files import recommendation_problems
from macrec_pipeline.data.readers.sequences import SequencesReader
from macrec_pipeline.data.readers.tables import TablesReader
from macrec_pipeline.datasets import CustomSource, DatasetSpec, reader_entry_points, unknown_reader_message
from macrec_pipeline.errors import ConfigError, did_you_mean
from macrec_pipeline.runtime.text_sanitizing import one_line_error
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS

BUILT_IN_READERS: dict[str, Callable[[Any, Path], Reader]] = {
    "tables": TablesReader,
    "demo": DemoReader,
    "indexed": IndexedReader,
    "sequences": SequencesReader,
    "recbole": RecboleReader,
    "mind": MindReader,
    "amazon2018": AmazonReader,
    "amazon2023": AmazonReader,
    "movielens": MovielensReader,
}
_METHODS = ("interaction_parts", "items", "problems", "source_files", "image_template")


def open_reader(spec: DatasetSpec, data_dir: Path) -> Reader:
    """Create the reader of a data set. Imports the module of a reader that is not built in.

    Raises:
        ConfigError: the reader cannot be imported, is not a `Reader`, or refuses its options.
    """
    source = spec.source
    if not isinstance(source, CustomSource):
        return BUILT_IN_READERS[source.reader](source, data_dir)
    place = f"Data set {spec.name}, reader {source.name!r}"
    reader_class = _import_reader(source.name, place)
    options = _validated_options(reader_class, source.options, place)
    try:
        reader: Reader = reader_class(options, data_dir)
    except TypeError as error:
        raise ConfigError(
            f"{place}: the reader cannot be created ({one_line_error(error)}). The class must accept two positional "
            "arguments: its options and the data folder."
        ) from error
    return reader


def raw_interaction_parts(
    spec: DatasetSpec, data_dir: Path, *, lost: list[dict[str, Any]] | None = None
) -> Iterator[pl.DataFrame]:
    """Yield the interaction log as parts of `RAW_INTERACTIONS`, one row per source row, in the order of the file.

    Only one part has to fit into memory at a time; `indexed` files and CSV files with quotes are a single part. The
    demo shop is generated first if it does not exist.

    Args:
        spec: the data set.
        data_dir: the data folder.
        lost: receives, after the last part, the cells that were turned into missing values: the fields of `LostCells`.

    Raises:
        MissingFileError: a file does not exist; names it and `MACREC_DATA`.
        SchemaError: a column is missing or the file has another format; names file, column and line.
        DataError: a file cannot be read to its end.
    """
    reader = open_reader(spec, data_dir)
    return _checked_parts(reader, spec, lost)


def _checked_parts(reader: Reader, spec: DatasetSpec, lost: list[dict[str, Any]] | None) -> Iterator[pl.DataFrame]:
    for part in reader.interaction_parts():
        yield RAW_INTERACTIONS.check(part, spec.name)
    if lost is not None:
        lost.extend(map(asdict, reader.lost_cells()))


def read_raw_interactions(spec: DatasetSpec, data_dir: Path) -> pl.DataFrame:
    """Read the interaction log as one table (`RAW_INTERACTIONS`). Errors as in `raw_interaction_parts`."""
    return pl.concat([RAW_INTERACTIONS.empty(), *raw_interaction_parts(spec, data_dir)])


def read_raw_items(
    spec: DatasetSpec, data_dir: Path, *, with_secrets: bool = False, lost: list[dict[str, Any]] | None = None
) -> pl.DataFrame:
    """Read the catalogue, one row per source row (`RAW_ITEMS`). Errors as in `raw_interaction_parts`.

    Args:
        spec: the data set.
        data_dir: the data folder.
        with_secrets: whether image addresses keep passwords and signatures, which only fetching images needs.
        lost: receives what could not be read; see `raw_interaction_parts`.
    """
    reader = open_reader(spec, data_dir)
    items = RAW_ITEMS.check(reader.items(), spec.name)
    if lost is not None:
        lost.extend(map(asdict, reader.lost_cells()))
    return items if with_secrets else items.with_columns(without_secret_parts(items["image_url"]))


def validate_source(spec: DatasetSpec, data_dir: Path) -> list[str]:
    """Return what must be fixed before a data set can be read, one sentence per problem; empty if it is ready.

    Only reads the beginning of the files. The demo shop is always ready, because it is generated.
    """
    return open_reader(spec, data_dir).problems() + recommendation_problems(spec.recommendations, data_dir)


def source_notes(spec: DatasetSpec, data_dir: Path) -> list[str]:
    """Return what is known about the first rows of a data set that has no problem, one sentence each."""
    return open_reader(spec, data_dir).notes()


def source_notices(spec: DatasetSpec, data_dir: Path, items: pl.DataFrame | None = None) -> list[str]:
    """Return what a person should know about a data set that can be read, such as images that were not found.

    Args:
        spec: the data set.
        data_dir: the data folder.
        items: the catalogue (`RAW_ITEMS`) if it has been read. Without it, only the beginning of the files is read.
    """
    notices: Callable[[pl.DataFrame | None], list[str]] | None = getattr(open_reader(spec, data_dir), "notices", None)
    return [] if notices is None else notices(items)


def source_files(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    """Return the files that hold a data set's interactions and items, without images.

    Raises:
        MissingFileError: a file does not exist.
    """
    return open_reader(spec, data_dir).source_files()


def _import_reader(reader_name: str, place: str) -> Any:
    """Import the class that an import path or an entry point names, and check that it is a reader."""
    module_name, attribute = _import_path(reader_name, place)
    try:
        module = import_module(module_name)
    except Exception as error:  # a module can fail to import in any way
        raise ConfigError(
            f"{place}: the module {module_name} cannot be imported ({type(error).__name__}: {one_line_error(error)}). "
            "Install its package into this Python environment, or add the folder that contains it to PYTHONPATH."
        ) from error
    value: Any = module
    for part in attribute.split("."):
        if not hasattr(value, part):
            classes = [name for name, member in vars(value).items() if isinstance(member, type)]
            raise ConfigError(
                f"{place}: the module {module_name} has no class {attribute!r}.{did_you_mean(part, classes)} Check the "
                "name after the colon."
            )
        value = getattr(value, part)
    if not isinstance(value, type):
        raise ConfigError(f"{place}: {module_name}:{attribute} is a {type(value).__name__}, expected a class.")
    missing = [method for method in _METHODS if not _implements(value, method)]
    if missing:
        raise ConfigError(
            f"{place}: the class {attribute} does not implement {', '.join(f'{method}()' for method in missing)}. A "
            f"reader is a subclass of {Reader.__module__}.{Reader.__name__} that implements all of its methods."
        )
    return value


def _import_path(name: str, place: str) -> tuple[str, str]:
    if ":" in name:
        module_name, _, attribute = name.partition(":")
        return module_name, attribute
    candidates: dict[str, EntryPoint] = {each.value: each for each in reader_entry_points() if each.name == name}
    if not candidates:
        raise ConfigError(f"{place}: {unknown_reader_message(name)}.")
    if len(candidates) > 1:
        raise ConfigError(
            f"{place}: several installed packages have a reader of this name: {', '.join(sorted(candidates))}. Use one "
            "of these import paths as the reader."
        )
    (entry_point,) = candidates.values()
    if not entry_point.attr:
        raise ConfigError(
            f"{place}: the entry point names the module {entry_point.value!r}, but no class. Its package must declare "
            "it as module:Class."
        )
    return entry_point.module, entry_point.attr


def _implements(reader_class: type, method: str) -> bool:
    function = getattr(reader_class, method, None)
    return callable(function) and not getattr(function, "__isabstractmethod__", False)


def _validated_options(reader_class: Any, options: Mapping[str, Any], place: str) -> Any:
    """Validate options with the class's `options_model`; without one, return them as a plain mapping."""
    model: type[BaseModel] | None = getattr(reader_class, "options_model", None)
    if model is None:
        return dict(options)
    names = {field.alias or name for name, field in model.model_fields.items()}
    unknown = sorted(options.keys() - names) if model.model_config.get("extra") != "allow" else []
    if unknown:
        raise ConfigError(
            f"{place}: unknown option `source.{unknown[0]}`.{did_you_mean(unknown[0], names)} The options of this "
            f"reader are: {', '.join(sorted(names)) or 'none'}."
        )
    try:
        return model.model_validate(dict(options))
    except ValidationError as error:
        raise ConfigError(f"{place}: the options are invalid. {describe_validation_error(error, model)}") from None
