"""A data set's files -> the raw tables, whichever reader its YAML file names; and whether they are ready to be read."""

from pathlib import Path

import polars as pl

from macrec_pipeline.data.demo import demo_tables, ensure_demo
from macrec_pipeline.data.indexed import indexed_problems, read_indexed_interactions, read_indexed_items
from macrec_pipeline.data.tables import read_interactions_table, read_items_table, tables_problems
from macrec_pipeline.datasets import DatasetSpec, DemoSource, IndexedSource


def read_raw_interactions(spec: DatasetSpec, data_dir: Path) -> pl.DataFrame:
    """The interaction log as found, one row a source row (`RAW_INTERACTIONS`).

    The demo shop is generated first if it is not there.

    Raises:
        MissingFileError: a file is not there; names it and `MACREC_DATA`.
        SchemaError: a column is not there or the file has another form; names file, column and line.
    """
    source = spec.source
    if isinstance(source, IndexedSource):
        return read_indexed_interactions(source, data_dir)
    if isinstance(source, DemoSource):
        ensure_demo(source, data_dir)
        source = demo_tables(source)
    return read_interactions_table(source.interactions, data_dir)


def read_raw_items(spec: DatasetSpec, data_dir: Path) -> pl.DataFrame:
    """The catalogue as found, one row a source row (`RAW_ITEMS`). Errors as in `read_raw_interactions`."""
    source = spec.source
    if isinstance(source, IndexedSource):
        return read_indexed_items(source, data_dir)
    if isinstance(source, DemoSource):
        ensure_demo(source, data_dir)
        source = demo_tables(source)
    return read_items_table(source.items, data_dir)


def validate_source(spec: DatasetSpec, data_dir: Path) -> list[str]:
    """What a person must do before this data set can be read, a line each; empty when it is ready.

    Files are looked for and headers read, nothing more. The demo shop is always ready: it is generated.
    """
    source = spec.source
    if isinstance(source, IndexedSource):
        return indexed_problems(source, data_dir)
    if isinstance(source, DemoSource):
        return []
    return tables_problems(source, data_dir)
