"""Settings of what is trained on histories, and of decoding. Symbols: N items, W beams."""

from typing import Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Precision, Section, Task


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
