"""Parse the cells of a file: ids, numbers, times, flags, categories and the text of an item.

A cell that cannot be read becomes null, and cleaning reports it. Ids are strings, whatever type the file stores. Times
are int64 milliseconds since the epoch, UTC.

The text of an item is the input of the text encoder. `compose_texts` joins its title and descriptive cells into
sentences, for example
`Toy Story (1995). Led by Woody, Andy's toys live happily. Genres: Animation, Children, Comedy.`
"""

import math
from collections.abc import Sequence

import polars as pl

from macrec_pipeline.datasets import TimestampUnit

# Each unit as a fraction of milliseconds: multiply, then divide.
_TO_MILLISECONDS: dict[str, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000)}
# Far beyond every plausible time, and small enough that a multiplication by 1000 cannot overflow.
_LARGEST = 2**53

_ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2}|\d{8})"
    r"(?:[Tt ](?<minutes>\d{2}:?\d{2})(?::?(?<seconds>\d{2}))?(?:[.,](?<fraction>\d{1,9})\d*)?)?"
    r"\s*(?<zone>[Zz]|UTC|GMT|[+-]\d{2}(?::?\d{2})?)?$"
)

_SCIENTIFIC = r"^\s*-?\d(?:\.\d+)?[eE]\+\d+\s*$"
_WHOLE_DECIMAL = r"^-?\d+\.0+$"
_COMMA_NUMBER = r"^[+-]?(?:\d+|\d{1,3}(?:\.\d{3})+)(?:,\d*)?(?:[eE][+-]?\d+)?$"

_SENTENCE_END = r"""[.!?…]["'\u2019\u201d»)\]]*$"""
_TITLE_BOUNDARY = r"^(?:$|[\s.,:;!?)\]\u2013\u2014-])"


def has_whole_decimal_ids(column: pl.Series) -> bool:
    """Return whether all ids of a text column are whole numbers with a fraction of zeros, as pandas writes `18.0`."""
    if column.dtype != pl.String:
        return False
    filled = column.drop_nulls().str.strip_chars()
    filled = filled.filter(filled != "")
    return len(filled) > 0 and bool(filled.str.contains(_WHOLE_DECIMAL).all())


def has_inexact_ids(column: pl.Series) -> bool:
    """Return whether ids are floats beyond the whole numbers that are exact, so that several ids can share one value.

    Texts such as `1.2345678901234568e+18`, as pandas writes large floats, are such ids too.
    """
    if column.dtype.is_float():
        largest = column.filter(column.is_finite()).abs().max()
        return isinstance(largest, float) and largest >= (2**24 if column.dtype == pl.Float32 else 2**53)
    return column.dtype == pl.String and bool(column.str.contains(_SCIENTIFIC).any())


def id_cells(column: pl.Series, *, drop_zero_fraction: bool = False) -> pl.Series:
    """Return ids as strings without surrounding whitespace: empty ids are null, whole numbers have no `.0`.

    Args:
        column: the ids, as texts or numbers of any type.
        drop_zero_fraction: whether texts such as `18.0` are whole numbers too.
    """
    if column.dtype.is_float():
        ids = [_float_id(value) for value in column] if _has_large_float(column) else None
        if ids is not None:
            return text_cells(pl.Series(column.name, ids, dtype=pl.String))
        whole = column.is_finite() & (column == column.floor())
        text = pl.select(
            pl.when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .when(column.is_finite())
            .then(column.cast(pl.String))
        ).to_series()
    else:
        text = column.cast(pl.String, strict=False)
    text = text_cells(text)
    if drop_zero_fraction or column.dtype.is_decimal():
        whole_number = text.str.contains(_WHOLE_DECIMAL).fill_null(False)
        text = pl.select(pl.when(whole_number).then(text.str.replace(r"\.0+$", "")).otherwise(text)).to_series()
    return text


def _has_large_float(column: pl.Series) -> bool:
    largest = column.filter(column.is_finite()).abs().max()
    return isinstance(largest, float) and largest >= 2**63


