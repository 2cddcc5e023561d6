"""A data set's files -> the raw tables, whichever reader its YAML file names; and whether they are ready to be read."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from macrec_pipeline.data.demo.generate import demo_tables, ensure_demo
from macrec_pipeline.data.readers.amazon import (
    amazon_files,
    amazon_interaction_parts,
    amazon_problems,
    read_amazon_items,
)
from macrec_pipeline.data.readers.indexed import (
    indexed_files,
    indexed_problems,
    read_indexed_interactions,
    read_indexed_items,
)
from macrec_pipeline.data.readers.movielens import (
    movielens_files,
    movielens_interaction_parts,
    movielens_problems,
    read_movielens_items,
)
from macrec_pipeline.data.readers.tables import (
    interactions_table_parts,
    read_items_table,
    tables_files,
    tables_problems,
)
from macrec_pipeline.datasets import (
    Amazon2018Source,
    Amazon2023Source,
    DatasetSpec,
    DemoSource,
    IndexedSource,
    MovielensSource,
    TablesSource,
)
from macrec_pipeline.schemas import RAW_INTERACTIONS


def raw_interaction_parts(spec: DatasetSpec, data_dir: Path) -> Iterator[pl.DataFrame]:
    """The interaction log as found, one row a source row: parts of `RAW_INTERACTIONS`, in the order of the file.

    Only one part need be held at a time; `indexed` files and CSV files with quotes are one part. The demo shop is
    generated first if it is not there.

    Raises:
        MissingFileError: a file is not there; names it and `MACREC_DATA`.
        SchemaError: a column is not there or the file has another form; names file, column and line.
        DataError: a file cannot be read to its end.
    """
    match spec.source:
        case TablesSource() as source:
            return interactions_table_parts(source.interactions, data_dir)
        case DemoSource() as source:
            ensure_demo(source, data_dir)
            return interactions_table_parts(demo_tables(source).interactions, data_dir)
        case IndexedSource() as source:
            return iter([read_indexed_interactions(source, data_dir)])
        case Amazon2018Source() | Amazon2023Source() as source:
            return amazon_interaction_parts(source, data_dir)
        case MovielensSource() as source:
            return movielens_interaction_parts(source, data_dir)


def read_raw_interactions(spec: DatasetSpec, data_dir: Path) -> pl.DataFrame:
    """The parts as one table (`RAW_INTERACTIONS`). Errors as in `raw_interaction_parts`."""
    frame = pl.concat([RAW_INTERACTIONS.empty(), *raw_interaction_parts(spec, data_dir)])
    return RAW_INTERACTIONS.check(frame, spec.name)


def read_raw_items(spec: DatasetSpec, data_dir: Path) -> pl.DataFrame:
    """The catalogue as found, one row a source row (`RAW_ITEMS`). Errors as in `raw_interaction_parts`."""
    match spec.source:
        case TablesSource() as source:
            return read_items_table(source.items, data_dir)
        case DemoSource() as source:
            ensure_demo(source, data_dir)
            return read_items_table(demo_tables(source).items, data_dir)
        case IndexedSource() as source:
            return read_indexed_items(source, data_dir)
        case Amazon2018Source() | Amazon2023Source() as source:
            return read_amazon_items(source, data_dir)
        case MovielensSource() as source:
            return read_movielens_items(source, data_dir)


def validate_source(spec: DatasetSpec, data_dir: Path) -> list[str]:
    """What a person must do before this data set can be read, a line each; empty when it is ready.

    Files are looked for and headers read, nothing more. The demo shop is always ready: it is generated.
    """
    match spec.source:
        case TablesSource() as source:
            return tables_problems(source, data_dir)
        case DemoSource():
            return []
        case IndexedSource() as source:
            return indexed_problems(source, data_dir)
        case Amazon2018Source() | Amazon2023Source() as source:
            return amazon_problems(source, data_dir)
        case MovielensSource() as source:
            return movielens_problems(source, data_dir)


def source_files(spec: DatasetSpec, data_dir: Path) -> list[Path]:
    """The files that hold a data set's interactions and items; pictures are not among them.

    Raises:
        MissingFileError: one is not there.
    """
    match spec.source:
        case TablesSource() as source:
            return tables_files(source, data_dir)
        case DemoSource() as source:
            return tables_files(demo_tables(source), data_dir)
        case IndexedSource() as source:
            return indexed_files(source, data_dir)
        case Amazon2018Source() | Amazon2023Source() as source:
            return amazon_files(source, data_dir)
        case MovielensSource() as source:
            return movielens_files(source, data_dir)
