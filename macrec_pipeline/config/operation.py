"""Settings of where a run computes, how its model is evaluated and promoted, and what the model is used for."""

from typing import Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Section


class RuntimeConfig(Section):
    """Device, threads and processes that the run computes with."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto uses the GPU if there is one.")
    num_threads: int = Field(
        2,
        ge=1,
        le=256,
        description="CPU threads per process. Results on a CPU depend on it, so it is never chosen automatically.",
    )
    training_processes: int = Field(
        1,
        ge=1,
        le=4096,
        description="Processes that train a model together, each with its own threads or GPU.",
    )
    driver: Literal["in_process", "processes", "ray"] = Field(
        "in_process",
        description="What computes the shards of embeddings, semantic IDs and recommendations: the process of the run, "
        "worker processes on this machine, or Ray (docs/scaling.md).",
    )
    workers: int = Field(
        1,
        ge=1,
        le=1024,
        description="Shards to compute at the same time. More than 1 needs driver processes or ray.",
    )
    threads_per_shard: int | None = Field(
        None, ge=1, le=256, description="CPU threads per shard, with any driver. null uses num_threads."
    )

    @model_validator(mode="after")
    def _check_workers_have_a_driver(self) -> "RuntimeConfig":
        if self.workers > 1 and self.driver == "in_process":
            raise ValueError(
                f"workers={self.workers} needs a driver with workers; set runtime.driver to processes or ray"
            )
        return self

    def for_shards(self) -> "RuntimeConfig":
        """Return these settings with `num_threads` set to the threads of one shard."""
        return self.model_copy(update={"num_threads": self.threads_per_shard or self.num_threads})


class EvaluationConfig(Section):
    """How the model is evaluated: every test user, ranked over the full catalogue."""

    cutoffs: tuple[int, ...] = Field((1, 5, 10, 20), description="Values of k at which HR@k and NDCG@k are reported.")
    bootstrap_samples: int = Field(
        1000, ge=10, description="Bootstrap resamples of the test users behind each confidence interval."
    )
    confidence: float = Field(
        0.95, gt=0.5, lt=1, description="Confidence level of the bootstrap intervals in the report."
    )
    item_knn_history: int = Field(10, ge=1, description="Newest items of a history that the item-kNN baseline uses.")
    num_sample_users: int = Field(12, ge=0, description="Users whose recommendations the report shows with images.")


class PromotionConfig(Section):
    """When a challenger may replace the champion (docs/decisions/028)."""

    automatic: bool = Field(
        False,
        description="Promote a challenger that satisfies every rule below. false only reports the verdict, for "
        "`macrec promote`.",
    )
    refit_champion: bool = Field(
        True,
        description="If the challenger is refused, train the champion's evaluated weights on all interactions, and let "
        "this refit take the champion's place. Only with automatic and refit.enabled.",
    )
    confidence: float = Field(
        0.95,
        gt=0.5,
        lt=1,
        description="Required confidence that challengers do not lose more than max_loss_ndcg_10. It holds for all "
        "comparisons with one champion together. Also the level of the paired bootstrap intervals that are shown.",
    )
    max_loss_ndcg_10: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Largest acceptable loss of NDCG@10, as a share of the champion's. The lower confidence limit of "
        "the pooled difference is compared.",
    )
    evidence_weeks: int = Field(
        52,
        ge=1,
        le=520,
        description="Weeks of the log over which comparisons with the same champion are pooled. Each test target "
        "counts once. Only challengers with the same settings are pooled.",
    )
    min_test_users: int = Field(
        30, ge=2, description="Test users below which no challenger passes, because too few users show nothing."
    )
    outdated_unknown_share: float | None = Field(
        0.1,
        gt=0,
        le=1,
        description="Share of today's items, or of the newest test targets, that makes the champion outdated if it "
        "does not know them. null never makes it outdated for this reason.",
    )
    outdated_weeks: int | None = Field(
        26,
        ge=1,
        description="Age of the champion's data, in weeks of the log, that makes it outdated. null never makes it "
        "outdated for this reason.",
    )
    outdated_confidence: float = Field(
        0.9,
        ge=0.5,
        lt=1,
        description="Required confidence in the pooled evidence of each week by itself if the champion is outdated. "
        "0.5 means that the estimated loss must be acceptable, however uncertain it is.",
    )
    never_below_popularity: bool = Field(
        True,
        description="Reject a challenger whose NDCG@10 is below that of recommending the most popular items.",
    )
    max_coverage_drop: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest acceptable drop in coverage, the share of the catalogue that is in anyone's top ten. "
        "null sets no limit.",
    )
    max_moved_ids: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest acceptable share of items in both catalogues whose semantic ID changed. null sets no "
        "limit.",
    )
    max_latency_ratio: float | None = Field(
        None,
        gt=0,
        description="Largest acceptable response time per history, as a multiple of the champion's. null sets no "
        "limit.",
    )
    max_size_ratio: float | None = Field(
        None,
        gt=0,
        description="Largest acceptable size of the model bundle without its quantizer, as a multiple of the "
        "champion's. null sets no limit.",
    )


class RecommendationsConfig(Section):
    """Recommendations for every user of a data set, as `macrec recommend-all` writes them."""

    model: str = Field(
        "champion",
        coerce_numbers_to_str=True,
        pattern=r"^(models:/.+|[1-9][0-9]*|[a-z][\w-]*)$",
        description="Model to use: an alias or a version number of macrec-DATASET, or a URI such as models:/NAME@ALIAS "
        "or models:/NAME/VERSION.",
    )
    top_k: int = Field(20, ge=1, le=1000, description="Items per user.")
    exclude_seen: bool = Field(False, description="Leave out items that are already in the user's history.")
    users_per_shard: int = Field(
        10_000, ge=1, description="Users per parquet file. An interrupted run resumes after the last finished file."
    )