def _float_id(value: float | None) -> str | None:
    if value is None or not math.isfinite(value):
        return None
    return str(int(value)) if value == math.floor(value) else str(value)


def without_null_words(column: pl.Series, words: Sequence[str]) -> pl.Series:
    """Return a text column with null for each cell that is one of the words for a missing value."""
    if column.dtype != pl.String or not words:
        return column
    return column.set(column.str.strip_chars().is_in(list(words)).fill_null(False), None)


def text_cells(column: pl.Series) -> pl.Series:
    """Return texts with each run of whitespace reduced to one space; empty texts are null, lists joined by commas."""
    if isinstance(column.dtype, pl.List):
        column = column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    text = column.cast(pl.String, strict=False).str.replace_all(r"\s+", " ").str.strip_chars()
    return text.set(text == "", None)


def category_cells(column: pl.Series, *, separator: str = "|") -> pl.Series:
    """Return categories as lists of distinct texts in their original order; null where there are none.

    Args:
        column: lists, or texts that hold several categories.
        separator: the text between two categories of one cell.
    """
    if not isinstance(column.dtype, pl.List):
        column = column.cast(pl.String, strict=False).str.split(separator)
    category = pl.element().str.replace_all(r"\s+", " ").str.strip_chars()
    categories = column.cast(pl.List(pl.String)).list.agg(category.filter(category != "").unique(maintain_order=True))
    return categories.set(categories.list.len() == 0, None)


def number_cells(column: pl.Series, *, decimal: str = ".") -> pl.Series:
    """Return numbers as float64; cells that are not numbers are null.

    Args:
        column: numbers, or texts.
        decimal: the sign before the fraction of a text. With a comma, dots may separate thousands.
    """
    if column.dtype == pl.String:
        column = column.str.strip_chars()
        if decimal == ",":
            readable = column.str.contains(_COMMA_NUMBER).fill_null(False)
            dotted = column.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
            column = dotted.set(~readable, None)
    return column.cast(pl.Float64, strict=False)


def flag_cells(column: pl.Series) -> pl.Series:
    """Return whether each cell is 1, 1.0, true or yes, in any case; every other cell, including null, is False."""
    text = column.cast(pl.String, strict=False).str.strip_chars().str.to_lowercase()
    return text.is_in(["1", "1.0", "true", "yes"]).fill_null(False)


def time_cells(column: pl.Series, unit: TimestampUnit, *, time_format: str | None = None) -> pl.Series:
    """Return times as int64 milliseconds since the epoch, UTC; cells that are not times are null.

    Args:
        column: numbers, strings, or the date types of a parquet file, which carry their own unit.
        unit: the unit of a number, or `iso` for texts such as `2018-01-31`, `2018-01-31 10:00` and
            `2018-01-31T10:00:00.5+02:00`. Texts without a time zone are UTC.
        time_format: the format of the texts in the notation of strptime, such as `%d.%m.%Y %H:%M`; replaces `unit`.
    """
    if isinstance(column.dtype, pl.Datetime | pl.Date):
        return column.cast(pl.Datetime("ms")).cast(pl.Int64)
    if time_format is not None:
        text = column.cast(pl.String, strict=False).str.strip_chars()
        has_zone = "%z" in time_format
        times = text.str.to_datetime(
            time_format, time_unit="ms", time_zone="UTC" if has_zone else None, strict=False, exact=True
        )
        return times.cast(pl.Int64)
    if unit == "iso":
        return _iso_times(column.cast(pl.String, strict=False))
    multiply, divide = _TO_MILLISECONDS[unit]
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    whole = column.cast(pl.Int64, strict=False) if not column.dtype.is_float() else pl.Series([None], dtype=pl.Int64)
    fractional = column.cast(pl.Float64, strict=False)
    fractional = fractional.set(~fractional.is_finite(), None).clip(-_LARGEST, _LARGEST)
    return pl.select(
        pl.coalesce(
            whole.clip(-_LARGEST, _LARGEST) * multiply // divide,
            (fractional * multiply / divide).floor().cast(pl.Int64, strict=False),
        )
    ).to_series()


