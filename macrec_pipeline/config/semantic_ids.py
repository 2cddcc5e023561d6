"""Settings of the semantic IDs: pseudo-labels, the quantizer, and how existing IDs are carried over.

Symbols (docs/notation.md): L levels, K codes per level, H latent width.
"""

from typing import Literal

from pydantic import Field, model_validator

from macrec_pipeline.config.sections import Precision, Section


class PseudoLabelConfig(Section):
    """k-means clusters of the raw embeddings, which define the positives of the cross-modal contrast."""

    num_clusters: int = Field(
        512,
        ge=2,
        description="Clusters per modality. A small catalogue gets fewer: at most one per four items.",
    )
    num_iterations: int = Field(25, ge=1, description="Iterations of k-means.")


class QuantizerConfig(Section):
    """The residual quantizers that turn embeddings into semantic IDs (MACRec section 3.2)."""

    method: Literal["cross_modal", "single_modality", "residual_k_means"] = Field(
        "cross_modal",
        description="cross_modal is MACRec's quantizer. single_modality trains an independent RQ-VAE per modality, as "
        "in TIGER and MQL4GRec. residual_k_means clusters the embeddings and then their residuals, level by level, "
        "without training.",
    )
    variant: Literal["as_intended", "as_released"] = Field(
        "as_intended",
        description="Variant of cross_modal. as_intended follows the paper; as_released does what the authors' code "
        "does and ignores the contrast settings.",
    )
    num_levels: int = Field(4, ge=1, le=8, description="Codes in a semantic ID, L.")
    codebook_size: int = Field(256, ge=2, le=65536, description="Codes per level, K.")
    latent_dim: int = Field(32, ge=1, description="Width of a code vector, H.")
    projection_dim: int = Field(768, ge=1, description="Width to which the embeddings of each modality are projected.")
    hidden_dims: tuple[int, ...] = Field(
        (2048, 1024, 512, 256, 128, 64),
        description="Widths of the hidden layers of the encoder MLP. The decoder mirrors them.",
    )
    commitment_weight: float = Field(
        0.25, ge=0, description="Weight of the commitment loss, which pulls residuals towards their code."
    )
    contrast_from_level: int = Field(3, ge=1, description="First level, counted from 1, with the cross-modal contrast.")
    contrast_weight: float = Field(
        0.1, ge=0, description="Weight of the cross-modal contrast per modality. 0 turns it off."
    )
    alignment_weight: float = Field(
        0.001,
        ge=0,
        description="Weight of the reconstruction alignment between an item's two quantized latents. 0 turns it off.",
    )
    collaborative_input_weight: float = Field(
        0.0,
        ge=0,
        description="Length of the SASRec item vectors that are appended to the embeddings of each modality, relative "
        "to the length of the embeddings. 0 turns them off.",
    )
    collaborative_contrast_weight: float = Field(
        0.0,
        ge=0,
        description="Weight of the contrast with the SASRec item vectors per modality. 0 turns it off.",
    )
    temperature: float = Field(0.1, gt=0, description="InfoNCE temperature of every contrast.")
    learning_rate: float = Field(1e-3, gt=0, description="Learning rate of AdamW.")
    weight_decay: float = Field(1e-4, ge=0, description="Weight decay of AdamW.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="Schedule of the learning rate. cosine falls to 0 at the last epoch and needs about a tenth of the "
        "epochs.",
    )
    batch_size: int = Field(2048, ge=2, description="Items per training step.")
    num_epochs: int = Field(1000, ge=1, description="Passes over the catalogue.")
    precision: Precision = Field("float32", description="Dtype of the matrix products in training.")
    evaluate_every: int = Field(
        10, ge=1, description="Epochs from one measurement of the collision rate and the dead codes to the next."
    )
    best_epoch: Literal["per_modality", "joint"] = Field(
        "per_modality",
        description="Which epoch to keep. per_modality keeps the epoch with the lowest collision rate for each "
        "modality; joint keeps, for both, the epoch with the lowest mean of the two rates.",
    )
    revive_dead_codes: bool = Field(
        False, description="Reset codes that no item uses to residuals that are far from their own code."
    )
    revive_every: int = Field(10, ge=1, description="Epochs from one reset of dead codes to the next.")

    @model_validator(mode="after")
    def _check_settings_have_an_effect(self) -> "QuantizerConfig":
        unused = []
        if self.method != "cross_modal":
            unused += ["variant=as_released"] * (self.variant == "as_released")
            unused += ["best_epoch=joint"] * (self.best_epoch == "joint")
        if self.method == "residual_k_means":
            unused += ["revive_dead_codes"] * self.revive_dead_codes
            unused += ["collaborative_contrast_weight"] * (self.collaborative_contrast_weight > 0)
        if unused:
            raise ValueError(f"method {self.method} ignores {', '.join(unused)}, so leave it at its default")
        return self


class Limit(Section):
    """A limit on one figure of the quality report of the semantic IDs."""

    value: float = Field(description="The limit itself, in the unit of the figure.")
    action: Literal["warn", "block"] = Field(
        "warn", description="What happens when the limit is crossed: warn reports it, block stops the run."
    )

    @property
    def blocks(self) -> bool:
        """Whether crossing the limit stops the run."""
        return self.action == "block"


class LimitsConfig(Section):
    """Limits on the quality report of the semantic IDs, for the worse of the two modalities; null means no limit.

    Each limit is an asset check, and `identity.mode=auto` quantizes the catalogue again when one is crossed.
    """

    max_collision_rate: Limit | None = Field(None, description="Largest collision rate before resolution, from 0 to 1.")
    max_gini: Limit | None = Field(
        None,
        description="Largest Gini coefficient of a level's code usage, from 0 (even) to 1 (collapsed).",
    )
    max_reconstruction_error: Limit | None = Field(
        None,
        description="Largest mean squared error of the standardized embeddings; at 1 the IDs carry no information.",
    )
    max_drift_share: Limit | None = Field(
        None,
        description="Largest share of items that keep an ID which is no longer the nearest to their embedding.",
    )
    max_moved_share: Limit | None = Field(
        None,
        description="Largest share of the items of the previous table whose ID changed.",
    )
    max_cold_share: Limit | None = Field(
        None,
        description="Largest share of items without an interaction in the training data.",
    )
    min_perplexity_share: Limit | None = Field(
        None,
        description="Smallest perplexity of a level's code usage, as a share of K.",
    )
    min_neighbour_agreement: Limit | None = Field(
        None,
        description="Smallest share of an item's ten nearest neighbours that have the same first code.",
    )


class IdentityConfig(Section):
    """Whether items keep their semantic IDs when the catalogue changes."""

    mode: Literal["new", "append", "auto"] = Field(
        "new",
        description="new quantizes the whole catalogue again. append freezes the quantizer: known items keep their "
        "IDs, new items get free ones. auto appends while the quality report is within the limits, else starts new.",
    )
    retire_for_days: int = Field(
        365, ge=0, description="Days for which the ID of a removed item is reserved before another item may get it."
    )
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _check_auto_has_limits(self) -> "IdentityConfig":
        if self.mode == "auto" and self.limits == LimitsConfig():
            raise ValueError(
                "mode auto needs at least one limit, for example identity.limits.max_collision_rate.value=0.1"
            )
        return self
