"""The settings of every stage, as one frozen tree of pydantic models.

`PipelineConfig` is the tree; each stage function receives only its own section. `presets.py` combines a preset, a data
set file and overrides into one such tree, and `reference.py` describes every setting. Unknown names are rejected.
"""

from macrec_pipeline.config.data import (
    CleaningConfig,
    EncoderBatch,
    ImageEncoderConfig,
    SplitConfig,
    TextEncoderConfig,
    WeightPrecision,
)
from macrec_pipeline.config.operation import EvaluationConfig, PromotionConfig, RecommendationsConfig, RuntimeConfig
from macrec_pipeline.config.pipeline import PipelineConfig
from macrec_pipeline.config.recommender import (
    ContinuationConfig,
    DecodingConfig,
    RecommenderConfig,
    RefitConfig,
    SasrecConfig,
)
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
    "ContinuationConfig",
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
    "RefitConfig",
    "Route",
    "RuntimeConfig",
    "SasrecConfig",
    "Section",
    "SplitConfig",
    "Task",
    "TextEncoderConfig",
    "WeightPrecision",
]
