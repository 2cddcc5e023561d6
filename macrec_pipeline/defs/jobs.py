"""What can be launched: the whole pipeline, or its parts, for one data set (a partition) a run."""

import dagster as dg

from macrec_pipeline.defs.asset_context import SETTINGS_TAG

FULL_PIPELINE = "full_pipeline"
REFRESH = "refresh"
EVALUATE_CHAMPION = "evaluate_champion"
BATCH_RECOMMENDATIONS = "batch_recommendations"

# What a job lays over the settings of each of its runs, wherever the run was launched.
SETTINGS: dict[str, tuple[str, ...]] = {REFRESH: ("identity.mode=append", "recommender.warm_start=true")}

# In the UI each asset runs in a process of its own, forked from one that has loaded what all of them need, which takes
# longer than most assets of a small data set; two at a time, since each may use several threads. The command line runs
# everything in its own process instead.
EXECUTOR = dg.multiprocess_executor.configured(
    {
        "max_concurrent": 2,
        "start_method": {"forkserver": {"preload_modules": ["macrec_pipeline.definitions", "torch", "mlflow"]}},
    },
    name="two_at_a_time",
)

# What is asked of the champion, whenever it is wanted, is no part of making a model.
_MODEL = dg.AssetSelection.all() - dg.AssetSelection.groups("recommendations", "monitoring")

JOBS = [
    dg.define_asset_job(
        FULL_PIPELINE,
        selection=_MODEL,
        description="Everything, from the raw files of a data set to a registered model.",
    ),
    dg.define_asset_job(
        REFRESH,
        selection=_MODEL,
        tags={SETTINGS_TAG: " ".join(SETTINGS[REFRESH])},
        description="New interactions: items keep their semantic IDs and new ones get theirs, training starts from the "
        "weights of before, and a challenger is registered.",
    ),
    dg.define_asset_job(
        BATCH_RECOMMENDATIONS,
        selection=dg.AssetSelection.assets("recommendations"),
        description="Every user's top items by the champion, as parquet shards; a killed run goes on after the last.",
    ),
    dg.define_asset_job(
        "prepare_data",
        selection=dg.AssetSelection.groups("ingestion"),
        description="The files of a data set, cleaned: see what is kept, what is dropped and why, before training.",
    ),
    dg.define_asset_job(
        "train_again",
        selection=dg.AssetSelection.assets("recommender").downstream() & _MODEL,
        description="A recommender on the semantic IDs that are there, its evaluation and its registration.",
    ),
    dg.define_asset_job(
        EVALUATE_CHAMPION,
        selection=dg.AssetSelection.groups("ingestion", "monitoring"),
        description="The newest files of a data set, cleaned, and what the registered champion is worth on them.",
    ),
]
