"""The catalogue of a data set that has none: the ids of its log, which are also the titles."""

from collections.abc import Iterable

import polars as pl

from macrec_pipeline.data.readers.reader import raw_table
from macrec_pipeline.schemas import RAW_INTERACTIONS, RAW_ITEMS


def items_of_log(parts: Iterable[pl.DataFrame], file: str) -> pl.DataFrame:
    """Return `RAW_ITEMS` with each item of a log in the order of its first interaction.

    Args:
        parts: parts of `RAW_INTERACTIONS`. Only one of them is in memory at a time.
        file: path of the file below the data folder, for `source_file`.
    """
    items = RAW_INTERACTIONS.empty().select("item_id", "source_row")
    for part in parts:
        found = part.select("item_id", "source_row").drop_nulls().unique("item_id", keep="first", maintain_order=True)
        items = pl.concat([items, found.join(items, on="item_id", how="anti", maintain_order="left")])
    return raw_table(RAW_ITEMS, items.with_columns(pl.col("item_id").alias("title")), file=file)
