"""The jobs: the whole pipeline or a part of it, for one data set (one partition) per run."""

import dagster as dg

from macrec_pipeline.defs.prune import remove_what_is_no_longer_needed
from macrec_pipeline.defs.resources import DATASETS
from macrec_pipeline.defs.retention import PRUNE
from macrec_pipeline.defs.run_tags import SETTINGS_TAG

FULL_PIPELINE = "full_pipeline"
REFRESH = "refresh"
EVALUATE_CHAMPION = "evaluate_champion"
BATCH_RECOMMENDATIONS = "batch_recommendations"

JOB_OVERRIDES: dict[str, tuple[str, ...]] = {
    REFRESH: ("identity.mode=append", "recommender.warm_start=true", "sasrec.warm_start=true")
}
"""Settings that a job applies to each of its runs, wherever the run is launched from."""

# In runs of the UI, each asset has a process of its own. It is forked from one that has loaded the packages that all
# assets need, which takes longer than most assets of a small data set. Two assets run at a time, since each may use
# several threads. The command line runs all assets in its own process instead.
EXECUTOR = dg.multiprocess_executor.configured(
    {
        "max_concurrent": 2,
        "start_method": {"forkserver": {"preload_modules": ["macrec_pipeline.definitions", "torch", "mlflow"]}},
    },
    name="two_at_a_time",
)


@dg.job(
    name=PRUNE,
    partitions_def=DATASETS,
    executor_def=dg.in_process_executor,
    description="Removes old model versions, MLflow runs, Dagster runs and backtests of a data set, as its section "
    "`retention` says. The champion, the challenger and what they need are never removed.",
)
def prune_job() -> None:
    """The job `prune`."""
    remove_what_is_no_longer_needed()


# Using the champion, for recommendations or for monitoring, is not part of building a model.
_MODEL_ASSETS = dg.AssetSelection.all() - dg.AssetSelection.groups("recommendations", "monitoring")

JOBS = [
    dg.define_asset_job(
        FULL_PIPELINE,
        selection=_MODEL_ASSETS,
        description="Builds a registered model from the raw files of a data set: cleaning, embeddings, semantic IDs, "
        "training, evaluation and registration. Look at `evaluation_report` for its quality and at `registered_model` "
        "for its version.",
    ),
    dg.define_asset_job(
        REFRESH,
        selection=_MODEL_ASSETS,
        tags={SETTINGS_TAG: " ".join(JOB_OVERRIDES[REFRESH])},
        description="Updates the model with new interactions and items. Existing items keep their semantic IDs, new "
        "items get theirs, and training starts from the previous weights. The result is registered as challenger.",
    ),
    dg.define_asset_job(
        BATCH_RECOMMENDATIONS,
        selection=dg.AssetSelection.assets("recommendations"),
        description="Writes the champion's top items for every user as Parquet shards. A run that was killed continues "
        "after its last finished shard.",
    ),
    dg.define_asset_job(
        "prepare_data",
        selection=dg.AssetSelection.groups("ingestion"),
        description="Reads and cleans the files of a data set without training anything. Look at `quarantine` for what "
        "was dropped and why.",
    ),
    dg.define_asset_job(
        "train_again",
        selection=dg.AssetSelection.assets("recommender").downstream() & _MODEL_ASSETS,
        description="Trains, evaluates and registers a new recommender on the existing semantic IDs.",
    ),
    dg.define_asset_job(
        EVALUATE_CHAMPION,
        selection=dg.AssetSelection.groups("ingestion", "monitoring"),
        description="Reads and cleans the newest files of a data set, then measures the registered champion on them. "
        "Nothing is trained.",
    ),
]
