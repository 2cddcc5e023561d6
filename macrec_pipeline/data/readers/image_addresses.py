"""Image addresses: a cell may hold several, of which the first that works is used."""

import re

import polars as pl

from macrec_pipeline.data.readers.column_parsing import text_cells
from macrec_pipeline.runtime.secret_addresses import address_without_secrets

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


def without_secret_parts(cells: pl.Series) -> pl.Series:
    """Return address cells as they may be stored: without passwords and signatures, one space between addresses."""
    changed = {
        cell: shown
        for cell in cells.filter(cells.str.contains(r"[@?#;%]|s--")).unique().to_list()
        if (shown := " ".join(map(address_without_secrets, separate_addresses(cell)))) != cell
    }
    return cells.replace(changed) if changed else cells


def separate_addresses(cell: str) -> list[str]:
    """Return the addresses of one cell, such as `https://a/1.jpg, https://a/2.jpg`, without repetitions."""
    array = _ARRAY.fullmatch(cell.strip())
    cell = cell if array is None else array[1].replace('"', "")
    addresses = [address.strip(" \t,;|") for address in _BETWEEN_ADDRESSES.split(cell)]
    return list(dict.fromkeys(address for address in addresses if address)) or [cell]
