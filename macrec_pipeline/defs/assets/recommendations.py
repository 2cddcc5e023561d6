"""Recommendations by a registered model for every user of a data set, as a table for mailings and shop pages."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, open_asset
from macrec_pipeline.defs.presentation import preview
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.sharded_tasks import RecommendationTask
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage import write_shards
from macrec_pipeline.storage.table_files import table_file

# To read its users, a worker decodes whole row groups.
_USERS_PER_ROW_GROUP = 10_000


@dg.asset(
    deps=["interactions", "items", "registered_model"],
    partitions_def=DATASETS,
    group_name="recommendations",
    kinds={"torch", "parquet"},
    code_version="1",
    pool=GPU_POOL,
    description="The top items for every user, recommended by the champion from the user's whole history. The folder "
    "holds Parquet shards, each with a fixed number of users. Look at `users_without_a_known_item`: those users got "
    "the most popular items.",
)
def recommendations(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """Recommend for every user with a registered bundle, to shards of `RECOMMENDATIONS` (`part-00000.parquet`, ...)."""
    from macrec_pipeline.data.histories.build import build_histories
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.tracking import model_uri, registered_bundle

    with (
        open_asset(context, settings, "recommendations") as asset,
        asset.store.scratch("recommendations") as scratch,
    ):
        scratch.mkdir(parents=True, exist_ok=True)
        config, runtime = asset.config.recommendations, asset.config.runtime.for_shards()
        users = build_histories(asset.scan_table("interactions"), asset.read_table("items"))
        uri, home = model_uri(asset.dataset, config.model), settings.home_folder()
        with registered_bundle(uri, home, within=scratch) as registered:
            details = {
                "model": registered.uri,
                "bundle_digest": registered.digest,
                "top_k": config.top_k,
                "exclude_seen": config.exclude_seen,
                "inputs": {name: asset.store.manifest(name).digest for name in ("interactions", "items")},
            }
            shards = write_shards(
                scratch / "shards",
                RECOMMENDATIONS,
                RecommendationTask(
                    registered.folder,
                    table_file(asset.folder("items"), "items"),
                    _write_histories(users, scratch / "histories.parquet"),
                    config.top_k,
                    config.exclude_seen,
                ),
                num_rows=users.height,
                rows_per_shard=config.users_per_shard,
                depends_on=details,
                runtime=runtime,
                device=prepare_device(runtime),
                progress=asset.progress,
            )
        with asset.new_folder(details=details | {"users": users.height}) as folder:
            for shard in shards:
                os.link(shard, folder / shard.name)  # the scratch folder keeps its copy until all are published
        return _report_recommendations(asset, model=registered.uri, num_users=users.height, num_shards=len(shards))


def _write_histories(users: pl.DataFrame, path: Path) -> Path:
    users.select("user_id", "item_indices").write_parquet(path, row_group_size=_USERS_PER_ROW_GROUP)
    return path


def _report_recommendations(
    asset: AssetContext, *, model: str, num_users: int, num_shards: int
) -> dg.MaterializeResult[Any]:
    parts = sorted(asset.store.location("recommendations").glob("part-*.parquet"))
    table = pl.scan_parquet(parts, glob=False)  # the path of the home may contain characters of a pattern
    num_fallbacks = table.filter(pl.col("fallback") != "none").select(pl.len()).collect().item()
    return asset.report(
        summary=f"{num_users:,} users by {model}, shards: {num_shards}",
        model=model,
        users=num_users,
        shards=num_shards,
        users_without_a_known_item=num_fallbacks,
        first_rows=preview(table.head(5).collect(), list(RECOMMENDATIONS.columns)),
    )
