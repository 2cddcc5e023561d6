"""Settings of the models that are trained on histories, and of decoding.

Symbols (docs/notation.md): N items, W beams.
"""

from typing import Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Precision, Section, Task


class SasrecConfig(Section):
    """SASRec (Kang & McAuley 2018), a baseline trained on histories alone with cross-entropy over the catalogue."""

    enabled: bool = Field(True, description="Train SASRec and report it beside the other baselines.")
    d_model: int = Field(
        64, ge=4, le=4096, description="Width of item embeddings and hidden states. A multiple of num_heads."
    )
    num_layers: int = Field(2, ge=1, le=24, description="Blocks of causal self-attention.")
    num_heads: int = Field(2, ge=1, description="Attention heads per block. Must divide d_model.")
    dropout: float = Field(
        0.2, ge=0, lt=1, description="Probability of dropping an element of the input or of a block's output."
    )
    max_length: int = Field(
        100, ge=1, le=10_000, description="Newest items of a history that the model sees; each has its own position."
    )
    learning_rate: float = Field(3e-3, gt=0, description="Learning rate of AdamW.")
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    batch_size: int = Field(
        1024,
        ge=1,
        description="Training targets per step, in whole windows of a history. Each is scored against all N items.",
    )
    max_epochs: int = Field(30, ge=1, description="Largest number of passes over the training parts of the histories.")
    patience: int = Field(5, ge=1, description="Epochs without a better validation NDCG@10 after which training stops.")
    warm_start: bool = Field(
        False,
        description="Start from the weights of the previous SASRec, if its shapes are the same. The section "
        "continuation then decides for how long.",
    )

    @model_validator(mode="after")
    def _check_heads_divide_width(self) -> "SasrecConfig":
        if self.d_model % self.num_heads:
            raise ValueError(f"num_heads must divide d_model, got num_heads={self.num_heads}, d_model={self.d_model}")
        return self


class RefitConfig(Section):
    """The refit: after the evaluation, the model that is registered is trained on all interactions (decision 027)."""

    enabled: bool = Field(
        True,
        description="Register a refit of the evaluated model, which has also learned the validation and test targets. "
        "false registers the evaluated model itself.",
    )
    method: Literal["continue", "from_scratch"] = Field(
        "continue",
        description="How the recommender is refitted. continue trains on from the evaluated weights for a few epochs. "
        "from_scratch repeats the training from random weights, up to the epoch that validation chose; after a warm "
        "start it continues instead.",
    )
    sasrec_method: Literal["continue", "from_scratch"] = Field(
        "from_scratch",
        description="How SASRec is refitted, if it is a retrieval route; the choices are those of method. Its training "
        "takes a small part of the recommender's time, so from_scratch costs little.",
    )
    epoch_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Epochs of method continue, as a share of the epochs that the training took. The number is rounded "
        "down and at least 1.",
    )
    learning_rate_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Peak learning rate of method continue, as a share of the learning rate of the training.",
    )
    new_interaction_weight: float = Field(
        4.0,
        ge=1,
        le=100,
        description="What an interaction that the evaluated recommender has not learned counts in the loss of method "
        "continue, compared with one that it has learned.",
    )


class RecommenderConfig(Section):
    """The generative recommender and its training (MACRec section 3.3)."""

    d_model: int = Field(128, ge=8, description="Width of the transformer's hidden states.")
    d_ff: int = Field(1024, ge=8, description="Width of the inner layer of each feed-forward block.")
    d_kv: int = Field(64, ge=4, description="Width of each attention head.")
    num_heads: int = Field(6, ge=1, description="Attention heads per layer.")
    num_encoder_layers: int = Field(4, ge=1, description="Transformer layers of the encoder.")
    num_decoder_layers: int = Field(4, ge=1, description="Transformer layers of the decoder.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout probability of the transformer in training.")
    history_length: int = Field(20, ge=1, description="Newest items of a history that a history token may attend to.")
    encoding: Literal["exact", "item_causal"] = Field(
        "exact",
        description="exact encodes each training sample separately, as published. item_causal encodes a history once "
        "and reuses it for all of its prefixes, which is much faster.",
    )
    num_prompt_tokens: int = Field(4, ge=0, description="Learned prompt tokens per cross-modal task.")
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
        description="Training tasks: the two retrieval routes, the two that cross from one modality to the other, and "
        "the two that translate an item's ID. At least one retrieval route is required.",
    )
    implicit_weight: float = Field(
        0.01, ge=0, description="Weight of the implicit alignment loss on the ID translation tasks. 0 turns it off."
    )
    implicit_temperature: float = Field(0.1, gt=0, description="InfoNCE temperature of the implicit alignment loss.")
    learning_rate: float = Field(
        1e-3, gt=0, description="Peak learning rate of AdamW, reached after the warm-up; it then falls to 0."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    warmup_share: float = Field(
        0.01, ge=0, lt=1, description="Share of the training steps in which the learning rate rises to its peak."
    )
    batch_size: int = Field(4096, ge=1, description="Training targets per step.")
    num_epochs: int = Field(200, ge=1, description="Largest number of passes over the training data.")
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Label smoothing of the target codes, in training only."
    )
    ema_decay: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Decay per step of the moving average of the weights, which is then used in place of the weights. "
        "0 turns it off.",
    )
    precision: Precision = Field("float32", description="Dtype of the matrix products in training.")
    early_stopping: Literal["validation_loss", "validation_ndcg"] = Field(
        "validation_loss",
        description="What selects the best epoch: the lowest mean validation loss of the routes, or the highest "
        "validation NDCG@10 of the fused routes.",
    )
    patience: int = Field(10, ge=1, description="Epochs without a better validation result after which training stops.")
    warm_start: bool = Field(
        False,
        description="Start from the weights of the previous recommender, if its semantic IDs come from the same "
        "quantizer and its shapes are the same. The section continuation then decides for how long.",
    )

    @model_validator(mode="after")
    def _check_tasks_include_a_route(self) -> "RecommenderConfig":
        if not {"text_to_text", "image_to_image"} & set(self.tasks):
            raise ValueError(
                "tasks must include text_to_text, image_to_image or both, which are the retrieval routes; got "
                f"{', '.join(self.tasks)}"
            )
        return self


