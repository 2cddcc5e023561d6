"""What can be launched: the whole pipeline, or its parts, for one data set (a partition) a run."""

import dagster as dg

FULL_PIPELINE, EVALUATE_CHAMPION = "full_pipeline", "evaluate_champion"

# In the UI each asset runs in a process of its own, forked from one that has these definitions loaded; two at a time,
# since each may use several threads. The command line runs everything in its own process instead.
EXECUTOR = dg.multiprocess_executor.configured(
    {
        "max_concurrent": 2,
        "start_method": {"forkserver": {"preload_modules": ["macrec_pipeline.definitions"]}},
    },
    name="two_at_a_time",
)

JOBS = [
    dg.define_asset_job(
        FULL_PIPELINE,
        selection=dg.AssetSelection.all() - dg.AssetSelection.groups("monitoring"),
        description="Everything, from the raw files of a data set to a registered model.",
    ),
    dg.define_asset_job(
        "prepare_data",
        selection=dg.AssetSelection.groups("ingestion"),
        description="The files of a data set, cleaned: see what is kept, what is dropped and why, before training.",
    ),
    dg.define_asset_job(
        "train_again",
        selection=dg.AssetSelection.assets("recommender").downstream(),
        description="A recommender on the semantic IDs that are there, its evaluation and its registration.",
    ),
    dg.define_asset_job(
        EVALUATE_CHAMPION,
        selection=dg.AssetSelection.groups("ingestion", "monitoring"),
        description="The newest files of a data set, cleaned, and what the registered champion is worth on them.",
    ),
]
