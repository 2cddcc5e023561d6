"""Decide which images of a data set to fetch, from which addresses, and where they belong in the data folder."""

from pathlib import Path

import polars as pl

from macrec_pipeline.data.cleaning.clean import clean
from macrec_pipeline.data.readers.image_files import PLACEHOLDER
from macrec_pipeline.data.readers.registry import open_reader, read_raw_interactions, read_raw_items
from macrec_pipeline.datasets import DatasetSpec
from macrec_pipeline.errors import ConfigError


def image_template_of(spec: DatasetSpec, data_dir: Path) -> str:
    """Return where images belong: a path relative to the data folder that contains `{item_id}`.

    Raises:
        ConfigError: the data set has no image addresses, or no place for images; says what to add.
    """
    template = open_reader(spec, data_dir).image_template()
    if template is None:
        raise ConfigError(
            f"The data set {spec.name} has no image addresses (reader {spec.reader_name}). The readers amazon2018 and "
            "amazon2023 have them. With the reader tables, set source.items.image_url to the column of the addresses; "
            "a reader of your own must return a path from image_template()."
        )
    if PLACEHOLDER not in template:
        raise ConfigError(
            f"{spec.name}: the image path is {template!r}, which is the same for all items. Use a path that contains "
            f"{PLACEHOLDER}, as in posters/{PLACEHOLDER}.jpg."
        )
    return template


def image_addresses(spec: DatasetSpec, data_dir: Path, *, everything: bool) -> pl.DataFrame:
    """Return the items to fetch images for: those that remain after cleaning, or all.

    Args:
        spec: the data set.
        data_dir: the data folder.
        everything: include every item of the catalogue. Most items of a large catalogue are outside the k-core, and
            their images are never used.

    Returns:
        item_id and image_url, sorted by item_id, one row per item. image_url is null if an item has no address; if it
        has several, they are separated by spaces.

    Raises:
        DataError: the files cannot be read, or no interaction remains after cleaning.
    """
    raw_items = read_raw_items(spec, data_dir, with_secrets=True)
    items = raw_items.filter(pl.col("item_id").is_not_null() & pl.col("problem").is_null())
    if not everything:
        remaining = clean(read_raw_interactions(spec, data_dir), raw_items, spec.config().cleaning).items
        items = items.join(remaining, on="item_id", how="semi")
    addresses = pl.col("image_url").drop_nulls().unique().sort().str.join(" ")
    joined = items.group_by("item_id").agg(addresses).sort("item_id")
    return joined.with_columns(pl.when(pl.col("image_url") != "").then("image_url"))
