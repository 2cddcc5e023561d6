"""Settings of where a run computes, how it is judged, and what its model is used for."""

from typing import Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Section


class RuntimeConfig(Section):
    """Where the numbers are computed."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    num_threads: int = Field(2, ge=1, le=256, description="CPU threads; part of reproducibility, so never guessed")
    training_processes: int = Field(
        1, ge=1, le=4096, description="that train a model together, each with its threads or GPU"
    )
    driver: Literal["in_process", "processes", "ray"] = Field(
        "in_process",
        description="who makes the shards of embeddings, semantic IDs and recommendations (docs/scaling.md)",
    )
    workers: int = Field(1, ge=1, le=1024, description="shards made at a time by processes or ray")
    threads_per_shard: int | None = Field(
        None, ge=1, le=256, description="CPU threads that make a shard, under every driver; None: num_threads"
    )

    @model_validator(mode="after")
    def _workers_have_a_driver(self) -> "RuntimeConfig":
        if self.workers > 1 and self.driver == "in_process":
            raise ValueError("workers are of a driver that has them: set runtime.driver to processes or ray")
        return self

    def for_shards(self) -> "RuntimeConfig":
        """The same, with the threads of a shard."""
        return self.model_copy(update={"num_threads": self.threads_per_shard or self.num_threads})


class EvaluationConfig(Section):
    """The protocol: the full catalogue, every test user."""

    cutoffs: tuple[int, ...] = Field((1, 5, 10, 20), description="k of HR@k and NDCG@k")
    bootstrap_samples: int = Field(1000, ge=10, description="resamples of the users for the confidence intervals")
    confidence: float = Field(0.95, gt=0.5, lt=1)
    item_knn_history: int = Field(10, ge=1, description="most recent items that item-kNN looks at")
    num_sample_users: int = Field(12, ge=0, description="users shown with pictures in the report")


class PromotionConfig(Section):
    """When a challenger may become champion without a person (docs/decisions/016)."""

    automatic: bool = Field(
        False, description="promote a challenger that keeps every rule; false: the rules only advise `macrec promote`"
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="of the paired bootstrap intervals")
    max_loss_ndcg_10: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the champion's NDCG@10 that may be lost at most, by the lower end of the interval",
    )
    never_below_popularity: bool = Field(True, description="its NDCG@10 must reach that of the most popular items")
    max_coverage_drop: float | None = Field(
        None, ge=0, le=1, description="share of the catalogue that may be shown no more; None: no limit"
    )
    max_moved_ids: float | None = Field(
        None, ge=0, le=1, description="share of the shared items whose semantic ID may differ; None: no limit"
    )
    max_latency_ratio: float | None = Field(
        None, gt=0, description="milliseconds a history, as a multiple of the champion's; None: no limit"
    )
    max_size_ratio: float | None = Field(
        None,
        gt=0,
        description="bytes of the bundle without its quantizer, as a multiple of the champion's; None: no limit",
    )


class RecommendationsConfig(Section):
    """Recommendations for every user of a data set, written in shards (`macrec recommend-all`)."""

    model: str = Field(
        "champion",
        coerce_numbers_to_str=True,
        pattern=r"^(models:/.+|[1-9][0-9]*|[a-z][\w-]*)$",
        description="an alias or a version of macrec-<dataset>; or models:/NAME@ALIAS, models:/NAME/VERSION",
    )
    top_k: int = Field(20, ge=1, le=1000, description="items a user")
    exclude_seen: bool = Field(False, description="leave out what is in the user's history")
    users_per_shard: int = Field(10_000, ge=1, description="users a parquet file; a killed run goes on after the last")
