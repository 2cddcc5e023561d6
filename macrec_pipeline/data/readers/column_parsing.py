"""Cells as found -> ids, numbers and times; what cannot be read becomes null, so that cleaning can say so.

Ids are strings whatever the file holds; times are int64 milliseconds since the epoch, UTC.
"""

import polars as pl

from macrec_pipeline.datasets import TimestampUnit

# Each unit as a fraction of milliseconds: multiply, then divide.
_TO_MILLISECONDS: dict[str, tuple[int, int]] = {"s": (1000, 1), "ms": (1, 1), "us": (1, 1000)}
# Far outside every plausible time, and far from where a multiplication by 1000 would wrap around.
_LARGEST = 2**53

_ISO = (
    r"^(?<date>\d{4}-\d{2}-\d{2})"
    r"(?:[Tt ](?<minutes>\d{2}:\d{2})(?::(?<seconds>\d{2}))?(?:[.,](?<fraction>\d{1,9})\d*)?)?"
    r"\s*(?<zone>[Zz]|[+-]\d{2}:?\d{2})?$"
)


def id_cells(column: pl.Series) -> pl.Series:
    """Ids as strings without surrounding blanks; empty ones null, whole numbers without `.0`."""
    if column.dtype.is_float():
        whole = column.is_finite() & (column == column.floor())
        text = pl.select(
            pl.when(whole)
            .then(column.cast(pl.Int64, strict=False).cast(pl.String))
            .when(column.is_finite())
            .then(column.cast(pl.String))
        ).to_series()
    else:
        text = column.cast(pl.String, strict=False)
    return text_cells(text)


def text_cells(column: pl.Series) -> pl.Series:
    """Texts with runs of blanks and line breaks made one blank; empty ones null. Lists are joined by commas."""
    if isinstance(column.dtype, pl.List):
        column = column.cast(pl.List(pl.String)).list.join(", ", ignore_nulls=True)
    text = column.cast(pl.String, strict=False).str.replace_all(r"\s+", " ").str.strip_chars()
    return text.set(text == "", None)


def category_cells(column: pl.Series, *, separator: str = "|") -> pl.Series:
    """Categories as lists of distinct texts, in their order; null where there is none.

    Args:
        column: lists, or texts.
        separator: what stands between the categories of a text.
    """
    if not isinstance(column.dtype, pl.List):
        column = column.cast(pl.String, strict=False).str.split(separator)
    one = pl.element().str.replace_all(r"\s+", " ").str.strip_chars()
    listed = column.cast(pl.List(pl.String)).list.agg(one.filter(one != "").unique(maintain_order=True))
    return listed.set(listed.list.len() == 0, None)


def number_cells(column: pl.Series) -> pl.Series:
    """Numbers as float64; what is not one null."""
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    return column.cast(pl.Float64, strict=False)


def flag_cells(column: pl.Series) -> pl.Series:
    """Whether each cell says yes: 1, 1.0, true, True, yes; everything else, null too, says no."""
    text = column.cast(pl.String, strict=False).str.strip_chars().str.to_lowercase()
    return text.is_in(["1", "1.0", "true", "yes"]).fill_null(False)


def time_cells(column: pl.Series, unit: TimestampUnit) -> pl.Series:
    """Times as int64 milliseconds since the epoch, UTC; what cannot be read null.

    Args:
        column: numbers, strings, or the date types of a parquet file, which say their own unit.
        unit: what a number counts, or `iso` for texts such as `2018-01-31`, `2018-01-31 10:00` and
            `2018-01-31T10:00:00.5+02:00`; without a zone they are UTC.
    """
    if isinstance(column.dtype, pl.Datetime | pl.Date):
        return column.cast(pl.Datetime("ms")).cast(pl.Int64)
    if unit == "iso":
        return _iso_times(column.cast(pl.String, strict=False))
    multiply, divide = _TO_MILLISECONDS[unit]
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    whole = column.cast(pl.Int64, strict=False) if not column.dtype.is_float() else pl.Series([None], dtype=pl.Int64)
    broken = column.cast(pl.Float64, strict=False)
    broken = broken.set(~broken.is_finite(), None).clip(-_LARGEST, _LARGEST)
    return pl.select(
        pl.coalesce(
            whole.clip(-_LARGEST, _LARGEST) * multiply // divide,
            (broken * multiply / divide).floor().cast(pl.Int64, strict=False),
        )
    ).to_series()


def _iso_times(text: pl.Series) -> pl.Series:
    """Put every accepted spelling into one, then parse that one: no format is guessed from the first rows."""
    parts = text.str.strip_chars().str.extract_groups(_ISO).struct.unnest()
    zone = pl.col("zone").fill_null("+00:00").str.replace("^[Zz]$", "+00:00").str.replace(":", "", literal=True)
    canonical = pl.format(
        "{}T{}:{}.{}{}",
        pl.col("date"),
        pl.col("minutes").fill_null("00:00"),
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
