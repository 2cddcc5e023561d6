"""A data set -> the items whose pictures are wanted, with their addresses, and where these pictures belong."""

from pathlib import Path

import polars as pl

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.readers.image_files import PLACEHOLDER
from macrec_pipeline.data.readers.registry import read_raw_interactions, read_raw_items
from macrec_pipeline.datasets import AmazonSource, DatasetSpec, TablesSource
from macrec_pipeline.errors import ConfigError


def image_template_of(spec: DatasetSpec) -> str:
    """Where a picture belongs, relative to the data folder, with `{item_id}` in it.

    Raises:
        ConfigError: the data set names no addresses, or no place for pictures; says what to add.
    """
    source = spec.source
    match source:
        case AmazonSource():
            template: str | None = source.image_template
        case TablesSource() if source.items.image_url is not None:
            template = source.items.image
        case _:
            raise ConfigError(
                f"{spec.name} names no addresses of pictures (reader {source.reader}). The readers amazon2018 and "
                "amazon2023 have them; with reader tables, name their column as source.items.image_url."
            )
    if template is None or PLACEHOLDER not in template:
        raise ConfigError(
            f"{spec.name}: its image is {template!r}, so there is no place for the pictures. Give a path with "
            f"{PLACEHOLDER} in it, as in posters/{PLACEHOLDER}.jpg."
        )
    return template


def image_addresses(spec: DatasetSpec, data_dir: Path, *, everything: bool) -> pl.DataFrame:
    """The items whose pictures are wanted: those that cleaning leaves, or all.

    Args:
        spec: the data set.
        data_dir: the data folder.
        everything: every item of the catalogue. Most of a large one is outside the k-core and never looked at.

    Returns:
        item_id and image_url (null where there is none), sorted by item_id, one row an item.

    Raises:
        DataError: the files cannot be read, or cleaning leaves nothing.
    """
    items = read_raw_items(spec, data_dir)
    wanted = items.filter(pl.col("item_id").is_not_null() & pl.col("problem").is_null())
    if not everything:
        kept = clean(read_raw_interactions(spec, data_dir), items, spec.config().cleaning).items
        wanted = wanted.join(kept, on="item_id", how="semi")
    return wanted.group_by("item_id").agg(pl.col("image_url").drop_nulls().sort().first()).sort("item_id")
