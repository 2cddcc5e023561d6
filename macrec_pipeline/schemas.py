"""Every parquet table of the pipeline: columns, dtypes, invariants. Checked at each write and each read.

Conventions: `item_index` is a row of `items` (0..N-1), `item_id` the shop's own key; times are milliseconds since the
epoch, UTC. polars is imported by nothing below the stages but this module.
"""

from dataclasses import dataclass, field
from typing import Any

import polars as pl

from macrec_pipeline.errors import SchemaError

ANY_WIDTH_VECTOR = "list[float32], all of one length"


@dataclass(frozen=True)
class TableSchema:
    """What a table must look like.

    Attributes:
        columns: name -> polars dtype, in order; `ANY_WIDTH_VECTOR` for a fixed-width float32 array column.
        nullable: columns that may hold nulls.
        unique: column groups whose rows must be distinct.
        sorted_by: columns by which the rows must be in ascending order.
        forbidden: what no row may hold -> whether a row does; null: it does not.
    """

    name: str
    columns: dict[str, Any]
    nullable: frozenset[str] = frozenset()
    unique: tuple[tuple[str, ...], ...] = ()
    sorted_by: tuple[str, ...] = ()
    forbidden: dict[str, pl.Expr] = field(default_factory=dict, compare=False)
    description: str = field(default="", compare=False)

    @property
    def has_vectors(self) -> bool:
        """Whether a column holds vectors."""
        return ANY_WIDTH_VECTOR in self.columns.values()

    def check(self, table: pl.DataFrame, where: str = "") -> pl.DataFrame:
        """Return the table unchanged, or raise `SchemaError` that says what is wrong, where, and in which row."""
        place = f"{self.name}{f' ({where})' if where else ''}"
        if table.columns != list(self.columns):
            raise SchemaError(f"{place}: columns are {table.columns}, expected {list(self.columns)}.")
        for column, expected in self.columns.items():
            self._check_column(table[column], expected, place)
        for group in self.unique:
            key = pl.col(group[0]) if len(group) == 1 else pl.struct(group)
            repeated = table.select((key.is_duplicated() & key.is_not_null()).arg_true().first()).item()
            if repeated is not None:
                row = table.row(repeated, named=True)
                raise SchemaError(f"{place}: {', '.join(group)} must be unique, but row {repeated} repeats: {row}.")
        if self.sorted_by and table.select(_descends(self.sorted_by).any()).item():
            raise SchemaError(f"{place}: rows must be sorted by {', '.join(self.sorted_by)}.")
        found = self.forbidden_rows(table)
        if found:
            raise SchemaError(f"{place}: {found[0]}.")
        return table

    def forbidden_rows(self, table: pl.DataFrame) -> list[str]:
        """A line for each rule of `forbidden` that is broken: how many rows break it, and the first of them."""
        if not self.forbidden:
            return []
        broken = table.select(bad.fill_null(False).any().alias(what) for what, bad in self.forbidden.items())
        rules = [what for what, is_broken in broken.row(0, named=True).items() if is_broken]
        return [line for what in rules if (line := describe_rows(table, what, self.forbidden[what]))]

    def empty(self) -> pl.DataFrame:
        """A table of this schema without rows."""
        dtypes = {
            name: pl.Array(pl.Float32, 1) if dtype == ANY_WIDTH_VECTOR else dtype
            for name, dtype in self.columns.items()
        }
        return pl.DataFrame(schema=dtypes)

    def _check_column(self, column: pl.Series, expected: Any, place: str) -> None:
        if expected == ANY_WIDTH_VECTOR:
            if not (isinstance(column.dtype, pl.Array) and column.dtype.inner == pl.Float32):
                raise SchemaError(f"{place}: column {column.name!r} is {column.dtype}, expected array[float32, D].")
        elif column.dtype != expected:
            raise SchemaError(f"{place}: column {column.name!r} is {column.dtype}, expected {expected}.")
        if column.name not in self.nullable and column.null_count():
            row = column.is_null().arg_true()[0]
            raise SchemaError(
                f"{place}: column {column.name!r} is empty in {column.null_count()} rows, first row {row}."
            )


def describe_rows(table: pl.DataFrame, what: str, bad: pl.Expr) -> str | None:
    """How many rows are bad, and the first of them; None if none is."""
    rows = table.with_row_index("row").filter(bad.fill_null(False))
    return None if rows.is_empty() else f"{rows.height} x {what}; the first: {rows.row(0, named=True)}"


