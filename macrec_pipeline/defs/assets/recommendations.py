"""What every user of a data set is recommended by a registered model: the table that mails and shop pages read."""

import os
from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl

from macrec_pipeline.defs.asset_context import AssetContext, stage
from macrec_pipeline.defs.presentation import preview
from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.sharded_tasks import Recommending
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage import write_shards
from macrec_pipeline.storage.table_files import table_file

# What a worker decodes at least to read its users.
_USERS_A_GROUP = 10_000


@dg.asset(
    deps=["interactions", "items", "registered_model"],
    partitions_def=DATASETS,
    group_name="recommendations",
    kinds={"torch", "parquet"},
    code_version="1",
    pool=GPU_POOL,
    description="The top items of every user by the champion, from whole histories: parquet shards of so many users.",
)
def recommendations(context: dg.AssetExecutionContext, settings: Settings) -> dg.MaterializeResult[Any]:
    """All interactions and a registered bundle -> a folder of `RECOMMENDATIONS`, `part-00000.parquet` onwards."""
    from macrec_pipeline.data.histories.build import build_histories
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.tracking import model_uri, registered_bundle

    with stage(context, settings, "recommendations") as work, work.store.scratch("recommendations") as scratch:
        scratch.mkdir(parents=True, exist_ok=True)
        asked, runtime = work.config.recommendations, work.config.runtime.for_shards()
        users = build_histories(work.scan("interactions"), work.table("items"))
        uri, home = model_uri(work.dataset, asked.model), settings.home_folder()
        with registered_bundle(uri, home, within=scratch) as registered:
            details = {
                "model": registered.uri,
                "bundle_digest": registered.digest,
                "top_k": asked.top_k,
                "exclude_seen": asked.exclude_seen,
                "inputs": {name: work.store.manifest(name).digest for name in ("interactions", "items")},
            }
            shards = write_shards(
                scratch / "shards",
                RECOMMENDATIONS,
                Recommending(
                    registered.folder,
                    table_file(work.folder("items"), "items"),
                    _written(users, scratch / "histories.parquet"),
                    asked.top_k,
                    asked.exclude_seen,
                ),
                num_rows=users.height,
                rows_per_shard=asked.users_per_shard,
                depends_on=details,
                runtime=runtime,
                device=prepare_device(runtime),
                progress=work.progress,
            )
        with work.new_folder(details=details | {"users": users.height}) as folder:
            for shard in shards:
                os.link(shard, folder / shard.name)  # the scratch keeps its name until the whole is published
        return _report(work, model=registered.uri, users=users.height, shards=len(shards))


def _written(users: pl.DataFrame, path: Path) -> Path:
    users.select("user_id", "item_indices").write_parquet(path, row_group_size=_USERS_A_GROUP)
    return path


def _report(work: AssetContext, *, model: str, users: int, shards: int) -> dg.MaterializeResult[Any]:
    table = pl.scan_parquet(work.store.location("recommendations") / "part-*.parquet")
    unknown = table.filter(pl.col("fallback") != "none").select(pl.len()).collect().item()
    return work.report(
        summary=f"{users:,} users by {model}, shards: {shards}",
        model=model,
        users=users,
        shards=shards,
        users_without_a_known_item=unknown,
        first_rows=preview(table.head(5).collect(), list(RECOMMENDATIONS.columns)),
    )
