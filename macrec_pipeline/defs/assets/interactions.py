"""Ingestion: the raw tables as found, what is left after cleaning, and one history a user."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import CATALOGUE, MAY_BE_UNTOUCHED, stage
from macrec_pipeline.defs.presentation import markdown, preview, table_metadata
from macrec_pipeline.defs.resources import DATASETS, Settings

if TYPE_CHECKING:
    from macrec_pipeline.data.cleaning.result import CleaningResult

GROUP = "ingestion"
KINDS = {"polars", "parquet"}
CLEAN = {
    "interactions": "The interactions that are used: valid, deduplicated, in the k-core, ordered in time.",
    "items": "The catalogue that is recommended from, one row an item that is left, item_index 0..N-1.",
    "quarantine": "Every raw row that was dropped, and the reason. Nothing disappears in silence.",
}


@dg.asset(
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="3",
    metadata=table_metadata("raw_interactions"),
    description="The interaction log as it was found, one row a source row; unreadable cells are empty.",
)
def raw_interactions(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Files of the data set -> `RAW_INTERACTIONS`, part by part: a log need not fit into memory."""
    from macrec_pipeline.data.readers.registry import raw_interaction_parts

    with stage(context, settings, "raw_interactions") as work:
        work.write_slices(raw_interaction_parts(work.spec, work.data))
        facts, first_rows = _raw_facts(work.scan("raw_interactions"))
        rows = facts.pop("rows")
        return work.report(summary=f"{rows:,} rows", **{"dagster/row_count": rows}, **facts, first_rows=first_rows)