def _missing(name: str) -> dict[str, pl.Expr]:
    return {f"missing {name}": pl.col(name).is_null() | (pl.col(name) == "")}


def _descends(columns: tuple[str, ...]) -> pl.Expr:
    """Whether a row comes before the one above it, by the first column that differs; sorts nothing."""
    descends = pl.lit(False)
    for name in reversed(columns):
        above = pl.col(name).shift(1)
        descends = (above > pl.col(name)) | ((above == pl.col(name)) & descends)
    return descends.fill_null(False)


EARLIEST_MS = 631_152_000_000
"""1990-01-01 UTC: before the first shop that kept such a log."""

_STRING, _INT, _FLOAT, _BOOL = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()
_INTS, _STRINGS = pl.List(pl.Int64()), pl.List(pl.String())

RAW_INTERACTIONS = TableSchema(
    "raw_interactions",
    {
        "user_id": _STRING,
        "item_id": _STRING,
        "rating": _FLOAT,
        "timestamp": _INT,
        "source_file": _STRING,
        "source_row": _INT,
        "problem": _STRING,
    },
    nullable=frozenset({"user_id", "item_id", "rating", "timestamp", "problem"}),
    description="The log as found: one row a source row, unreadable cells null; source_row counts lines from 1. "
    "problem is `reason: detail` of a row that the reader cannot vouch for.",
)
RAW_ITEMS = TableSchema(
    "raw_items",
    {
        "item_id": _STRING,
        "title": _STRING,
        "text": _STRING,
        "image_path": _STRING,
        "image_url": _STRING,
        "categories": _STRINGS,
        "source_file": _STRING,
        "source_row": _INT,
        "problem": _STRING,
    },
    nullable=frozenset({"item_id", "title", "text", "image_path", "image_url", "categories", "problem"}),
    description="The catalogue as found. image_path is relative to the data folder, null where there is no file; "
    "image_url is what the source names; categories null where none is named; problem as in raw_interactions.",
)
INTERACTIONS = TableSchema(
    "interactions",
    {"user_id": _STRING, "item_id": _STRING, "rating": _FLOAT, "timestamp": _INT},
    nullable=frozenset({"rating"}),
    sorted_by=("user_id", "timestamp"),
    forbidden={
        **_missing("user_id"),
        **_missing("item_id"),
        "timestamp before 1990": pl.col("timestamp") < EARLIEST_MS,
        "rating that is not finite": ~pl.col("rating").is_finite(),
    },
    description="What is left after cleaning and the k-core, each user's in the order in which they count; equal times "
    "are in the order of item_id, or of the file with cleaning.ties=position.",
)
ITEMS = TableSchema(
    "items",
    {
        "item_index": _INT,
        "item_id": _STRING,
        "title": _STRING,
        "text": _STRING,
        "image_path": _STRING,
        "categories": _STRINGS,
        "num_interactions": _INT,
    },
    nullable=frozenset({"title", "text", "image_path", "categories"}),
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    forbidden={
        **_missing("item_id"),
        "image_path that leaves the data folder": pl.col("image_path").str.contains(r"^/|(?:^|/)\.\.(?:/|$)"),
    },
    description="The catalogue that is recommended from; item_index is 0..N-1 in the order of item_id.",
)
QUARANTINE = TableSchema(
    "quarantine",
    {
        "table": _STRING,
        "source_file": _STRING,
        "source_row": _INT,
        "user_id": _STRING,
        "item_id": _STRING,
        "reason": _STRING,
        "detail": _STRING,
    },
    nullable=frozenset({"user_id", "item_id", "detail"}),
    description="Every row that was dropped, and why.",
)
HISTORIES = TableSchema(
    "histories",
    {"user_index": _INT, "user_id": _STRING, "item_indices": _INTS, "timestamps": _INTS, "tested": _BOOL},
    unique=(("user_index",), ("user_id",)),
    sorted_by=("user_index",),
    forbidden={
        "history with another number of times than items": pl.col("item_indices").list.len()
        != pl.col("timestamps").list.len()
    },
    description="One row a user, oldest item first. Tested: training part [:-2], validation target [-2], test target "
    "[-1]. Not tested, which a split by time leaves: training part [:-1], validation target [-1].",
)
EMBEDDINGS = TableSchema(
    "embeddings",
    {
        "item_index": _INT,
        "item_id": _STRING,
        "embedding": ANY_WIDTH_VECTOR,
        "imputed": _BOOL,
        "content": _STRING,
        "problem": _STRING,
    },
    nullable=frozenset({"content", "problem"}),
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    description="One row an item; imputed where the item has no such modality; content is the SHA-256 "
    "of the text or picture file that the vector was made from; problem is why a picture that is there could not "
    "be used. No rows: semantic IDs are given, or the catalogue has no such modality.",
)
PSEUDO_LABELS = TableSchema(
    "pseudo_labels",
    {"item_index": _INT, "item_id": _STRING, "text_cluster": _INT, "image_cluster": _INT},
    nullable=frozenset({"text_cluster", "image_cluster"}),
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    description="k-means cluster of each item in each modality, empty in one that the catalogue lacks. No rows: "
    "semantic IDs are given, or the quantizer is kept.",
)
SEMANTIC_IDS = TableSchema(
    "semantic_ids",
    {
        "item_index": _INT,
        "item_id": _STRING,
        "text_codes": _INTS,
        "image_codes": _INTS,
        "text_moved": _BOOL,
        "image_moved": _BOOL,
    },
    nullable=frozenset({"text_codes", "image_codes", "text_moved", "image_moved"}),
    unique=(("item_index",), ("item_id",), ("text_codes",), ("image_codes",)),
    sorted_by=("item_index",),
    description="Each item's semantic ID in each modality; moved where collision resolution changed it. A modality "
    "that the catalogue lacks is empty in every row.",
)
RETIRED_IDS = TableSchema(
    "retired_ids",
    {
        "item_id": _STRING,
        "text_codes": _INTS,
        "image_codes": _INTS,
        "text_moved": _BOOL,
        "image_moved": _BOOL,
        "retired_at": _INT,
    },
    nullable=frozenset({"text_codes", "image_codes", "text_moved", "image_moved"}),
    unique=(("item_id",), ("text_codes",), ("image_codes",)),
    sorted_by=("item_id",),
    description="IDs whose items have left the catalogue, and the day when that was seen; kept beside semantic_ids. A "
    "modality that the catalogue lacks is empty in every row.",
)
PREDICTIONS = TableSchema(
    "predictions",
    {
        "system": _STRING,
        "exclude_seen": _BOOL,
        "user_index": _INT,
        "item_indices": _INTS,
        "scores": pl.List(pl.Float64()),
    },
    unique=(("system", "exclude_seen", "user_index"),),
    sorted_by=("system", "exclude_seen", "user_index"),
    description="The top items of the fused model and of each route for every test user, best first.",
)
RECOMMENDATIONS = TableSchema(
    "recommendations",
    {"user_id": _STRING, "item_ids": pl.List(_STRING), "scores": pl.List(_FLOAT), "fallback": _STRING},
    unique=(("user_id",),),
    description="A shard: the items for each user, best first; fallback is popularity where the model knows no item of "
    "the history, else none.",
)
NEAREST_CODES = TableSchema(
    "nearest_codes",
    {"codes": _INTS, "entering": ANY_WIDTH_VECTOR},
    description="A shard: each item's nearest codes before collisions are resolved, and what entered the last two "
    "levels, one after the other.",
)
FETCH_FAILURES = TableSchema(
    "fetch_failures",
    {"item_id": _STRING, "image_url": _STRING, "reason": _STRING, "detail": _STRING, "attempts": _INT},
    unique=(("item_id",),),
    sorted_by=("item_id",),
    description="Pictures that the last `macrec fetch images` could not load, and why; in the data folder.",
)

TABLES: dict[str, TableSchema] = {
    "raw_interactions": RAW_INTERACTIONS,
    "raw_items": RAW_ITEMS,
    "interactions": INTERACTIONS,
    "items": ITEMS,
    "quarantine": QUARANTINE,
    "histories": HISTORIES,
    "text_embeddings": EMBEDDINGS,
    "image_embeddings": EMBEDDINGS,
    "pseudo_labels": PSEUDO_LABELS,
    "semantic_ids": SEMANTIC_IDS,
    "predictions": PREDICTIONS,
}
SIDE_TABLES: dict[str, TableSchema] = {"retired_ids": RETIRED_IDS}
"""Tables that belong to an asset's version beside its own, and are left out where they would have no rows."""
