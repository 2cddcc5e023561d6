"""Ingestion: the raw tables as they were found, the clean tables, and one history per user."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.datasets import IndexedSource
from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.ids import continuity
from macrec_pipeline.defs.manifest_keys import CATALOGUE, LOST_CELLS, MAY_BE_UNTOUCHED
from macrec_pipeline.defs.presentation import markdown, preview, table_metadata
from macrec_pipeline.defs.resources import DATASETS, Settings
from macrec_pipeline.errors import SchemaError, StorageError
from macrec_pipeline.runtime.text_sanitizing import as_markdown
from macrec_pipeline.schemas import FORMER_ITEMS

if TYPE_CHECKING:
    from macrec_pipeline.data.cleaning.result import CleaningResult

logger = logging.getLogger(__name__)

GROUP = "ingestion"
KINDS = {"polars", "parquet"}
CLEAN_TABLES = {
    "interactions": "The interactions that the pipeline uses, in time order. Cleaning drops invalid and duplicate "
    "rows and applies the k-core: every user and item that is left has a minimum number of interactions. Look at "
    "`density`, `interactions_a_user_median` and `tied_share`, the share of interactions that share user and time with "
    "another one.",
    "items": "The catalogue that is recommended from: one row per item that is left after cleaning, numbered 0 to N-1 "
    "by `item_index`. Look at `without_text` and `without_picture`.",
    "quarantine": "Every raw row that cleaning dropped, with the reason. Look at `reasons`, which counts the rows per "
    "table and reason.",
}


@dg.asset(
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="3",
    metadata=table_metadata("raw_interactions"),
    description="The interaction log as it was found: one row per source row, with unreadable cells left empty. It is "
    "read from the files that the data set names. Look at `unreadable_times`, `rows_with_a_problem` and `lost_cells`.",
)
def raw_interactions(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Read the interaction log to `RAW_INTERACTIONS` in parts, because it may not fit in memory."""
    from macrec_pipeline.data.readers.registry import raw_interaction_parts

    with open_asset(context, settings, "raw_interactions") as asset:
        lost: list[dict[str, Any]] = []
        parts = raw_interaction_parts(asset.spec, asset.data_folder, lost=lost)
        asset.write_slices(parts, details={LOST_CELLS: lost})
        metadata, first_rows = _describe_raw_log(asset.scan_table("raw_interactions"))
        num_rows = metadata.pop("rows")
        return asset.report(
            summary=f"{num_rows:,} rows",
            **{"dagster/row_count": num_rows},
            **metadata,
            **_describe_lost_cells(lost),
            first_rows=first_rows,
        )