@dg.asset(
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="3",
    metadata=table_metadata("raw_items"),
    description="The catalogue as it was found: titles, texts, and which pictures are there.",
)
def raw_items(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Files of the data set -> `RAW_ITEMS`."""
    from macrec_pipeline.data.readers.registry import read_raw_items

    with stage(context, settings, "raw_items") as work:
        table = read_raw_items(work.spec, work.data)
        return work.save(
            table,
            without_title=table["title"].null_count(),
            without_text=table["text"].null_count(),
            without_picture=table["image_path"].null_count(),
            rows_with_a_problem=table["problem"].count(),
            repeated_item_ids=table.height - table["item_id"].n_unique(),
            first_rows=preview(table, ["item_id", "title", "text"]),
        )


@dg.multi_asset(
    name="clean_tables",
    specs=[
        dg.AssetSpec(
            name,
            deps=["raw_interactions", "raw_items"],
            group_name=GROUP,
            kinds=KINDS,
            code_version="3",
            description=description,
            metadata=table_metadata(name),
        )
        for name, description in CLEAN.items()
    ],
    partitions_def=DATASETS,
)
def clean_tables(context: dg.AssetExecutionContext, settings: Settings) -> Iterator[dg.MaterializeResult[Any]]:
    """Raw tables -> clean interactions, catalogue and quarantine, in one step since each row ends in one of them."""
    from macrec_pipeline.data.cleaning.clean import clean_log

    with ExitStack() as stack:
        stages = {name: stack.enter_context(stage(context, settings, name)) for name in CLEAN}
        work = stages["interactions"]
        log = clean_log(work.scan("raw_interactions"), work.table("raw_items"), work.config.cleaning)
        dropped = log.reasons()
        results = [
            stages["interactions"].save_slices(log.interactions(), rows=log.num_kept, **_interaction_facts(log)),
            stages["items"].save(
                log.items,
                details={
                    CATALOGUE: _item_order(log.items),
                    MAY_BE_UNTOUCHED: work.config.cleaning.keep_items_without_interactions,
                },
                **_item_facts(log.items),
            ),
            stages["quarantine"].save_slices(
                log.quarantine(), rows=sum(row[-1] for row in dropped), reasons=_reasons(dropped)
            ),
        ]
    yield from results


@dg.asset(
    deps=["interactions", "items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="3",
    metadata=table_metadata("histories"),
    description="One row a user: the items in time order. [:-2] trains, [-2] validates, [-1] tests; who is not tested "
    "has no last one.",
)
def histories(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Clean interactions -> `HISTORIES`."""
    from macrec_pipeline.data.histories.build import build_histories
    from macrec_pipeline.data.histories.splits import find_period

    with stage(context, settings, "histories") as work:
        interactions = work.scan("interactions")
        period = find_period(interactions, work.config.split)
        table = build_histories(interactions, work.table("items"), period)
        lengths, held_out = table["item_indices"].list.len(), 1 + table["tested"].cast(pl.Int64)
        of_split = {} if period is None else {"test_period": str(period), **_split_facts(table, interactions)}
        return work.save(
            table,
            details={} if period is None else {"split": period.details()},
            interactions=int(lengths.sum()),
            shortest=int(lengths.min()),  # type: ignore[arg-type]
            median_length=float(lengths.median()),  # type: ignore[arg-type]
            longest=int(lengths.max()),  # type: ignore[arg-type]
            training_targets=int((lengths.cast(pl.Int64) - held_out - 1).clip(lower_bound=0).sum()),
            **of_split,
        )


def _split_facts(table: pl.DataFrame, interactions: pl.LazyFrame) -> dict[str, Any]:
    """How many users and interactions a split by time uses, and for what."""
    users = int(interactions.select(pl.col("user_id").n_unique()).collect(engine="streaming").item())
    tested = int(table["tested"].sum())
    return {
        "users_tested": tested,
        "users_only_trained_on": table.height - tested,
        "users_with_too_little_before": users - table.height,
    }


def _raw_facts(log: pl.LazyFrame) -> tuple[dict[str, Any], dg.MetadataValue[Any]]:
    """What a person wants to know of `RAW_INTERACTIONS`, and its first rows; the log is read, but not held."""
    stamp = pl.col("timestamp")
    counts = log.select(
        pl.len().alias("rows"),
        stamp.null_count().alias("unreadable_times"),
        pl.col("problem").count().alias("rows_with_a_problem"),
        stamp.min().alias("first"),
        stamp.max().alias("last"),
    )
    facts = counts.collect(engine="streaming").row(0, named=True)
    facts["period"] = _period(facts.pop("first"), facts.pop("last"))
    for name in ("user", "item"):  # distinct hashes take a third of the memory of distinct ids
        distinct = log.select(pl.col(f"{name}_id").drop_nulls().hash()).unique().select(pl.len())
        facts[f"{name}s"] = int(distinct.collect(engine="streaming").item())
    return facts, preview(log.head(5).collect(), ["user_id", "item_id", "rating", "timestamp"])


def _interaction_facts(log: "CleaningResult") -> dict[str, Any]:
    of_user = log.interactions_of_user()
    return {
        "users": len(of_user),
        "items": log.items.height,
        "density": log.num_kept / (len(of_user) * log.items.height),
        "period": _period(*log.period()),
        "interactions_a_user_median": float(np.median(of_user)),
    }


def _item_order(table: pl.DataFrame) -> str:
    """SHA-256, in hexadecimal, of the item ids in their order."""
    return hashlib.sha256(json.dumps(table["item_id"].to_list()).encode()).hexdigest()


def _item_facts(table: pl.DataFrame) -> dict[str, Any]:
    return {
        "without_text": table["text"].null_count(),
        "without_picture": table["image_path"].null_count(),
        "categories": table["categories"].explode().drop_nulls().n_unique(),
        "without_interactions": int((table["num_interactions"] == 0).sum()),
        "interactions_an_item_median": float(table["num_interactions"].median()),  # type: ignore[arg-type]
        "first_rows": preview(table, ["item_id", "title", "text"]),
    }


def _reasons(dropped: Sequence[tuple[str, str, int]]) -> dg.MetadataValue[Any]:
    rows = [f"| {name} | {reason} | {count:,} |" for name, reason, count in dropped]
    return markdown("\n".join(["| table | reason | rows |", "| --- | --- | ---: |", *rows]))


def _period(first: Any, last: Any) -> str:
    """First and last day of times in milliseconds since the epoch; what no calendar holds is said as it is."""
    if not isinstance(first, int) or not isinstance(last, int):
        return "no readable time"
    try:
        days = (datetime.fromtimestamp(value / 1000, tz=UTC).date().isoformat() for value in (first, last))
        return " to ".join(days)
    except (OverflowError, ValueError, OSError):
        return f"{first} to {last} ms"
