"""Settings of the semantic IDs: pseudo-labels, quantizer, and what becomes of IDs that are there.

Symbols: N items, L levels, K codes a level, H latent.
"""

from typing import Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Precision, Section


class PseudoLabelConfig(Section):
    """k-means clusters of the raw embeddings, which give the cross-modal positives."""

    num_clusters: int = Field(
        512, ge=2, description="clusters a modality; a small catalogue gets one for every four items at most"
    )
    num_iterations: int = Field(25, ge=1, description="k-means iterations")


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
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="of the learning rate; cosine falls to 0 at the last epoch, and needs a tenth of the epochs",
    )
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
