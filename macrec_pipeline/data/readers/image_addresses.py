"""Image addresses: a cell may hold several, of which the first that works is used."""

import re

import polars as pl

from macrec_pipeline.data.readers.column_parsing import text_cells

# Addresses may contain commas and spaces themselves, so a separator counts only in front of the next address.
_BETWEEN_ADDRESSES = re.compile(r"[\s,;|]+(?=https?://)", re.IGNORECASE)


_ARRAY = re.compile(r"""\{\s*"?(https?://.*?)"?\s*\}""", re.IGNORECASE | re.DOTALL)  # as PostgreSQL writes a list


def address_cells(column: pl.Series) -> pl.Series:
    """Return the addresses of each item as one text; those of a list are separated by spaces. null where none is."""
    if isinstance(column.dtype, pl.List):
        column = (
            column.cast(pl.List(pl.String)).list.eval(pl.element().str.strip_chars()).list.join(" ", ignore_nulls=True)
        )
    return text_cells(column)


def separate_addresses(cell: str) -> list[str]:
    """Return the addresses of one cell, such as `https://a/1.jpg, https://a/2.jpg`, without repetitions."""
    array = _ARRAY.fullmatch(cell.strip())
    cell = cell if array is None else array[1].replace('"', "")
    addresses = [address.strip(" \t,;|") for address in _BETWEEN_ADDRESSES.split(cell)]
    return list(dict.fromkeys(address for address in addresses if address)) or [cell]