class ContinuationConfig(Section):
    """For how long a training goes on that starts from earlier weights (docs/decisions/030)."""

    epochs_per_change: float = Field(
        10,
        gt=0,
        description="How the number of epochs follows the share of interactions or items that the earlier weights have "
        "not seen: at 10, a share of 1% is trained for 10% of the epochs, and a share of 10% or more for all of them. "
        "There is always one epoch.",
    )
    learning_rate_share: float = Field(
        0.3,
        gt=0,
        le=1,
        description="Peak learning rate, as a share of the learning rate of a training from scratch. It then falls to "
        "0.",
    )

    def num_epochs(self, epochs_from_scratch: int, *, changed_share: float) -> int:
        """Return the number of epochs of a continued training.

        Args:
            epochs_from_scratch: largest number of epochs of a training from random weights.
            changed_share: share of the data that the earlier weights have not seen, in [0, 1].
        """
        return max(1, round(epochs_from_scratch * min(1.0, self.epochs_per_change * changed_share)))

    def of_sasrec(self, config: SasrecConfig, *, changed_share: float) -> SasrecConfig:
        """Return the settings for a SASRec that starts from earlier weights; see `num_epochs`."""
        return config.model_copy(
            update={
                "max_epochs": self.num_epochs(config.max_epochs, changed_share=changed_share),
                "learning_rate": config.learning_rate * self.learning_rate_share,
            }
        )

    def of_recommender(self, config: RecommenderConfig, *, changed_share: float) -> RecommenderConfig:
        """Return the settings for a recommender that starts from earlier weights; see `num_epochs`."""
        return config.model_copy(
            update={
                "num_epochs": self.num_epochs(config.num_epochs, changed_share=changed_share),
                "learning_rate": config.learning_rate * self.learning_rate_share,
            }
        )


class DecodingConfig(Section):
    """Beam search over semantic IDs and the fusion of the routes (MACRec section 3.4)."""

    beam_width: int = Field(20, ge=1, le=1000, description="Beams per route, W. Wider beams are slower and more exact.")
    top_k: int = Field(20, ge=1, le=1000, description="Items returned per user.")
    batch_size: int = Field(256, ge=1, description="Users decoded at the same time.")
    fusion: Literal["published", "calibrated"] = Field(
        "published",
        description="How the routes' scores are combined. published gives an item that both routes found the mean of "
        "its scores plus 1; calibrated weights the routes with weights fitted on validation data.",
    )
    collaborative_route: bool = Field(
        False,
        description="Add SASRec as a third route. Requires decoding.fusion=calibrated and sasrec.enabled=true.",
    )
    store_embeddings: bool = Field(
        False,
        description="Store the items' embeddings in the bundle, so that a service finds similar items by embedding. "
        "They take one byte per number: N times the width of the text vectors, and of the image vectors. The "
        "methods latent and prefix need nothing more.",
    )

    diversity: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How much lists are diversified: 0 gives the items with the highest scores, and 1 the least "
        "similar ones among four candidates per item (docs/method.md).",
    )
    max_per_category: int = Field(
        0,
        ge=0,
        description="Most items of one category in a list; 0 for no limit. An item counts for the smallest of its "
        "categories.",
    )
    max_per_prefix: int = Field(
        0,
        ge=0,
        description="Most items in a list whose semantic IDs start with the same codes; 0 for no limit. Excludes "
        "max_per_category.",
    )
    prefix_length: int = Field(1, ge=1, description="Number of first codes that max_per_prefix compares, at most L.")

    @model_validator(mode="after")
    def _check_one_limit(self) -> "DecodingConfig":
        if self.max_per_category and self.max_per_prefix:
            raise ValueError(
                "only one of max_per_category and max_per_prefix can limit a list, got "
                f"{self.max_per_category} and {self.max_per_prefix}; set one of them to 0"
            )
        return self

    @model_validator(mode="after")
    def _check_third_route_is_weighted(self) -> "DecodingConfig":
        if self.collaborative_route and self.fusion != "calibrated":
            raise ValueError(
                f"collaborative_route needs decoding.fusion=calibrated, got {self.fusion}; the published rule combines "
                "two routes only"
            )
        return self
