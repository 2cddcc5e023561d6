"""Settings of the stages that turn raw tables into histories and embeddings."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Section


class CleaningConfig(Section):
    """How raw tables become the interactions and items that the pipeline uses (MACRec section 4.1)."""

    k_core: int = Field(
        5,
        ge=1,
        description="Fewest interactions that a user or an item may have. Those with fewer are removed, repeatedly, "
        "until all that remain have this many. 1 removes nothing.",
    )
    min_rating: float | None = Field(
        None,
        description="Lowest rating to keep, on the scale of the data set. Interactions rated lower, or not rated, go "
        "to quarantine. null keeps every rating.",
    )
    duplicates: Literal["first", "last", "keep"] = Field(
        "first",
        description="Which of several interactions of one user with one item to keep: the first, the last, or (keep) "
        "all of them, so that repeat purchases count.",
    )
    ties: Literal["hash", "item_id", "position"] = Field(
        "hash",
        description="How to order a user's interactions that have the same timestamp. hash draws the order from the "
        "seed and the IDs, so that it carries no information and does not depend on the order of lines in the file. "
        "item_id sorts by item ID: models learn this order and are tested on it, so metrics are wrong. position uses "
        "the order of lines, for files that are known to be in chronological order.",
    )
    session_gap_minutes: float | None = Field(
        None,
        gt=0,
        description="Pause in minutes after which a user's next interaction starts a new session. Each session becomes "
        "a history of its own, with the user ID USER#1, USER#2 and so on. null keeps one history per user.",
    )
    keep_items_without_interactions: bool = Field(
        False,
        description="Keep catalogue items that have no interactions, or none left after the k-core. They get semantic "
        "IDs and can be recommended.",
    )
    max_quarantined_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Largest share of the rows of a raw table that may be unusable; a larger share stops the run. Rows "
        "that a setting leaves out (duplicates, low ratings, the k-core) do not count, nor do interactions with an "
        "item that is not in the catalogue (max_unlisted_share). 1 never stops the run.",
    )
    max_unlisted_share: float = Field(
        0.9,
        ge=0,
        le=1,
        description="Largest share of the interactions that may name an item that is neither in the catalogue now nor "
        "was in an earlier run; a larger share stops the run. Such interactions go to quarantine. The default lets a "
        "shop run whose log is years older than its catalogue. 1 never stops the run.",
    )


class SplitConfig(Section):
    """Which interactions are held out for validation and testing.

    `data/histories/splits.py` defines each method exactly.
    """

    method: Literal["leave_one_out", "global_time"] = Field(
        "leave_one_out",
        description="leave_one_out tests each user's last interaction, as in the paper. global_time tests each user's "
        "first interaction in a test period that is the same for all users, and trains on nothing from that period.",
    )
    test_share: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="Length of the global_time test period, as a share of all interactions. The period holds the "
        "newest ones.",
    )
    later_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of all interactions, the newest, that global_time leaves out after the test period, as if "
        "they had not happened yet.",
    )
    test_from: datetime | None = Field(
        None,
        description="Date and time at which the global_time test period begins, in place of the two shares. UTC unless "
        "an offset is given. null uses the shares.",
    )
    test_until: datetime | None = Field(
        None,
        description="Date and time at which the test period ends; later interactions are left out. Needs test_from. "
        "null lets the period last to the end of the log.",
    )

    @model_validator(mode="after")
    def _check_training_data_remains(self) -> "SplitConfig":
        if self.test_share + self.later_share >= 1:
            total = self.test_share + self.later_share
            raise ValueError(f"test_share + later_share must be less than 1, to leave training data; got {total:g}")
        if self.test_until is not None and self.test_from is None:
            raise ValueError("test_until needs test_from")
        return self


# Inputs per forward pass of an encoder. Whatever the setting, the batch is halved when memory runs out.
EncoderBatch = Annotated[int, Field(ge=1)] | Literal["auto"]
WeightPrecision = Literal["auto", "float32", "bfloat16", "float16"]


class TextEncoderConfig(Section):
    """The model that embeds item texts."""

    name: str = Field(
        "packaged:all-minilm-l6-v2",
        description="Encoder to load: packaged:NAME, sentence-transformers:HUB_NAME_OR_PATH (pooled as the model "
        "specifies) or transformers:HUB_NAME_OR_PATH (mean over the tokens).",
    )
    batch_size: EncoderBatch = Field(
        64, description="Texts per batch. auto chooses as many as fit into memory; batches that do not fit are halved."
    )
    max_tokens: int = Field(192, ge=8, description="Tokens per text, prefix included. Longer texts are truncated.")
    prefix: str = Field("", description="Text to put before every item text, such as 'passage: ' for E5 models.")
    fields: Literal["joined", "mean"] = Field(
        "joined",
        description="joined embeds the title and the other texts of an item as one text. mean embeds the two "
        "separately and takes their mean, as the paper does.",
    )
    precision: WeightPrecision = Field(
        "auto",
        description="Dtype of the encoder's weights. auto uses float32 on a CPU and the dtype of the stored weights on "
        "a GPU.",
    )


class ImageEncoderConfig(Section):
    """The model that embeds item images."""

    name: str = Field(
        "packaged:efficientnet-lite0",
        description="Encoder to load: packaged:NAME, timm:MODEL[@WEIGHTS_FILE] or "
        "open_clip:MODEL/PRETRAINED_TAG_OR_FILE.",
    )
    batch_size: EncoderBatch = Field(
        32, description="Images per batch. auto chooses as many as fit into memory; batches that do not fit are halved."
    )
    max_pixels: int = Field(
        50_000_000, ge=1, description="Largest image to decode, in pixels. Larger ones are treated as missing."
    )
