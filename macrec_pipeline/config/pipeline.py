"""The settings of a whole run: every section in one tree."""

import hashlib
import json
from collections.abc import Collection

from pydantic import Field, model_validator

from macrec_pipeline.config.data import CleaningConfig, ImageEncoderConfig, SplitConfig, TextEncoderConfig
from macrec_pipeline.config.operation import EvaluationConfig, PromotionConfig, RecommendationsConfig, RuntimeConfig
from macrec_pipeline.config.recommender import (
    ContinuationConfig,
    DecodingConfig,
    RecommenderConfig,
    RefitConfig,
    SasrecConfig,
)
from macrec_pipeline.config.sections import Route, Section
from macrec_pipeline.config.semantic_ids import IdentityConfig, PseudoLabelConfig, QuantizerConfig


class PipelineConfig(Section):
    """Every setting of a pipeline run."""

    preset: str = Field(
        "default",
        description="Name of the preset that the settings started from. The data set file chooses the preset; changing "
        "the name here applies no other preset.",
    )
    seed: int = Field(20260, ge=0, lt=2**32, description="Root seed of every random draw of the run.")
    routes: tuple[Route, ...] | None = Field(
        None,
        min_length=1,
        description="Modalities to use (text, image); the run fails if the catalogue lacks one of them. null uses "
        "those that the catalogue has.",
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
    continuation: ContinuationConfig = ContinuationConfig()
    decoding: DecodingConfig = DecodingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    refit: RefitConfig = RefitConfig()
    promotion: PromotionConfig = PromotionConfig()
    recommendations: RecommendationsConfig = RecommendationsConfig()

    @model_validator(mode="after")
    def _check_collaborative_settings_have_sasrec(self) -> "PipelineConfig":
        collaborative = ["decoding.collaborative_route"] * self.decoding.collaborative_route
        collaborative += [
            f"quantizer.{name}"
            for name in ("collaborative_input_weight", "collaborative_contrast_weight")
            if getattr(self.quantizer, name) > 0
        ]
        if collaborative and not self.sasrec.enabled:
            verb = "need" if len(collaborative) > 1 else "needs"
            raise ValueError(
                f"{' and '.join(collaborative)} {verb} sasrec.enabled=true: SASRec provides the collaborative signal"
            )
        return self

    def digest(self, *, without: Collection[str] = ()) -> str:
        """Return the SHA-256 of the tree's canonical JSON, in hexadecimal.

        Args:
            without: names of sections that do not count.
        """
        canonical = json.dumps(self.model_dump(mode="json", exclude=set(without)), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    def recipe_digest(self) -> str:
        """Return the SHA-256 of the settings that decide how good a model becomes, in hexadecimal.

        Models with the same recipe differ only by chance and by their data: the seed, the machine's resources, and what
        is done with a finished model do not belong to the recipe.
        """
        rest = {"preset", "seed", "runtime", "evaluation", "promotion", "recommendations"}
        canonical = json.dumps(self.model_dump(mode="json", exclude=rest), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()
