"""The schema of every Parquet table of the pipeline: its columns, with dtypes and descriptions, and its rules.

The store checks a table against its schema at each write and each read (docs/decisions/017-own-table-contracts.md).

Conventions: `item_index` is the row of an item in `items`, an integer in [0, N); `item_id` is the shop's own key for
the item. Timestamps are int64 milliseconds since the epoch, UTC. This is the only module below the stages that imports
polars.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import polars as pl

from macrec_pipeline.errors import SchemaError

OTHER_EVENT = "other_event"
"""The reason of a row whose kind of event the data set leaves out. It is no fault of the data."""
ANY_WIDTH_VECTOR = "list[float32], all of one length"


class Column(NamedTuple):
    """A column of a table: its dtype, what it holds, and whether it may hold nulls."""

    dtype: Any
    description: str
    nullable: bool = False


@dataclass(frozen=True)
class TableSchema:
    """What a table must look like; `table_schema` builds one from `Column`s.

    Attributes:
        name: the schema's name, as error messages give it.
        columns: column name -> polars dtype, in order; `ANY_WIDTH_VECTOR` for a fixed-width float32 array column.
        nullable: the columns that may hold nulls.
        unique: groups of columns; within each group, no two rows may agree in every column.
        sorted_by: the columns by which the rows must ascend.
        forbidden: rules as description -> an expression that is true for each row that breaks the rule; null counts
            as false.
        description: what a row of the table stands for.
        column_descriptions: column name -> what the column holds.
        optional: columns that a table may have after the others; they may hold nulls.
    """

    name: str
    columns: dict[str, Any]
    nullable: frozenset[str] = frozenset()
    unique: tuple[tuple[str, ...], ...] = ()
    sorted_by: tuple[str, ...] = ()
    forbidden: dict[str, pl.Expr] = field(default_factory=dict, compare=False)
    description: str = field(default="", compare=False)
    column_descriptions: dict[str, str] = field(default_factory=dict, compare=False)
    optional: Mapping[str, Column] = field(default_factory=dict, compare=False)

    @property
    def has_vectors(self) -> bool:
        """Whether a column holds vectors."""
        return ANY_WIDTH_VECTOR in self.columns.values()

    def check(self, table: pl.DataFrame, where: str = "") -> pl.DataFrame:
        """Return the table unchanged if it conforms to the schema.

        Args:
            table: the table to check.
            where: the file or step that the table belongs to, named in the error message.

        Raises:
            SchemaError: the table does not conform to the schema; the message names the table, the column or rule,
                and the row.
        """
        location = f"{self.name}{f' ({where})' if where else ''}"
        extra = {name: column.dtype for name, column in self.optional.items() if name in table.columns}
        if table.columns != [*self.columns, *extra]:
            raise SchemaError(f"{location}: columns are {table.columns}, expected {list(self.columns)}.")
        for column, expected in (self.columns | extra).items():
            self._check_column(table[column], expected, location)
        for group in self.unique:
            key = pl.col(group[0]) if len(group) == 1 else pl.struct(group)
            repeated = table.select((key.is_duplicated() & key.is_not_null()).arg_true().first()).item()
            if repeated is not None:
                row = table.row(repeated, named=True)
                raise SchemaError(f"{location}: {', '.join(group)} must be unique, but row {repeated} repeats: {row}.")
        if self.sorted_by and table.select(_descends(self.sorted_by).any()).item():
            raise SchemaError(f"{location}: rows must be sorted by {', '.join(self.sorted_by)}.")
        broken_rules = self.forbidden_rows(table)
        if broken_rules:
            raise SchemaError(f"{location}: {broken_rules[0]}.")
        return table

    def forbidden_rows(self, table: pl.DataFrame) -> list[str]:
        """Return one line per broken rule of `forbidden`: how many rows break it, and the first of them."""
        if not self.forbidden:
            return []
        broken = table.select(bad.fill_null(False).any().alias(rule) for rule, bad in self.forbidden.items())
        rules = [rule for rule, is_broken in broken.row(0, named=True).items() if is_broken]
        return [line for rule in rules if (line := describe_rows(table, rule, self.forbidden[rule]))]

    def empty(self) -> pl.DataFrame:
        """Return a table of this schema with no rows."""
        dtypes = {
            name: pl.Array(pl.Float32, 1) if dtype == ANY_WIDTH_VECTOR else dtype
            for name, dtype in self.columns.items()
        }
        return pl.DataFrame(schema=dtypes)

    def _check_column(self, column: pl.Series, expected: Any, location: str) -> None:
        if expected == ANY_WIDTH_VECTOR:
            if not (isinstance(column.dtype, pl.Array) and column.dtype.inner == pl.Float32):
                raise SchemaError(f"{location}: column {column.name!r} is {column.dtype}, expected array[float32, D].")
        elif column.dtype != expected:
            raise SchemaError(f"{location}: column {column.name!r} is {column.dtype}, expected {expected}.")
        if column.name not in self.nullable and column.name not in self.optional and column.null_count():
            row = column.is_null().arg_true()[0]
            raise SchemaError(
                f"{location}: column {column.name!r} must not be null, but it is in {column.null_count()} rows; the "
                f"first is row {row}."
            )


def table_schema(
    name: str,
    columns: Mapping[str, Column],
    *,
    description: str,
    unique: tuple[tuple[str, ...], ...] = (),
    sorted_by: tuple[str, ...] = (),
    forbidden: dict[str, pl.Expr] | None = None,
    optional: Mapping[str, Column] | None = None,
) -> TableSchema:
    """Build a `TableSchema` from the columns in their order; the other arguments are attributes of `TableSchema`."""
    return TableSchema(
        name,
        {column_name: column.dtype for column_name, column in columns.items()},
        nullable=frozenset(column_name for column_name, column in columns.items() if column.nullable),
        unique=unique,
        sorted_by=sorted_by,
        forbidden=forbidden or {},
        description=description,
        column_descriptions={column_name: column.description for column_name, column in columns.items()},
        optional=optional or {},
    )


def describe_rows(table: pl.DataFrame, rule: str, bad: pl.Expr) -> str | None:
    """Return how many rows break a rule and the first of them, or None if no row does.

    Args:
        table: the table to search.
        rule: the rule's description, repeated in the result.
        bad: true for each row that breaks the rule; null counts as false.
    """
    rows = table.with_row_index("row").filter(bad.fill_null(False))
    return None if rows.is_empty() else f"{rows.height} x {rule}; the first: {rows.row(0, named=True)}"


def _missing(name: str) -> dict[str, pl.Expr]:
    return {f"missing {name}": pl.col(name).is_null() | (pl.col(name) == "")}


def _descends(columns: tuple[str, ...]) -> pl.Expr:
    """Return whether a row sorts before the row above it, by the first column in which they differ; needs no sort."""
    descends = pl.lit(False)
    for name in reversed(columns):
        above = pl.col(name).shift(1)
        descends = (above > pl.col(name)) | ((above == pl.col(name)) & descends)
    return descends.fill_null(False)


EARLIEST_MS = 631_152_000_000
"""1990-01-01 UTC. An earlier timestamp is treated as an error, since no shop has a log of interactions that old."""

_STRING, _INT, _FLOAT, _BOOL = pl.String(), pl.Int64(), pl.Float64(), pl.Boolean()
_INTS, _STRINGS = pl.List(pl.Int64()), pl.List(pl.String())

_ITEM_INDEX = Column(_INT, "the item's row in `items`, counted from 0")
_ITEM_ID = Column(_STRING, "the shop's own key for the item")
_SOURCE_FILE = Column(_STRING, "the file that the row was read from, relative to the data folder")
_SOURCE_ROW = Column(_INT, "the row's line in that file, counted from 1")

_PROBLEM = Column(
    _STRING, "`reason` or `reason: detail` if the reader could not interpret the row, else null", nullable=True
)

RAW_INTERACTIONS = table_schema(
    "raw_interactions",
    {
        "user_id": Column(_STRING, "the shop's own key for the user; null if unreadable", nullable=True),
        "item_id": Column(_STRING, "the shop's own key for the item; null if unreadable", nullable=True),
        "rating": Column(_FLOAT, "the user's rating of the item; null if unreadable or not recorded", nullable=True),
        "timestamp": Column(_INT, "time of the interaction, in ms since the epoch; null if unreadable", nullable=True),
        "source_file": _SOURCE_FILE,
        "source_row": _SOURCE_ROW,
        "problem": _PROBLEM,
    },
    description="The interaction log as found in the source: one row per source row, with null for each cell that "
    "cannot be read.",
)
RAW_ITEMS = table_schema(
    "raw_items",
    {
        "item_id": Column(_STRING, "the shop's own key for the item; null if unreadable", nullable=True),
        "title": Column(_STRING, "the item's title", nullable=True),
        "text": Column(_STRING, "title and descriptive fields, joined into the text that is embedded", nullable=True),
        "image_path": Column(
            _STRING, "the item's image file, relative to the data folder; null if there is no such file", nullable=True
        ),
        "image_url": Column(_STRING, "the image's address without passwords and signatures", nullable=True),
        "categories": Column(_STRINGS, "the item's categories; null if there are none", nullable=True),
        "source_file": _SOURCE_FILE,
        "source_row": _SOURCE_ROW,
        "problem": _PROBLEM,
    },
    description="The catalogue as found in the source: one row per source row.",
)
INTERACTIONS = table_schema(
    "interactions",
    {
        "user_id": Column(_STRING, "the shop's own key for the user, with `#` and a number if sessions are split"),
        "item_id": _ITEM_ID,
        "rating": Column(_FLOAT, "the user's rating of the item; null if not recorded", nullable=True),
        "timestamp": Column(_INT, "time of the interaction, in ms since the epoch"),
    },
    sorted_by=("user_id", "timestamp"),
    forbidden={
        **_missing("user_id"),
        **_missing("item_id"),
        "timestamp before 1990": pl.col("timestamp") < EARLIEST_MS,
        "rating that is not finite": ~pl.col("rating").is_finite(),
    },
    description="The interactions that remain after cleaning and the k-core, each user's in chronological order. "
    "Interactions of a user at the same time are in the order that `cleaning.ties` chooses.",
)
ITEMS = table_schema(
    "items",
    {
        "item_index": _ITEM_INDEX,
        "item_id": _ITEM_ID,
        "title": Column(_STRING, "the item's title", nullable=True),
        "text": Column(_STRING, "title and descriptive fields, joined into the text that is embedded", nullable=True),
        "image_path": Column(_STRING, "the item's image file, relative to the data folder", nullable=True),
        "categories": Column(_STRINGS, "the item's categories", nullable=True),
        "num_interactions": Column(_INT, "number of rows of `interactions` with this item"),
    },
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    forbidden={
        **_missing("item_id"),
        "image_path that leaves the data folder": pl.col("image_path").str.contains(r"^/|(?:^|/)\.\.(?:/|$)"),
    },
    description="The catalogue from which items are recommended: one row per item, in the order of item_id.",
    optional={
        "image_url": Column(
            _STRING,
            "the addresses of the item's image, separated by spaces; the column exists if an item has one",
            nullable=True,
        )
    },
)
QUARANTINE = table_schema(
    "quarantine",
    {
        "table": Column(_STRING, "the raw table of the row: `raw_interactions` or `raw_items`"),
        "source_file": _SOURCE_FILE,
        "source_row": _SOURCE_ROW,
        "user_id": Column(_STRING, "the row's user, or its session if sessions are split", nullable=True),
        "item_id": Column(_STRING, "the row's item", nullable=True),
        "reason": Column(_STRING, "the first rule that the row breaks, such as `missing_timestamp` or `k_core`"),
        "detail": Column(_STRING, "what exactly was wrong with the row", nullable=True),
    },
    description="One row per raw row that cleaning dropped, with the reason.",
)
HISTORIES = table_schema(
    "histories",
    {
        "user_index": Column(_INT, "the user's row in this table, counted from 0"),
        "user_id": Column(_STRING, "the user's key, as in `interactions`"),
        "item_indices": Column(_INTS, "the rows of the user's items in `items`, oldest first"),
        "timestamps": Column(_INTS, "time of each interaction, in ms since the epoch"),
        "tested": Column(_BOOL, "whether the last item is a test target"),
        "num_at_target_time": Column(
            _INT,
            "number of the user's interactions at the time of the test target, including the target; 1 means that the "
            "data determine the target, a larger number that `cleaning.ties` chose it; null if the user is not tested",
            nullable=True,
        ),
    },
    unique=(("user_index",), ("user_id",)),
    sorted_by=("user_index",),
    forbidden={
        "history with a different number of times than items": pl.col("item_indices").list.len()
        != pl.col("timestamps").list.len(),
        "num_at_target_time that does not count the test target": pl.col("tested")
        & (pl.col("num_at_target_time").fill_null(0) < 1),
        "num_at_target_time of a user who is not tested": ~pl.col("tested")
        & pl.col("num_at_target_time").is_not_null(),
    },
    description="One row per user, in the order of user_id. If the user is tested, items [:-2] are the training part, "
    "[-2] is the validation target and [-1] is the test target. A split by time does not test every user; if the user "
    "is not tested, items [:-1] are the training part and [-1] is the validation target.",
)
EMBEDDINGS = table_schema(
    "embeddings",
    {
        "item_index": _ITEM_INDEX,
        "item_id": _ITEM_ID,
        "embedding": Column(ANY_WIDTH_VECTOR, "the encoder's vector of the item"),
        "imputed": Column(_BOOL, "whether the vector was filled in because the item lacks this modality"),
        "content": Column(
            _STRING, "SHA-256 of the text or image file that was encoded; null if the item has none", nullable=True
        ),
        "problem": Column(_STRING, "why the item's image could not be used, else null", nullable=True),
    },
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    description="One row per item. The table has no rows if semantic IDs are given, or if the catalogue lacks the "
    "modality.",
)
PSEUDO_LABELS = table_schema(
    "pseudo_labels",
    {
        "item_index": _ITEM_INDEX,
        "item_id": _ITEM_ID,
        "text_cluster": Column(
            _INT, "k-means cluster of the item's text embedding; null if the catalogue has no texts", nullable=True
        ),
        "image_cluster": Column(
            _INT, "k-means cluster of the item's image embedding; null if the catalogue has no images", nullable=True
        ),
    },
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    description="One row per item. The table has no rows if the catalogue brings its semantic IDs, or if an earlier "
    "quantizer is reused.",
)

_TEXT_CODES = Column(_INTS, "semantic ID from the item's text; null if the catalogue has no texts", nullable=True)
_IMAGE_CODES = Column(_INTS, "semantic ID from the item's image; null if the catalogue has no images", nullable=True)
_TEXT_MOVED = Column(_BOOL, "whether collision resolution changed text_codes; null like them", nullable=True)
_IMAGE_MOVED = Column(_BOOL, "whether collision resolution changed image_codes; null like them", nullable=True)

SEMANTIC_IDS = table_schema(
    "semantic_ids",
    {
        "item_index": _ITEM_INDEX,
        "item_id": _ITEM_ID,
        "text_codes": _TEXT_CODES,
        "image_codes": _IMAGE_CODES,
        "text_moved": _TEXT_MOVED,
        "image_moved": _IMAGE_MOVED,
    },
    unique=(("item_index",), ("item_id",), ("text_codes",), ("image_codes",)),
    sorted_by=("item_index",),
    description="One row per item: its semantic ID in each modality.",
)
_TOLD = ("title", "text", "image_path", "image_url", "categories")
"""What the catalogue tells about an item."""

RETIRED_IDS = table_schema(
    "retired_ids",
    {
        "item_id": _ITEM_ID,
        "text_codes": _TEXT_CODES,
        "image_codes": _IMAGE_CODES,
        "text_moved": _TEXT_MOVED,
        "image_moved": _IMAGE_MOVED,
        "retired_at": Column(_INT, "the day on which the item was first missing, in ms since the epoch"),
    },
    unique=(("item_id",), ("text_codes",), ("image_codes",)),
    sorted_by=("item_id",),
    description="One row per item that has left the catalogue but whose semantic IDs are still reserved; stored beside "
    "semantic_ids.",
)
FORMER_ITEMS = table_schema(
    "former_items",
    {
        "item_id": _ITEM_ID,
        **{name: Column(RAW_ITEMS.columns[name], RAW_ITEMS.column_descriptions[name], nullable=True) for name in _TOLD},
        "source_file": _SOURCE_FILE,
        "source_row": _SOURCE_ROW,
        "left_at": Column(_INT, "the day on which the item was first missing, in ms since the epoch"),
    },
    unique=(("item_id",),),
    sorted_by=("item_id",),
    description="One row per item that was once in the catalogue and no longer is, as it was last seen; stored beside "
    "raw_items.",
)
UNLISTED_ITEMS = table_schema(
    "unlisted_items",
    {
        "item_index": _ITEM_INDEX,
        "item_id": _ITEM_ID,
        "left_at": Column(_INT, "the day on which the item was first missing, in ms since the epoch"),
    },
    unique=(("item_index",), ("item_id",)),
    sorted_by=("item_index",),
    description="One row per item of `items` that is no longer in the catalogue. It stays in histories and is trained "
    "on, but it is never recommended; stored beside items.",
)
PREDICTIONS = table_schema(
    "predictions",
    {
        "system": Column(_STRING, "what ranked the items: the fused model or one retrieval route"),
        "exclude_seen": Column(_BOOL, "whether the items of the user's history were left out"),
        "user_index": Column(_INT, "the user's row in `histories`"),
        "item_indices": Column(_INTS, "the rows of the top items in `items`, best first"),
        "scores": Column(pl.List(pl.Float64()), "the score of each of those items"),
    },
    unique=(("system", "exclude_seen", "user_index"),),
    sorted_by=("system", "exclude_seen", "user_index"),
    description="The top items per system and tested user.",
)
RECOMMENDATIONS = table_schema(
    "recommendations",
    {
        "user_id": Column(_STRING, "the user's key, as in `histories`"),
        "item_ids": Column(pl.List(_STRING), "the keys of the recommended items, best first"),
        "scores": Column(pl.List(_FLOAT), "the score of each of those items"),
        "fallback": Column(_STRING, "`popularity` if the model knows no item of the user's history, else `none`"),
        "model": Column(_STRING, "the version that recommended, as models:/NAME/VERSION"),
        "as_of": Column(_INT, "the time of the newest interaction that was read, in ms since the epoch"),
    },
    unique=(("user_id",),),
    description="A shard of the recommendations: one row per user.",
)
NEAREST_CODES = table_schema(
    "nearest_codes",
    {
        "codes": Column(_INTS, "the item's nearest code at each level, before collisions are resolved"),
        "entering": Column(ANY_WIDTH_VECTOR, "the residuals that entered the last two levels, concatenated"),
    },
    description="A shard of the quantized catalogue: one row per item.",
)
FETCH_FAILURES = table_schema(
    "fetch_failures",
    {
        "item_id": _ITEM_ID,
        "image_url": Column(_STRING, "the address that was tried, without passwords and signatures"),
        "reason": Column(_STRING, "the kind of failure"),
        "detail": Column(_STRING, "what exactly went wrong"),
        "attempts": Column(_INT, "how many times the address was tried"),
    },
    unique=(("item_id",),),
    sorted_by=("item_id",),
    description="One row per image that the last `macrec fetch images` could not download; stored in the data folder.",
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
"""Asset name -> the schema of its table."""
SIDE_TABLES: dict[str, TableSchema] = {
    "former_items": FORMER_ITEMS,
    "unlisted_items": UNLISTED_ITEMS,
    "retired_ids": RETIRED_IDS,
}
"""Tables that are stored in the same version as an asset's own table, and left out if they would have no rows."""