@dg.asset(
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="3",
    metadata=table_metadata("raw_items"),
    description="The catalogue as it was found: titles, texts and image paths. It is read from the files that the data "
    "set names. Look at `without_text`, `without_picture` and `repeated_item_ids`.",
)
def raw_items(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Read the catalogue to `RAW_ITEMS`."""
    from macrec_pipeline.data.readers.registry import read_raw_items, source_notices

    with open_asset(context, settings, "raw_items") as asset:
        lost: list[dict[str, Any]] = []
        table = read_raw_items(asset.spec, asset.data_folder, lost=lost)
        gone = former_items(asset, table)
        for notice in source_notices(asset.spec, asset.data_folder, table):
            logger.warning("%s: %s", asset.dataset, notice)
        return asset.save_table(
            table,
            details={LOST_CELLS: lost},
            beside={"former_items": gone},
            without_title=table["title"].null_count(),
            without_text=table["text"].null_count(),
            without_picture=table["image_path"].null_count(),
            rows_with_a_problem=table["problem"].count(),
            repeated_item_ids=table.height - table["item_id"].n_unique(),
            items_that_have_left=gone.height,
            **_describe_lost_cells(lost),
            first_rows=preview(table, ["item_id", "title", "text"]),
        )


def former_items(asset: AssetContext, present: pl.DataFrame) -> pl.DataFrame:
    """The items that an earlier version of the catalogue had and the present one lacks, as `FORMER_ITEMS`."""
    from macrec_pipeline.data.cleaning.clean import remember_former_items

    # Indexed files number their items, so they always belong to one edition with all of them.
    if not asset.store.has("raw_items") or isinstance(asset.spec.source, IndexedSource):
        return FORMER_ITEMS.empty()
    try:
        previous = asset.store.read_table("raw_items")
        gone_before = asset.store.read_beside("raw_items", "former_items")
    except (StorageError, SchemaError) as error:
        logger.warning(
            "Items that have left the catalogue are unknown from now on, because its previous version cannot be read: "
            "%s",
            error,
        )
        return FORMER_ITEMS.empty()
    return remember_former_items(gone_before, previous, present, today=continuity.today())


@dg.multi_asset(
    name="clean_tables",
    specs=[
        dg.AssetSpec(
            name,
            deps=["raw_interactions", "raw_items"],
            group_name=GROUP,
            kinds=KINDS,
            code_version="4",
            description=description,
            metadata=table_metadata(name),
        )
        for name, description in CLEAN_TABLES.items()
    ],
    partitions_def=DATASETS,
)
def clean_tables(context: dg.AssetExecutionContext, settings: Settings) -> Iterator[dg.MaterializeResult[Any]]:
    """Clean the raw tables. One step makes all three tables, because each raw row ends in exactly one of them."""
    from macrec_pipeline.data.cleaning.clean import clean_log

    with ExitStack() as stack:
        assets = {name: stack.enter_context(open_asset(context, settings, name)) for name in CLEAN_TABLES}
        interactions, items, quarantine = assets["interactions"], assets["items"], assets["quarantine"]
        cleaning = interactions.config.cleaning
        listed = interactions.read_table("raw_items")
        log = clean_log(
            interactions.scan_table("raw_interactions"),
            listed,
            cleaning,
            seed=interactions.config.seed,
            former_items=interactions.store.read_beside("raw_items", "former_items"),
        )
        _warn_of_unlisted_items(log, listed["item_id"], share=cleaning.max_quarantined_share)
        reasons = log.quarantine_counts()
        results = [
            _save_interactions(interactions, log),
            items.save_table(
                log.items,
                details={
                    CATALOGUE: _item_order_digest(log.items),
                    MAY_BE_UNTOUCHED: cleaning.keep_items_without_interactions,
                },
                beside={"unlisted_items": log.unlisted_items},
                **_describe_items(log.items),
                no_longer_in_the_catalogue=log.unlisted_items.height,
            ),
            quarantine.save_slices(
                log.quarantine(), num_rows=sum(row[-1] for row in reasons), reasons=_reasons_table(reasons)
            ),
        ]
    yield from results


@dg.asset(
    deps=["interactions", "items"],
    partitions_def=DATASETS,
    group_name=GROUP,
    kinds=KINDS,
    code_version="4",
    metadata=table_metadata("histories"),
    description="One row per user: the item indices in time order. The last item is the test target, the one before "
    "it the validation target, and the rest is for training; a user without a test target lacks the last item. Look at "
    "`median_length`, `training_targets` and `undetermined_targets`: the test users who have several interactions at "
    "the time of the test target, so that `cleaning.ties` chose which of them is the target.",
)
def histories(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Build `HISTORIES` from the clean interactions."""
    from macrec_pipeline.data.histories.build import build_histories
    from macrec_pipeline.data.histories.splits import find_period
    from macrec_pipeline.data.ties import count_tied_in_histories, count_undetermined_targets, describe_targets

    with open_asset(context, settings, "histories") as asset:
        interactions = asset.scan_table("interactions")
        period = find_period(interactions, asset.config.split)
        table = build_histories(interactions, asset.read_table("items"), period)
        lengths, num_held_out = table["item_indices"].list.len(), 1 + table["tested"].cast(pl.Int64)
        num_tested, num_undetermined = int(table["tested"].sum()), count_undetermined_targets(table)
        if num_undetermined:
            logger.info(
                "%s", describe_targets(num_undetermined, num_tested=num_tested, rule=asset.config.cleaning.ties)
            )
        split = {} if period is None else {"test_period": str(period), **_describe_split(table, interactions)}
        return asset.save_table(
            table,
            details={} if period is None else {"split": period.details()},
            interactions=int(lengths.sum()),
            shortest=int(lengths.min()),  # type: ignore[arg-type]
            median_length=float(lengths.median()),  # type: ignore[arg-type]
            longest=int(lengths.max()),  # type: ignore[arg-type]
            training_targets=int((lengths.cast(pl.Int64) - num_held_out - 1).clip(lower_bound=0).sum()),
            tied_share=count_tied_in_histories(table) / int(lengths.sum()),
            test_users=num_tested,
            undetermined_targets=num_undetermined,
            **split,
        )


def _save_interactions(asset: AssetContext, log: "CleaningResult") -> dg.MaterializeResult[Any]:
    from macrec_pipeline.data.ties import TiedRows, tie_warning

    tied, num_rows, rule = TiedRows(), log.num_interactions, asset.config.cleaning.ties
    asset.write_slices(tied.count(log.interactions()))
    warning = tie_warning(rule, num_tied=tied.num_rows, num_rows=num_rows)
    if warning:
        logger.warning("%s", warning)
    return asset.report(
        summary=f"{num_rows:,} rows",
        **{"dagster/row_count": num_rows},
        **_describe_interactions(log),
        tied_share=tied.num_rows / num_rows,
        ties=rule,
        **({"ties_warning": warning} if warning else {}),
    )


def _warn_of_unlisted_items(log: "CleaningResult", catalogue_ids: pl.Series, *, share: float) -> None:
    """Warn if a larger share of the interactions than this names an item that no catalogue has listed."""
    from macrec_pipeline.data.cleaning.result import (
        compare_unlisted_ids,
        count_unlisted_interactions,
        describe_unlisted_interactions,
    )

    if count_unlisted_interactions(log.log, log.rules) > share * len(log.log):
        logger.warning(
            "%s They are in quarantine as unknown_item, and nothing is learned from them. %s To learn from items that "
            "the shop no longer sells, add them to the catalogue file for one run. If the IDs of the two files should "
            "match, look at examples in the quarantine table; `cleaning.max_unlisted_share` stops such a run.",
            describe_unlisted_interactions(log.log, log.rules),
            compare_unlisted_ids(log.log, log.rules, catalogue_ids),
        )


def _describe_split(histories: pl.DataFrame, interactions: pl.LazyFrame) -> dict[str, Any]:
    """Return how many users a split by time tests, only trains on, and leaves out."""
    num_users = int(interactions.select(pl.col("user_id").n_unique()).collect(engine="streaming").item())
    num_tested = int(histories["tested"].sum())
    return {
        "users_tested": num_tested,
        "users_only_trained_on": histories.height - num_tested,
        "users_with_too_little_before": num_users - histories.height,
    }


def _describe_raw_log(log: pl.LazyFrame) -> tuple[dict[str, Any], dg.MetadataValue[Any]]:
    """Metadata and first rows of `RAW_INTERACTIONS`, computed by streaming."""
    timestamp = pl.col("timestamp")
    counts = log.select(
        pl.len().alias("rows"),
        timestamp.null_count().alias("unreadable_times"),
        pl.col("problem").count().alias("rows_with_a_problem"),
        timestamp.min().alias("first"),
        timestamp.max().alias("last"),
    )
    metadata = counts.collect(engine="streaming").row(0, named=True)
    metadata["period"] = _format_period(metadata.pop("first"), metadata.pop("last"))
    for name in ("user", "item"):  # distinct hashes take a third of the memory of distinct IDs
        distinct = log.select(pl.col(f"{name}_id").drop_nulls().hash()).unique().select(pl.len())
        metadata[f"{name}s"] = int(distinct.collect(engine="streaming").item())
    return metadata, preview(log.head(5).collect(), ["user_id", "item_id", "rating", "timestamp"])


def _describe_lost_cells(lost: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return how many cells reading turned into missing values, as a number and per column; empty if there are none."""
    if not lost:
        return {}
    header = ["| file | column | reason | cells |", "| --- | --- | --- | ---: |"]
    rows = [
        f"| {as_markdown(each['file'])} | {as_markdown(each['column'])} | {each['reason']} | {each['num_cells']:,} |"
        for each in lost
    ]
    return {
        "unreadable_cells": sum(each["num_cells"] for each in lost if each["reason"] == "unreadable"),
        "lost_cells": markdown("\n".join([*header, *rows])),
    }


def _describe_interactions(log: "CleaningResult") -> dict[str, Any]:
    per_user = log.interactions_per_user()
    return {
        "users": len(per_user),
        "items": log.items.height,
        "density": log.num_interactions / (len(per_user) * log.items.height),
        "period": _format_period(*log.period()),
        "interactions_a_user_median": float(np.median(per_user)),
    }


def _item_order_digest(items: pl.DataFrame) -> str:
    """SHA-256, in hexadecimal, of the item IDs in their order."""
    return hashlib.sha256(json.dumps(items["item_id"].to_list()).encode()).hexdigest()


def _describe_items(items: pl.DataFrame) -> dict[str, Any]:
    return {
        "without_text": items["text"].null_count(),
        "without_picture": items["image_path"].null_count(),
        "categories": items["categories"].explode().drop_nulls().n_unique(),
        "without_interactions": int((items["num_interactions"] == 0).sum()),
        "interactions_an_item_median": float(items["num_interactions"].median()),  # type: ignore[arg-type]
        "first_rows": preview(items, ["item_id", "title", "text"]),
    }


def _reasons_table(reasons: Sequence[tuple[str, str, int]]) -> dg.MetadataValue[Any]:
    rows = [f"| {table} | {reason} | {count:,} |" for table, reason, count in reasons]
    return markdown("\n".join(["| table | reason | rows |", "| --- | --- | ---: |", *rows]))


def _format_period(first: Any, last: Any) -> str:
    """Format two times in milliseconds since the epoch as dates, or as numbers if no calendar holds them."""
    if not isinstance(first, int) or not isinstance(last, int):
        return "no readable time"
    try:
        days = (datetime.fromtimestamp(value / 1000, tz=UTC).date().isoformat() for value in (first, last))
        return " to ".join(days)
    except (OverflowError, ValueError, OSError):
        return f"{first} to {last} ms"
