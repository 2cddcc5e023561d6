"""Settings from raw rows to histories and embeddings."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Section


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
