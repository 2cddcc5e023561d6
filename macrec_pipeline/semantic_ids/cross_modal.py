"""The model that is trained: an RQ-VAE per modality, and the loss terms between them (MACRec section 3.2).

In distributed training (`runtime/distributed.py`) each rank encodes and reconstructs its share of a batch. A contrast
runs over the whole batch, so every rank computes it from the latents of all ranks, which are small.

Shapes (docs/notation.md): B batch rows, D input width, F width of a collaborative vector, H latent width, L levels,
N items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.info_nce import symmetric_info_nce
from macrec_pipeline.semantic_ids.collaborative import CollaborativeContrast
from macrec_pipeline.semantic_ids.losses import draw_positives, layer_contrast
from macrec_pipeline.semantic_ids.modality_quantizer import QuantizerSpec
from macrec_pipeline.semantic_ids.residual_quantizer import Quantized
from macrec_pipeline.semantic_ids.rq_vae import RqVae

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

_OTHER_MODALITY = {"text": "image", "image": "text"}


@dataclass(frozen=True)
class Items:
    """The training data of some items; row i of every tensor belongs to the same item.

    Attributes:
        vectors: {modality: float [N, D]}, raw.
        clusters: {modality: int64 [N]}, pseudo-labels.
        collaborative: float [N, F], standardized; None if latents are not contrasted with collaborative vectors.
    """

    vectors: Mapping[str, torch.Tensor]
    clusters: Mapping[str, torch.Tensor]
    collaborative: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> Items:
        """Return the items at int64 [B]."""
        return Items(
            {modality: values[index] for modality, values in self.vectors.items()},
            {modality: values[index] for modality, values in self.clusters.items()},
            None if self.collaborative is None else self.collaborative[index],
        )


@dataclass(frozen=True)
class QuantizerLosses:
    """The losses of a batch; all tensors are scalars.

    Attributes:
        total: the weighted sum.
        parts: the unweighted terms by name, and those with levels also per level, as in `text_level_loss_1`.
    """

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class CrossModalQuantizer(nn.Module):
    """The modalities that are trained together. A single one is a plain RQ-VAE without cross-modal terms.

    Args:
        input_dims: {modality: D}, for text, image or both.
        config: the section `quantizer`.
        generator: draws the initial weights.
        collaborative_dim: F, for the contrast with collaborative vectors; 0 without it.
    """

    def __init__(
        self,
        input_dims: Mapping[str, int],
        config: QuantizerConfig,
        *,
        generator: torch.Generator,
        collaborative_dim: int = 0,
    ) -> None:
        super().__init__()
        spec = QuantizerSpec.from_settings(vars(config))
        self.temperature = config.temperature
        self.modalities = nn.ModuleDict({name: RqVae(dim, spec, generator) for name, dim in input_dims.items()})
        self.terms = CrossModalTerms.from_config(config)
        self.weights = self.terms.weights(list(input_dims), config)
        self.collaborative = nn.ModuleDict()
        if collaborative_dim:
            for modality in input_dims:
                self.collaborative[modality] = CollaborativeContrast(
                    collaborative_dim, config.latent_dim, temperature=config.temperature, generator=generator
                )

    def rq_vaes(self) -> Iterator[tuple[str, RqVae]]:
        """Yield each modality with its RQ-VAE."""
        for modality, module in self.modalities.items():
            assert isinstance(module, RqVae)
            yield modality, module

    @property
    def contrasted_modalities(self) -> list[str]:
        """The modalities with a layer contrast."""
        return [modality for modality in self.modalities if f"{modality}_contrast" in self.weights]

    def draw_positives(
        self, clusters: Mapping[str, torch.Tensor], *, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """Draw the positives of a batch's layer contrast: int64 [B] for each of `contrasted_modalities`.

        Args:
            clusters: {modality: int64 [B]}, pseudo-labels of the batch.
            generator: on the CPU.
        """
        # the clusters of the other modality decide which items of this one are alike
        others = {modality: clusters[_OTHER_MODALITY[modality]] for modality in self.contrasted_modalities}
        if self.terms.anchors_are_positives:
            return {modality: torch.arange(len(other), device=other.device) for modality, other in others.items()}
        return {modality: draw_positives(other, generator=generator) for modality, other in others.items()}

    def losses(
        self, items: Items, positives: Mapping[str, torch.Tensor], *, batch_size: int | None = None
    ) -> QuantizerLosses:
        """Compute every loss term of non-zero weight on one batch.

        In distributed training, the losses of the ranks add up to that of the batch.

        Args:
            items: this rank's items of the batch, those at `[rank()::world_size()]`.
            positives: from `draw_positives`, for the whole batch.
            batch_size: B; None if `items` is the whole batch.
        """
        num_items = len(next(iter(items.vectors.values())))
        size = batch_size or num_items
        share_of_items, share_of_ranks = num_items / size, 1 / distributed.world_size()
        parts: dict[str, torch.Tensor] = {}
        quantized: dict[str, Quantized] = {}
        for modality, module in self.rq_vaes():
            quantized[modality], reconstruction = module(items.vectors[modality])
            parts[f"{modality}_reconstruction"] = share_of_items * reconstruction
            parts |= _with_levels(f"{modality}_level_loss", share_of_items * quantized[modality].level_losses)
            if modality in positives:
                residuals = distributed.gather_batch(quantized[modality].residuals, num_rows=size)
                parts |= self._contrast(modality, residuals, positives[modality], share=share_of_ranks)
            if f"{modality}_collaborative" in self.weights:
                contrast = self.collaborative[modality](quantized[modality].latent, items.collaborative, num_rows=size)
                parts[f"{modality}_collaborative"] = share_of_ranks * contrast
        if "alignment" in self.weights:
            latents = (distributed.gather_batch(each.latent, num_rows=size) for each in quantized.values())
            parts["alignment"] = share_of_ranks * symmetric_info_nce(*latents, temperature=self.temperature)
        total = torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum()
        return QuantizerLosses(total, parts)

    def _contrast(
        self, modality: str, residuals: torch.Tensor, positives: torch.Tensor, *, share: float
    ) -> dict[str, torch.Tensor]:
        from_level = self.terms.from_level
        losses = layer_contrast(residuals, positives, from_level=from_level, temperature=self.temperature)
        return _with_levels(f"{modality}_contrast", share * losses, first_level=from_level)


@dataclass(frozen=True)
class CrossModalTerms:
    """The settings of the terms between the modalities.

    Attributes:
        contrast_weight, alignment_weight: 0 leaves the term out.
        from_level: first contrasted level, counted from 1.
        anchors_are_positives: whether every item is its own positive, which leaves a pure uniformity term.
    """

    contrast_weight: float
    alignment_weight: float
    from_level: int
    anchors_are_positives: bool = False

    @classmethod
    def from_config(cls, config: QuantizerConfig) -> CrossModalTerms:
        """Return the configured terms, or those of the authors' code, whose settings never reach its model."""
        if config.variant == "as_released":
            return cls(1.0, 0.001, from_level=1, anchors_are_positives=True)
        return cls(config.contrast_weight, config.alignment_weight, from_level=config.contrast_from_level)

    def weights(self, modalities: list[str], config: QuantizerConfig) -> dict[str, float]:
        """Return the weight of every term that is computed; terms of weight 0 are left out."""
        weights = {f"{name}_{term}": 1.0 for name in modalities for term in ("reconstruction", "level_loss")}
        if len(modalities) > 1:
            if self.from_level <= config.num_levels:
                weights |= {f"{name}_contrast": self.contrast_weight for name in modalities}
            weights["alignment"] = self.alignment_weight
        weights |= {f"{name}_collaborative": config.collaborative_contrast_weight for name in modalities}
        return {name: weight for name, weight in weights.items() if weight}


def _with_levels(name: str, losses: torch.Tensor, *, first_level: int = 1) -> dict[str, torch.Tensor]:
    """Return the mean of float [levels] under `name`, and each level's loss under `name_level`."""
    return {name: losses.mean()} | {f"{name}_{first_level + index}": value for index, value in enumerate(losses)}
