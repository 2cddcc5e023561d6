"""Recommendations by a registered model for every user of a data set, as a table for mailings and shop pages."""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.presentation import preview
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.sharded_tasks import RecommendationTask
from macrec_pipeline.errors import DataError
from macrec_pipeline.schemas import RAW_INTERACTIONS, RECOMMENDATIONS
from macrec_pipeline.storage import write_shards

logger = logging.getLogger(__name__)

# To read its users, a worker decodes whole row groups.
_USERS_PER_ROW_GROUP = 10_000


@dg.asset(
    deps=["registered_model"],
    partitions_def=DATASETS,
    group_name="recommendations",
    kinds={"torch", "parquet"},
    code_version="2",
    pool=GPU_POOL,
    description="The top items for every user of today's log, recommended by the champion from the user's whole "
    "history. It reads the files of the log and the catalogue itself, and recommends only what is in today's "
    "catalogue. The folder holds Parquet shards, each with a fixed number of users. Look at "
    "`users_without_a_known_item`: those users got the most popular items.",
)
def recommendations(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Recommend for every user with a registered bundle, to shards of `RECOMMENDATIONS` (`part-00000.parquet`, ...)."""
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.tracking import model_uri, registered_bundle

    with (
        open_asset(context, settings, "recommendations") as asset,
        asset.store.scratch("recommendations") as scratch,
    ):
        scratch.mkdir(parents=True, exist_ok=True)
        config, runtime = asset.config.recommendations, asset.config.runtime.for_shards()
        today = _read_today(asset, scratch)
        uri, home = model_uri(asset.dataset, config.model), settings.home_folder()
        with registered_bundle(uri, home, within=scratch) as registered:
            details = {
                "model": registered.uri,
                "bundle_digest": registered.digest,
                "top_k": config.top_k,
                "exclude_seen": config.exclude_seen,
                "as_of": today.as_of,
                "inputs": {
                    name: _digest(path) for name, path in (("log", today.histories), ("items", today.catalogue))
                },
            }
            shards = write_shards(
                scratch / "shards",
                RECOMMENDATIONS,
                RecommendationTask(
                    registered.folder,
                    today.histories,
                    today.catalogue,
                    registered.uri,
                    today.as_of,
                    config.top_k,
                    config.exclude_seen,
                ),
                num_rows=today.num_users,
                rows_per_shard=config.users_per_shard,
                depends_on=details,
                runtime=runtime,
                device=prepare_device(runtime),
                progress=asset.progress,
            )
        with asset.new_folder(details=details | {"users": today.num_users}) as folder:
            for shard in shards:
                os.link(shard, folder / shard.name)  # the scratch folder keeps its copy until all are published
        return _report_recommendations(asset, today, model=registered.uri, num_shards=len(shards))


@dataclass(frozen=True)
class _Today:
    """What the files of the data set say now.

    Attributes:
        histories: a Parquet table with the `user_id` and `item_ids` of every user of the log, oldest item first, and
            the rules of each user, if the data set has rules.
        catalogue: a Parquet table with the `item_id` of every item of the catalogue that is in stock.
        num_items: rows of `catalogue`.
        num_users_with_rules: rows of `histories` with a rule.
        num_users: rows of `histories`.
        as_of: the time of the newest interaction, in ms since the epoch.
    """

    histories: Path
    catalogue: Path
    num_users: int
    as_of: int
    num_items: int
    num_users_with_rules: int


def _read_today(asset: AssetContext, scratch: Path) -> _Today:
    """Read and clean the log and the catalogue, without the k-core, into the scratch folder.

    The tables of the last run are not read, whatever state it left them in, except to learn which items the catalogue
    had before. A user none of whose items is known has an empty history.
    """
    from macrec_pipeline.data.cleaning.clean import clean_log
    from macrec_pipeline.data.cleaning.encoded_log import KEPT
    from macrec_pipeline.data.cleaning.result import UNKNOWN_ITEM
    from macrec_pipeline.data.readers.registry import raw_interaction_parts, read_raw_items
    from macrec_pipeline.defs.assets.interactions import former_items

    parts = scratch / "log"
    parts.mkdir(exist_ok=True)
    for old in parts.glob("*.parquet"):  # of an attempt that was killed, perhaps with an older log
        old.unlink()
    for number, part in enumerate(raw_interaction_parts(asset.spec, asset.data_folder)):
        part.write_parquet(parts / f"{number:06d}.parquet")
    raw_items = read_raw_items(asset.spec, asset.data_folder)
    files = sorted(parts.glob("*.parquet"))
    log = clean_log(
        pl.scan_parquet(files, glob=False) if files else RAW_INTERACTIONS.empty(),
        raw_items,
        asset.config.cleaning,
        seed=asset.config.seed,
        former_items=former_items(asset, raw_items),
        apply_k_core=False,
    )
    histories = pl.concat(log.interactions()).group_by("user_id", maintain_order=True).agg(item_ids=pl.col("item_id"))
    unknown = next(number for number, rule in enumerate(log.rules, start=1) if rule.reason == UNKNOWN_ITEM)
    is_usable = (log.log.reasons == KEPT) | (log.log.reasons == unknown)
    everyone = pl.DataFrame({"user_id": log.log.user_ids.gather(np.unique(log.log.users[is_usable]))})
    users = everyone.join(histories, on="user_id", how="left").with_columns(pl.col("item_ids").fill_null([]))
    users, num_users_with_rules = _with_rules(asset, users)
    users.sort("user_id").write_parquet(scratch / "histories.parquet", row_group_size=_USERS_PER_ROW_GROUP)
    listed = raw_items.filter(pl.col("problem").is_null() & (pl.col("item_id") != "")).select("item_id").unique()
    listed = _in_stock(asset, listed)
    listed.sort("item_id").write_parquet(scratch / "catalogue.parquet")
    return _Today(
        scratch / "histories.parquet",
        scratch / "catalogue.parquet",
        users.height,
        int(log.log.timestamps[is_usable].max()),
        listed.height,
        num_users_with_rules,
    )


def _in_stock(asset: AssetContext, listed: pl.DataFrame) -> pl.DataFrame:
    """Return the items of the catalogue that the stock list has, or all if there is no stock list."""
    from macrec_pipeline.data.readers.recommendation_files import read_stock

    mapping = asset.spec.recommendations.stock
    if mapping is None:
        return listed
    stock = read_stock(mapping, asset.data_folder)
    found = listed.filter(pl.col("item_id").is_in(list(stock)))
    if found.is_empty():
        raise DataError(
            f"{mapping.file}: none of the {len(stock):,} items in stock is in the catalogue, so nothing can be "
            f"recommended. In stock, for example: {_examples(stock)}; in the catalogue: "
            f"{_examples(listed['item_id'])}. Check `recommendations.stock` in the data set's file."
        )
    return found


def _with_rules(asset: AssetContext, users: pl.DataFrame) -> tuple[pl.DataFrame, int]:
    """Add the rules of each user, if the data set has rules, and return how many users have one."""
    from macrec_pipeline.data.readers.recommendation_files import read_user_rules

    mapping = asset.spec.recommendations.rules
    if mapping is None:
        return users, 0
    rules = read_user_rules(mapping, asset.data_folder)
    num_known = int(rules["user_id"].is_in(users["user_id"].to_list()).sum())
    if rules.height > num_known:
        logger.warning(
            "%s: %s of %s users with rules are not in the log. They get no recommendations, so their rules have no "
            "effect.",
            mapping.file,
            f"{rules.height - num_known:,}",
            f"{rules.height:,}",
        )
    return users.join(rules, on="user_id", how="left"), num_known


def _examples(ids: Iterable[str]) -> str:
    return ", ".join(repr(each) for each in sorted(ids)[:3]) or "nothing"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _report_recommendations(
    asset: AssetContext, today: _Today, *, model: str, num_shards: int
) -> dg.MaterializeResult[Any]:
    parts = sorted(asset.store.location("recommendations").glob("part-*.parquet"))
    table = pl.scan_parquet(parts, glob=False)  # the path of the home may contain characters of a pattern
    num_fallbacks = table.filter(pl.col("fallback") != "none").select(pl.len()).collect().item()
    return asset.report(
        summary=f"{today.num_users:,} users by {model}, shards: {num_shards}",
        model=model,
        users=today.num_users,
        users_with_rules=today.num_users_with_rules,
        items_that_may_be_recommended=today.num_items,
        shards=num_shards,
        users_without_a_known_item=num_fallbacks,
        first_rows=preview(table.head(5).collect(), list(RECOMMENDATIONS.columns)),
    )