def compose_texts(title: pl.Series, parts: Sequence[pl.Series]) -> pl.Series:
    """Join the title and the parts of each item into sentences, in this order.

    The title is left out where a part already begins with it.

    Args:
        title: strings, null where an item has no title.
        parts: string columns of the same length, null where an item lacks this part.

    Returns:
        One string per item, null where the title and all parts are null.
    """
    names = [f"part_{number}" for number in range(len(parts))]
    table = pl.DataFrame({"title": title, **dict(zip(names, parts, strict=True))})
    has_title = pl.any_horizontal(pl.lit(False), *(_begins_with_title(name) for name in names))
    title_if_needed = pl.when(~has_title.fill_null(False)).then(pl.col("title"))
    sentences = [_as_sentence(expression) for expression in (title_if_needed, *(pl.col(name) for name in names))]
    joined = table.select(pl.concat_str(sentences, separator=" ", ignore_nulls=True).alias("text")).to_series()
    return joined.set(joined == "", None)


def title_and_rest(title: pl.Series, text: pl.Series) -> list[list[str | None]]:
    """Split the text of each item into two fields: its title, and what `compose_texts` put after it.

    Args:
        title: strings, null where an item has no title.
        text: the result of `compose_texts` for these titles. A text that begins with the title on its own account stays
            whole, as the second field.
    """
    sentence = _as_sentence(pl.col("title")) + pl.lit(" ")
    rest = pl.when(pl.col("text") + " " == sentence).then(None).otherwise(pl.col("text").str.strip_prefix(sentence))
    table = pl.DataFrame({"title": title, "text": text})
    split = table.select("title", pl.when(pl.col("title").is_null()).then(pl.col("text")).otherwise(rest).alias("rest"))
    return [list(row) for row in split.iter_rows()]


def join_flags(label: str, flags: dict[str, pl.Series]) -> pl.Series:
    """Return texts such as `Genres: Animation, Comedy` from several boolean columns; null where none is true."""
    chosen = [pl.when(is_set).then(pl.lit(name)) for name, is_set in flags.items()]
    names = pl.select(pl.concat_str(chosen, separator=", ", ignore_nulls=True).alias("flags")).to_series()
    return pl.select(pl.when(names != "").then(pl.lit(f"{label}: ") + names).alias("flags")).to_series()


def _iso_times(text: pl.Series) -> pl.Series:
    """Rewrite every accepted spelling to one format, then parse it: no format is guessed from the first rows."""
    parts = text.str.strip_chars().str.extract_groups(_ISO).struct.unnest()
    zone = pl.col("zone").fill_null("+00:00").str.replace("^(?:[Zz]|UTC|GMT)$", "+00:00")
    zone = zone.str.replace(":", "", literal=True).str.pad_end(5, "0")
    canonical = pl.format(
        "{}T{}:{}.{}{}",
        pl.col("date").str.replace(r"^(\d{4})(\d{2})(\d{2})$", "${1}-${2}-${3}"),
        pl.col("minutes").fill_null("00:00").str.replace(r"^(\d{2})(\d{2})$", "${1}:${2}"),
        pl.col("seconds").fill_null("00"),
        pl.col("fraction").fill_null("0"),
        zone,
    )
    return parts.select(
        pl.when(pl.col("date").is_not_null())
        .then(canonical)
        .str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%z", time_unit="ms", time_zone="UTC", strict=False)
        .cast(pl.Int64)
    ).to_series()


def _begins_with_title(name: str) -> pl.Expr:
    part, title = pl.col(name).str.to_lowercase(), pl.col("title").str.to_lowercase()
    rest = part.str.slice(title.str.len_chars())
    return (part.str.starts_with(title) & rest.str.contains(_TITLE_BOUNDARY)).fill_null(False)


def _as_sentence(text: pl.Expr) -> pl.Expr:
    return pl.when(text.str.contains(_SENTENCE_END)).then(text).otherwise(text + ".")
