"""Fits the quantizers of all modalities by any method, and keeps the best epoch (MACRec section 3.2).

Takes raw embeddings and pseudo-labels of the same items, and collaborative vectors if the settings use them. Returns
the weights of the epoch with the lowest collision rate, chosen per modality or jointly, and a log.

Shapes (docs/notation.md): D embedding width, F width of a collaborative vector, N items.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.training import Trainable, Trainer, warn_if_bfloat16_is_emulated
from macrec_pipeline.semantic_ids.catalogue import Catalogue, by_modality
from macrec_pipeline.semantic_ids.dead_codes import count_dead_codes
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, QuantizerSpec, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from macrec_pipeline.semantic_ids.residual_quantizer import codebook_seed
from macrec_pipeline.semantic_ids.rq_vae_training import RqVaeTraining

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

# Quantizer and best epoch per modality, and the log.
_Fitted = tuple[Mapping[str, ModalityQuantizer], dict[str, int], list[dict[str, float]]]


def fit_quantizer(
    text_vectors: np.ndarray | None,
    image_vectors: np.ndarray | None,
    text_clusters: np.ndarray | None,
    image_clusters: np.ndarray | None,
    config: QuantizerConfig,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = quiet_progress,
    collaborative_vectors: np.ndarray | None = None,
) -> FittedQuantizer:
    """Fit a quantizer per modality, by the method in `config.method`.

    A catalogue with a single modality has no other one to contrast it with; its quantizer is trained as by the method
    `single_modality`.

    Args:
        text_vectors, image_vectors: float32 [N, D], one row per item, in the same order; None for a modality that the
            catalogue lacks.
        text_clusters, image_clusters: int64 [N], pseudo-labels, which only the cross-modal method uses; None as above.
        config: the section `quantizer`.
        seed: root seed.
        device: where to train.
        progress: called after every epoch with stage "quantizer".
        collaborative_vectors: float32 [N, F], of the same items; used only if a collaborative weight is above 0.

    Raises:
        ConfigError: a collaborative weight is above 0, and there are no collaborative vectors.
        SemanticIdError: the collaborative vectors do not match the items.
        TrainingError: the loss or its gradient is not finite.
    """
    catalogue = Catalogue.from_arrays(
        by_modality(text_vectors, image_vectors),
        by_modality(text_clusters, image_clusters),
        collaborative_vectors,
        config,
    )
    fit = _fit_k_means if config.method == "residual_k_means" else _train_rq_vaes
    modules, epochs, log = fit(catalogue, config, seed=seed, device=device, progress=progress)
    modules = {modality: module.eval() for modality, module in modules.items()}
    return FittedQuantizer(
        modules.get("text"), modules.get("image"), dict(vars(config)), epochs, log, catalogue.collaborative_dim
    )


class QuantizerTraining(Trainable):
    """The RQ-VAEs of all modalities, for `Trainer`: one training for all of them, or one for each.

    Args:
        catalogue: all items with all modalities.
        config: the section `quantizer`.
        seed: root seed.
        device: where to train.
        progress: called after every epoch.
    """

    modules: Mapping[str, ModalityQuantizer]

    def __init__(
        self, catalogue: Catalogue, config: QuantizerConfig, *, seed: int, device: torch.device, progress: Progress
    ) -> None:
        modalities = list(catalogue.vectors)
        separately = config.method == "single_modality" or len(modalities) == 1
        groups = {f"quantizer/{name}": [name] for name in modalities} if separately else {"quantizer": modalities}
        self._trainings = [
            RqVaeTraining(catalogue.only(group), config, seed=seed, name=name, device=device)
            for name, group in groups.items()
        ]
        self.modules = {name: module for training in self._trainings for name, module in training.model.rq_vaes()}
        self._catalogue, self._config, self._device, self._progress = catalogue, config, device, progress

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Pass once over the catalogue; returns the loss summed over the trainings, and the mean of each part."""
        row = {"loss": 0.0}
        for training in self._trainings:
            losses = training.train_epoch(epoch)
            row |= losses | {"loss": row["loss"] + losses["loss"]}
        self._progress("quantizer", epoch, self._config.num_epochs, {"loss": row["loss"]})
        return row

    def validate(self) -> dict[str, float]:
        """Return collision rate and dead codes of each modality, before any collision is resolved."""
        return _collisions_and_dead_codes(self.modules, self._catalogue, self._config, device=self._device)

    def scores(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the collision rate of each modality, or their mean for all of them."""
        rates = {modality: row[f"{modality}_collision_rate"] for modality in self.modules}
        return epoch_scores(rates, criterion=self._config.best_epoch)

    def finish_epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """Revive dead codes, if this is configured for the epoch."""
        if self._config.revive_dead_codes and epoch % self._config.revive_every == 0:
            for training in self._trainings:
                training.revive_dead_codes()


def epoch_scores(rates: Mapping[str, float], *, criterion: str) -> dict[str, float]:
    """Return the score by which each modality chooses its best epoch, lower being better.

    Args:
        rates: {modality: collision rate}.
        criterion: "per_modality" lets each modality choose by its own rate; "joint" lets all choose by the mean rate.
    """
    if criterion != "joint":
        return dict(rates)
    # rounded, so that equal means are equal whatever numbers they are the sums of
    return dict.fromkeys(rates, round(sum(rates.values()) / len(rates), 12))


def _train_rq_vaes(
    catalogue: Catalogue, config: QuantizerConfig, *, seed: int, device: torch.device, progress: Progress
) -> _Fitted:
    warn_if_bfloat16_is_emulated(config.precision, device)
    training = QuantizerTraining(catalogue, config, seed=seed, device=device, progress=progress)
    # of epochs with equal collision rates, the later one reconstructs better
    trainer = Trainer(training, num_epochs=config.num_epochs, validate_every=config.evaluate_every, prefer_later=True)
    trainer.run()
    return training.modules, trainer.best_epochs, trainer.log


def _fit_k_means(
    catalogue: Catalogue, config: QuantizerConfig, *, seed: int, device: torch.device, progress: Progress
) -> _Fitted:
    spec = QuantizerSpec.from_settings(vars(config))
    modules: dict[str, ResidualKMeans] = {}
    row: dict[str, float] = {"epoch": 0.0, "loss": 0.0}
    for done, (modality, vectors) in enumerate(catalogue.vectors.items(), start=1):
        module = modules[modality] = ResidualKMeans(vectors.shape[1], spec).to(device)
        items = torch.tensor(vectors, device=device)
        module.fit_standardization(items, collaborative_dim=catalogue.collaborative_dim)
        errors = module.fit(items, seed=codebook_seed(seed, modality))
        row |= {f"{modality}_level_loss_{level}": error for level, error in enumerate(errors, start=1)}
        row |= {f"{modality}_reconstruction": errors[-1], "loss": row["loss"] + errors[-1]}
        progress("quantizer", done, len(catalogue.vectors), {"loss": row["loss"]})
    figures = _collisions_and_dead_codes(modules, catalogue, config, device=device)
    return modules, dict.fromkeys(modules, 0), [row | figures]


def _collisions_and_dead_codes(
    modules: Mapping[str, ModalityQuantizer],
    catalogue: Catalogue,
    config: QuantizerConfig,
    *,
    device: torch.device,
) -> dict[str, float]:
    """Return collision rate and dead codes (in total and per level) of each modality, before resolution."""
    figures: dict[str, float] = {}
    for modality, module in modules.items():
        codes, _ = quantize(module, catalogue.vectors[modality], device=device)
        dead = count_dead_codes(codes, codebook_size=config.codebook_size)
        figures[f"{modality}_collision_rate"] = collision_rate(codes)
        figures[f"{modality}_dead_codes"] = float(sum(dead))
        figures |= {f"{modality}_dead_codes_{level}": float(count) for level, count in enumerate(dead, start=1)}
    return figures
