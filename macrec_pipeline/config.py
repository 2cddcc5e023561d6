"""The settings of every stage: one frozen pydantic tree. `presets.py` says how a run comes to its own.

A stage function receives its own section, never the whole tree. Every field has bounds and a description; unknown
names are refused. Symbols: N items, L levels, K codes a level, D embedding, H latent.
"""

import hashlib
import json
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Route = Literal["text", "image"]
ROUTES: tuple[Route, Route] = ("text", "image")

Task = Literal[
    "text_to_text",
    "image_to_image",
    "text_to_image",
    "image_to_text",
    "text_id_to_image_id",
    "image_id_to_text_id",
]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RuntimeConfig(Section):
    """Where the numbers are computed."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: the GPU if there is one")
    num_threads: int = Field(2, ge=1, le=256, description="CPU threads; part of reproducibility, so never guessed")


class CleaningConfig(Section):
    """From raw rows to the interactions that are used (MACRec section 4.1: 5-core, chronological)."""

    k_core: int = Field(5, ge=1, description="a user and an item keep at least this many interactions")
    min_rating: float | None = Field(None, description="rows rated below this go to quarantine; None keeps all")
    duplicates: Literal["first", "last", "keep"] = Field(
        "first", description="which of several rows of one user and one item stays; keep: repeat purchases count"
    )
    ties: Literal["item_id", "position"] = Field(
        "item_id",
        description="what orders a user's interactions at one time: item_id, whatever the order of the lines, or "
        "position, the order of the lines, for files that are known to be in order",
    )
    session_gap_minutes: float | None = Field(
        None,
        gt=0,
        description="a longer pause of a user begins a new session, and each session is a history of its own with the "
        "id USER#1, USER#2, ...; None: one history a user",
    )
    keep_items_without_interactions: bool = Field(
        False,
        description="items of the catalogue that nobody touched, or nobody in the k-core, stay in it: they get IDs and "
        "can be recommended",
    )
    max_quarantined_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="a larger share of broken rows in a raw table stops the run; what settings leave out, as "
        "duplicates and the k-core, does not count; 1: never",
    )


class SplitConfig(Section):
    """Which interactions are held out; `data.splits` says what exactly each method means."""

    method: Literal["leave_one_out", "global_time"] = Field(
        "leave_one_out",
        description="leave_one_out: each user's last interaction is tested, as in the paper; global_time: each user's "
        "first interaction in a period that is the same for all, and nothing of that period is trained on",
    )
    test_share: float = Field(
        0.1, gt=0, lt=1, description="of global_time: the period holds this share of all interactions, the newest"
    )
    later_share: float = Field(
        0.0, ge=0, lt=1, description="the share newer still, which is left out as if it had not happened yet"
    )
    test_from: datetime | None = Field(
        None, description="the period begins here instead, whatever the shares; UTC unless it says otherwise"
    )
    test_until: datetime | None = Field(None, description="with test_from: what happens from here on is left out")

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> "SplitConfig":
        if self.test_share + self.later_share >= 1:
            raise ValueError("test_share and later_share must leave something to train on: together less than 1")
        if self.test_until is not None and self.test_from is None:
            raise ValueError("test_until needs test_from")
        return self


# How many inputs pass an encoder at once; whatever is said, half as many where memory does not suffice.
EncoderBatch = Annotated[int, Field(ge=1)] | Literal["auto"]
WeightPrecision = Literal["auto", "float32", "bfloat16", "float16"]


class TextEncoderConfig(Section):
    """Item texts -> text embeddings."""

    name: str = Field(
        "packaged:all-minilm-l6-v2",
        description="packaged:NAME, sentence-transformers:HUB_NAME_OR_PATH, which pools as the model says, or "
        "transformers:HUB_NAME_OR_PATH, the mean over the tokens",
    )
    batch_size: EncoderBatch = Field(64, description="texts a batch; auto: as many as fit into memory")
    max_tokens: int = Field(192, ge=8, description="tokens a text, with its prefix; the rest is cut off")
    prefix: str = Field("", description="put before every text, such as e5's 'passage: '")
    fields: Literal["joined", "mean"] = Field(
        "joined", description="title and the rest as one text, or the mean of the two, each encoded alone, as published"
    )
    precision: WeightPrecision = Field(
        "auto", description="dtype of the weights; auto: float32 on a CPU, the weights' own on a GPU"
    )


class ImageEncoderConfig(Section):
    """Item pictures -> image embeddings."""

    name: str = Field(
        "packaged:efficientnet-lite0",
        description="packaged:NAME, timm:MODEL[@WEIGHTS_FILE] or open_clip:MODEL/PRETRAINED_TAG_OR_FILE",
    )
    batch_size: EncoderBatch = Field(32, description="pictures a batch; auto: as many as fit into memory")
    max_pixels: int = Field(50_000_000, ge=1, description="a picture with more pixels is refused before decoding")


class PseudoLabelConfig(Section):
    """k-means clusters of the raw embeddings, which give the cross-modal positives."""

    num_clusters: int = Field(
        512, ge=2, description="clusters a modality; a small catalogue gets one for every four items at most"
    )
    num_iterations: int = Field(25, ge=1, description="k-means iterations")


class SasrecConfig(Section):
    """SASRec (Kang & McAuley 2018) with cross-entropy over the catalogue: knows items by who took them when."""

    enabled: bool = Field(True, description="train it and show it beside the baselines")
    d_model: int = Field(64, ge=4, le=4096, description="size of an item's embedding and of a state")
    num_layers: int = Field(2, ge=1, le=24, description="blocks of causal self-attention")
    num_heads: int = Field(2, ge=1, description="attention heads; a divisor of d_model")
    dropout: float = Field(0.2, ge=0, lt=1, description="of the input and of what a block adds")
    max_length: int = Field(
        100, ge=1, le=10_000, description="most recent items that are looked at, with a position each"
    )
    learning_rate: float = Field(3e-3, gt=0, description="AdamW")
    weight_decay: float = Field(0.01, ge=0, description="AdamW")
    batch_size: int = Field(
        1024,
        ge=1,
        description="targets a step, by whole windows of a history; each is scored against all N items",
    )
    max_epochs: int = Field(30, ge=1, description="passes over the training parts, at most")
    patience: int = Field(5, ge=1, description="epochs without a better validation NDCG@10 before training stops")

    @model_validator(mode="after")
    def _heads_divide_the_states(self) -> "SasrecConfig":
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads must divide d_model, got {self.num_heads} and {self.d_model}")
        return self


# bfloat16 is faster where the processor has it, as products of many small numbers; weights and sums stay float32.
Precision = Literal["float32", "bfloat16"]


class QuantizerConfig(Section):
    """The residual quantizers of both modalities (MACRec section 3.2)."""

    method: Literal["cross_modal", "single_modality", "residual_k_means"] = Field(
        "cross_modal",
        description="cross_modal: MACRec; single_modality: an RQ-VAE a modality, trained apart, as in TIGER and "
        "MQL4GRec; residual_k_means: k-means of the embeddings' residuals, level by level, without training",
    )
    variant: Literal["as_intended", "as_released"] = Field(
        "as_intended",
        description="of cross_modal; as_released: what the authors' code does, whatever the contrast's settings say",
    )
    num_levels: int = Field(4, ge=1, le=8, description="L, codes in a semantic ID")
    codebook_size: int = Field(256, ge=2, le=65536, description="K, codes a level")
    latent_dim: int = Field(32, ge=1, description="H, size of a code vector")
    projection_dim: int = Field(768, ge=1, description="size that each modality is projected to first")
    hidden_dims: tuple[int, ...] = Field((2048, 1024, 512, 256, 128, 64), description="encoder MLP; mirrored decoder")
    commitment_weight: float = Field(0.25, ge=0, description="weight of mse(sg(z_q), r)")
    contrast_from_level: int = Field(3, ge=1, description="first level (1-based) with the cross-modal contrast")
    contrast_weight: float = Field(0.1, ge=0, description="weight of the layer contrast, a modality; 0 is off")
    alignment_weight: float = Field(0.001, ge=0, description="weight of the reconstruction alignment; 0 is off")
    collaborative_input_weight: float = Field(
        0.0,
        ge=0,
        description="size of SASRec's item vectors beside each modality's embeddings, whose own is 1; 0 is off",
    )
    collaborative_contrast_weight: float = Field(
        0.0, ge=0, description="weight of the contrast with the collaborative vectors, a modality; 0 is off"
    )
    temperature: float = Field(0.1, gt=0, description="InfoNCE temperature of every contrast")
    learning_rate: float = Field(1e-3, gt=0, description="AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW")
    batch_size: int = Field(2048, ge=2, description="items a step")
    num_epochs: int = Field(1000, ge=1, description="passes over the catalogue")
    precision: Precision = Field("float32", description="of the layers' matrix products in training")
    evaluate_every: int = Field(
        10, ge=1, description="epochs between two measurements of the collision rate and the dead codes"
    )
    best_epoch: Literal["per_modality", "joint"] = Field(
        "per_modality",
        description="per_modality: each keeps its epoch of the lowest collision rate; joint: both keep the one with "
        "the lowest mean of the two rates",
    )
    revive_dead_codes: bool = Field(False, description="reset codes that no item uses to residuals far from their code")
    revive_every: int = Field(10, ge=1, description="epochs between two revivals")

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> "QuantizerConfig":
        idle = []
        if self.method != "cross_modal":
            idle += ["variant=as_released"] * (self.variant == "as_released")
            idle += ["best_epoch=joint"] * (self.best_epoch == "joint")
        if self.method == "residual_k_means":
            idle += ["revive_dead_codes"] * self.revive_dead_codes
            idle += ["collaborative_contrast_weight"] * (self.collaborative_contrast_weight > 0)
        if idle:
            raise ValueError(f"method {self.method} has no use for {', '.join(idle)}: leave it at its default")
        return self


class Limit(Section):
    """A bound on one figure of the quality report."""

    value: float
    action: Literal["warn", "block"] = Field("warn", description="block: what follows in the run is not computed")

    @property
    def blocks(self) -> bool:
        """Whether crossing it stops the run."""
        return self.action == "block"


class LimitsConfig(Section):
    """Bounds on the quality report of the semantic IDs, each of the worse modality; None: no bound.

    Each is an asset check, and what `identity.mode=auto` goes by.
    """

    max_collision_rate: Limit | None = Field(None, description="before resolution")
    max_gini: Limit | None = Field(None, description="of a level's code usage: 0 even, towards 1 collapsed")
    max_reconstruction_error: Limit | None = Field(None, description="of standardized embeddings: 1 says nothing")
    max_drift_share: Limit | None = Field(None, description="items that keep an ID which is no longer their nearest")
    max_moved_share: Limit | None = Field(None, description="items of the table before whose ID is another one")
    max_cold_share: Limit | None = Field(None, description="items without an interaction in the training parts")
    min_perplexity_share: Limit | None = Field(None, description="a level's perplexity as a share of K")
    min_neighbour_agreement: Limit | None = Field(None, description="nearest neighbours that share the first code")


class IdentityConfig(Section):
    """What becomes of the semantic IDs that are there when a catalogue is met again."""

    mode: Literal["new", "append", "auto"] = Field(
        "new",
        description="new: quantize everything; append: the quantizer is frozen, old items keep their IDs and new ones "
        "get free ones; auto: append while the quality report is within the limits, else new",
    )
    retire_for_days: int = Field(365, ge=0, description="how long nobody else gets the ID of an item that is gone")
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _auto_has_something_to_go_by(self) -> "IdentityConfig":
        if self.mode == "auto" and self.limits == LimitsConfig():
            raise ValueError("mode auto needs at least one of limits, as in limits.max_collision_rate.value=0.1")
        return self


class RecommenderConfig(Section):
    """The generative recommender and its training (MACRec section 3.3)."""

    d_model: int = Field(128, ge=8)
    d_ff: int = Field(1024, ge=8)
    d_kv: int = Field(64, ge=4, description="size of an attention head")
    num_heads: int = Field(6, ge=1)
    num_encoder_layers: int = Field(4, ge=1)
    num_decoder_layers: int = Field(4, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    history_length: int = Field(20, ge=1, description="most recent items that a history token may look at")
    encoding: Literal["exact", "item_causal"] = Field(
        "exact",
        description="exact: one encoder pass a sample, as published; item_causal: one pass serves all prefixes",
    )
    num_prompt_tokens: int = Field(4, ge=0, description="prompt tokens of each cross-modal task")
    tasks: tuple[Task, ...] = Field(
        (
            "text_to_text",
            "image_to_image",
            "text_to_image",
            "image_to_text",
            "text_id_to_image_id",
            "image_id_to_text_id",
        ),
        min_length=1,
        description="the two routes, the two crossed ones and the two explicit alignments",
    )
    implicit_weight: float = Field(0.01, ge=0, description="weight of the implicit alignment on the ID -> ID tasks")
    implicit_temperature: float = Field(0.1, gt=0)
    learning_rate: float = Field(1e-3, gt=0, description="AdamW, peak")
    weight_decay: float = Field(0.01, ge=0, description="AdamW")
    warmup_share: float = Field(0.01, ge=0, lt=1, description="share of the steps that warm up")
    batch_size: int = Field(4096, ge=1, description="targets a step")
    num_epochs: int = Field(200, ge=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="of the targets' codes, in training only")
    ema_decay: float = Field(0.0, ge=0, lt=1, description="moving average of the weights; 0 is off")
    precision: Precision = Field("float32", description="of the layers' matrix products in training")
    early_stopping: Literal["validation_loss", "validation_ndcg"] = Field(
        "validation_loss", description="what picks the epoch: the routes' mean loss, or NDCG@10 of the fused routes"
    )
    patience: int = Field(10, ge=1, description="epochs without a better validation figure before training stops")
    warm_start: bool = Field(
        False,
        description="start from the weights of the recommender before, if the semantic IDs are of the same quantizer "
        "and the shapes are the same",
    )

    @model_validator(mode="after")
    def _routes_are_trained(self) -> "RecommenderConfig":
        if not {"text_to_text", "image_to_image"} & set(self.tasks):
            raise ValueError("tasks must hold text_to_text, image_to_image or both: they are the retrieval routes")
        return self


class DecodingConfig(Section):
    """Beam search and route fusion (MACRec section 3.4)."""

    beam_width: int = Field(20, ge=1, le=1000, description="W, beams a route")
    top_k: int = Field(20, ge=1, le=1000, description="items returned")
    batch_size: int = Field(256, ge=1, description="users decoded at once")
    fusion: Literal["published", "calibrated"] = Field(
        "published",
        description="published: an item of both routes scores the average + 1; calibrated: fitted on validation data",
    )
    collaborative_route: bool = Field(
        False, description="SASRec as a third route, weighed by calibrated fusion; what it adds is fitted, not assumed"
    )

    @model_validator(mode="after")
    def _a_third_route_is_weighed(self) -> "DecodingConfig":
        if self.collaborative_route and self.fusion != "calibrated":
            raise ValueError(
                f"collaborative_route needs decoding.fusion=calibrated, got {self.fusion}: the published rule has no "
                "place for a third route"
            )
        return self


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
        None, gt=0, description="bytes of the bundle, as a multiple of the champion's; None: no limit"
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


class PipelineConfig(Section):
    """Everything that a run of the pipeline may be told."""

    preset: str = Field("default", description="the preset that this was made from")
    seed: int = Field(20260, ge=0, lt=2**32, description="the one root seed")
    routes: tuple[Route, ...] | None = Field(
        None, min_length=1, description="modalities that are used, all of which must be there; None: what there is"
    )
    runtime: RuntimeConfig = RuntimeConfig()
    cleaning: CleaningConfig = CleaningConfig()
    split: SplitConfig = SplitConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    image_encoder: ImageEncoderConfig = ImageEncoderConfig()
    sasrec: SasrecConfig = SasrecConfig()
    pseudo_labels: PseudoLabelConfig = PseudoLabelConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    identity: IdentityConfig = IdentityConfig()
    recommender: RecommenderConfig = RecommenderConfig()
    decoding: DecodingConfig = DecodingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()
    recommendations: RecommendationsConfig = RecommendationsConfig()

    @model_validator(mode="after")
    def _the_collaborative_signal_is_trained(self) -> "PipelineConfig":
        asked = ["decoding.collaborative_route"] * self.decoding.collaborative_route
        asked += [
            f"quantizer.{name}"
            for name in ("collaborative_input_weight", "collaborative_contrast_weight")
            if getattr(self.quantizer, name) > 0
        ]
        if asked and not self.sasrec.enabled:
            raise ValueError(f"{' and '.join(asked)} needs sasrec.enabled=true: SASRec is where that comes from")
        return self

    def digest(self) -> str:
        """SHA-256 of the canonical JSON of the tree, in hexadecimal."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()
