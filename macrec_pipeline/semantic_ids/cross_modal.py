"""The model that is trained: an RQ-VAE a modality, and the terms between them (MACRec section 3.2).

Of several ranks (`runtime/distributed.py`) each encodes and reconstructs its share of a batch. A contrast is against
the whole batch, so every rank works it out, of the latents of all, which are small.

Shapes: N items, B batch, D input, C collaborative, H latent, L levels.
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
from macrec_pipeline.semantic_ids.residual_quantizer import Quantized
from macrec_pipeline.semantic_ids.rq_vae import RqVae

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

_OTHER = {"text": "image", "image": "text"}


@dataclass(frozen=True)
class Items:
    """What is known of some items, row i of every tensor being the same item.

    Attributes:
        vectors: {modality: float [N, D]}, raw.
        clusters: {modality: int64 [N]}, pseudo-labels.
        collaborative: float [N, C], standardized; None if there is no contrast with them.
    """

    vectors: Mapping[str, torch.Tensor]
    clusters: Mapping[str, torch.Tensor]
    collaborative: torch.Tensor | None = None

    def rows(self, index: torch.Tensor) -> Items:
        """The items at int64 [B]."""
        return Items(
            {name: values[index] for name, values in self.vectors.items()},
            {name: values[index] for name, values in self.clusters.items()},
            None if self.collaborative is None else self.collaborative[index],
        )


@dataclass(frozen=True)
class QuantizerLosses:
    """The weighted sum, and its parts unweighted, of the terms by level too (`text_level_loss_1`); scalars."""

    total: torch.Tensor
    parts: dict[str, torch.Tensor]


class CrossModalQuantizer(nn.Module):
    """The modalities that are trained together; one alone is a plain RQ-VAE without cross-modal terms.

    Args:
        input_dims: {modality: D}, of text, image or both.
        config: sizes and weights.
        generator: draws the initial weights.
        collaborative_dim: C, for the contrast with collaborative vectors; 0 without it.
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
        self.config = config
        self.modalities = nn.ModuleDict({name: RqVae(dim, config, generator) for name, dim in input_dims.items()})
        self.terms = CrossModalTerms.of(config)
        self.weights = self.terms.weights(list(input_dims), config)
        self.collaborative = nn.ModuleDict()
        if collaborative_dim:
            for name in input_dims:
                self.collaborative[name] = CollaborativeContrast(
                    collaborative_dim, config.latent_dim, temperature=config.temperature, generator=generator
                )

    def rq_vaes(self) -> Iterator[tuple[str, RqVae]]:
        """Each modality with its module."""
        for name, module in self.modalities.items():
            assert isinstance(module, RqVae)
            yield name, module

    @property
    def contrasted(self) -> list[str]:
        """The modalities with a layer contrast."""
        return [name for name in self.modalities if f"{name}_contrast" in self.weights]

    def draw_positives(
        self, clusters: Mapping[str, torch.Tensor], *, generator: torch.Generator
    ) -> dict[str, torch.Tensor]:
        """The positives of a batch's layer contrast: int64 [B] for each of `contrasted`.

        Args:
            clusters: {modality: int64 [B]}, pseudo-labels of the batch.
            generator: on the CPU.
        """
        # a modality's levels are told who is alike by the other modality's clusters
        others = {name: clusters[_OTHER[name]] for name in self.contrasted}
        if self.terms.anchors_are_positives:
            return {name: torch.arange(len(own), device=own.device) for name, own in others.items()}
        return {name: draw_positives(own, generator=generator) for name, own in others.items()}

    def losses(
        self, items: Items, positives: Mapping[str, torch.Tensor], *, batch_size: int | None = None
    ) -> QuantizerLosses:
        """Every term of non-zero weight on one batch; of several ranks, shares that add up to it.

        Args:
            items: of the batch, those at `[rank()::count()]`.
            positives: what `draw_positives` gave for the whole batch.
            batch_size: B; None if it is all of `items`.
        """
        own = len(next(iter(items.vectors.values())))
        size = batch_size or own
        share, each = own / size, 1 / distributed.count()
        parts: dict[str, torch.Tensor] = {}
        quantized: dict[str, Quantized] = {}
        for name, module in self.rq_vaes():
            quantized[name], reconstruction = module(items.vectors[name])
            parts[f"{name}_reconstruction"] = share * reconstruction
            parts |= _by_level(f"{name}_level_loss", share * quantized[name].level_losses)
            if name in positives:
                residuals = distributed.whole_batch(quantized[name].residuals, num_rows=size)
                parts |= self._contrast(name, residuals, positives[name], share=each)
            if f"{name}_collaborative" in self.weights:
                contrast = self.collaborative[name](quantized[name].latent, items.collaborative, num_rows=size)
                parts[f"{name}_collaborative"] = each * contrast
        if "alignment" in self.weights:
            latents = (distributed.whole_batch(one.latent, num_rows=size) for one in quantized.values())
            parts["alignment"] = each * symmetric_info_nce(*latents, temperature=self.config.temperature)
        total = torch.stack([weight * parts[name] for name, weight in self.weights.items()]).sum()
        return QuantizerLosses(total, parts)

    def _contrast(
        self, name: str, residuals: torch.Tensor, positives: torch.Tensor, *, share: float
    ) -> dict[str, torch.Tensor]:
        first = self.terms.from_level
        losses = layer_contrast(residuals, positives, from_level=first, temperature=self.config.temperature)
        return _by_level(f"{name}_contrast", share * losses, first_level=first)


@dataclass(frozen=True)
class CrossModalTerms:
    """The settings of the terms between the modalities.

    Attributes:
        contrast_weight, alignment_weight: 0 leaves the term out.
        from_level: first contrasted level, counted from 1.
        anchors_are_positives: every item is its own positive, which leaves a pure uniformity term.
    """

    contrast_weight: float
    alignment_weight: float
    from_level: int
    anchors_are_positives: bool = False

    @classmethod
    def of(cls, config: QuantizerConfig) -> CrossModalTerms:
        """The configured ones; `as_released` those of the authors' code, whose settings never reach its model."""
        if config.variant == "as_released":
            return cls(1.0, 0.001, from_level=1, anchors_are_positives=True)
        return cls(config.contrast_weight, config.alignment_weight, from_level=config.contrast_from_level)

    def weights(self, modalities: list[str], config: QuantizerConfig) -> dict[str, float]:
        """The weight of every term that is computed; one of weight 0 is left out."""
        weights = {f"{name}_{term}": 1.0 for name in modalities for term in ("reconstruction", "level_loss")}
        if len(modalities) > 1:
            if self.from_level <= config.num_levels:
                weights |= {f"{name}_contrast": self.contrast_weight for name in modalities}
            weights["alignment"] = self.alignment_weight
        weights |= {f"{name}_collaborative": config.collaborative_contrast_weight for name in modalities}
        return {name: weight for name, weight in weights.items() if weight}


def _by_level(name: str, losses: torch.Tensor, *, first_level: int = 1) -> dict[str, torch.Tensor]:
    """The mean of float [L'] under `name`, and each level's own under `name_level`."""
    return {name: losses.mean()} | {f"{name}_{first_level + place}": value for place, value in enumerate(losses)}
