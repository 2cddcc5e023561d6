"""The settings of every stage: one frozen pydantic tree. `presets.py` says how a run comes to its own.

A stage function receives its own section, never the whole tree. Every field has bounds and a description; unknown
names are refused.
"""

import hashlib
import json

from pydantic import Field, model_validator

from macrec_pipeline.config.data import (
    CleaningConfig,
    EncoderBatch,
    ImageEncoderConfig,
    SplitConfig,
    TextEncoderConfig,
    WeightPrecision,
)
from macrec_pipeline.config.operation import EvaluationConfig, PromotionConfig, RecommendationsConfig, RuntimeConfig
from macrec_pipeline.config.recommender import DecodingConfig, RecommenderConfig, SasrecConfig
from macrec_pipeline.config.sections import ROUTES, Precision, Route, Section, Task
from macrec_pipeline.config.semantic_ids import (
    IdentityConfig,
    Limit,
    LimitsConfig,
    PseudoLabelConfig,
    QuantizerConfig,
)

__all__ = [
    "ROUTES",
    "CleaningConfig",
    "DecodingConfig",
    "EncoderBatch",
    "EvaluationConfig",
    "IdentityConfig",
    "ImageEncoderConfig",
    "Limit",
    "LimitsConfig",
    "PipelineConfig",
    "Precision",
    "PromotionConfig",
    "PseudoLabelConfig",
    "QuantizerConfig",
    "RecommendationsConfig",
    "RecommenderConfig",
    "Route",
    "RuntimeConfig",
    "SasrecConfig",
    "Section",
    "SplitConfig",
    "Task",
    "TextEncoderConfig",
    "WeightPrecision",
]


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
