"""What every user of a data set is recommended by a registered model: the table that mails and shop pages read."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dagster as dg
import numpy as np
import polars as pl

from macrec_pipeline.defs.resources import DATASETS, GPU_POOL, Settings
from macrec_pipeline.defs.tracked import Stage, preview, sequences_of, stage
from macrec_pipeline.schemas import RECOMMENDATIONS
from macrec_pipeline.storage import write_shards

if TYPE_CHECKING:
    from macrec_pipeline.recommender import RecommenderBundle


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
    from macrec_pipeline.data.histories import build_histories
    from macrec_pipeline.recommender import RecommenderBundle
    from macrec_pipeline.runtime.devices import prepare_device
    from macrec_pipeline.tracking import model_uri, registered_bundle

    with stage(context, settings, "recommendations") as work, work.store.scratch("recommendations") as scratch:
        asked, users = work.config.recommendations, build_histories(work.scan("interactions"), work.table("items"))
        with registered_bundle(model_uri(work.dataset, asked.model), settings.home_folder()) as registered:
            bundle = RecommenderBundle.load(registered.folder, device=prepare_device(work.config.runtime))
        details = {
            "model": registered.uri,
            "bundle_digest": registered.digest,
            "top_k": asked.top_k,
            "exclude_seen": asked.exclude_seen,
            "inputs": {name: work.store.manifest(name).digest for name in ("interactions", "items")},
        }
        shards = write_shards(
            scratch,
            RECOMMENDATIONS,
            _recommending(work, bundle, users),
            num_rows=users.height,
            rows_per_shard=asked.users_per_shard,
            depends_on=details,
        )
        with work.new_folder(details=details | {"users": users.height}) as folder:
            for shard in shards:
                os.link(shard, folder / shard.name)  # the scratch keeps its name until the whole is published
        return _report(work, model=registered.uri, users=users.height, shards=len(shards))


def _recommending(work: Stage, bundle: "RecommenderBundle", users: pl.DataFrame) -> Callable[[int, int], pl.DataFrame]:
    asked, item_ids = work.config.recommendations, np.array(work.table("items")["item_id"].to_list(), dtype=object)

    def recommend(first: int, count: int) -> pl.DataFrame:
        some = users.slice(first, count)
        histories = [item_ids[history].tolist() for history in sequences_of(some)]
        answers = bundle.recommend_ids(histories, k=asked.top_k, exclude_seen=asked.exclude_seen)
        work.progress("recommending", first + count, users.height)
        columns = {name: [getattr(answer, name) for answer in answers] for name in ("item_ids", "scores", "fallback")}
        return pl.DataFrame({"user_id": some["user_id"], **columns}, schema=RECOMMENDATIONS.columns)

    return recommend


def _report(work: Stage, *, model: str, users: int, shards: int) -> dg.MaterializeResult[Any]:
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
