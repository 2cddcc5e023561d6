"""Fitting the quantizers of both modalities by any method, and keeping the best epoch (MACRec section 3.2).

In: raw embeddings, pseudo-labels and, if wanted, collaborative vectors of the same items. Out: the weights of the epoch
with the lowest collision rate, of each modality or of both together, and a log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.training import warn_of_slow_products
from macrec_pipeline.semantic_ids.catalogue import Catalogue, present
from macrec_pipeline.semantic_ids.dead_codes import dead_codes
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.epoch_choice import EpochChoice
from macrec_pipeline.semantic_ids.fitted_quantizer import FittedQuantizer
from macrec_pipeline.semantic_ids.modality_quantizer import ModalityQuantizer, quantize
from macrec_pipeline.semantic_ids.residual_k_means import ResidualKMeans
from macrec_pipeline.semantic_ids.residual_quantizer import codebook_seed
from macrec_pipeline.semantic_ids.rq_vae_training import RqVaeTraining

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

# a module a modality, its best epoch, and the log
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
    """Fit both modalities: trained together, trained apart, or by residual k-means (`config.method`).

    One modality alone has no other to be contrasted with, and is trained as one that is trained apart.

    Args:
        text_vectors, image_vectors: float32 [N, D], one row an item, the same items in the same order; None for a
            modality that the catalogue lacks, as its clusters are.
        text_clusters, image_clusters: int64 [N], pseudo-labels; only the cross-modal method looks at them.
        seed: root seed.
        progress: called after every epoch with stage "quantizer".
        collaborative_vectors: float32 [N, C], of the same items; only looked at if a collaborative weight is above 0.

    Raises:
        ConfigError: a collaborative weight is above 0, and there are no vectors.
        SemanticIdError: the collaborative vectors do not fit the items.
        TrainingError: the loss or its gradient is not finite.
    """
    catalogue = Catalogue.of(
        present(text_vectors, image_vectors),
        present(text_clusters, image_clusters),
        collaborative_vectors,
        config,
    )
    fit = _fit_k_means if config.method == "residual_k_means" else _train
    modules, epochs, log = fit(catalogue, config, seed=seed, device=device, progress=progress)
    modules = {name: module.eval() for name, module in modules.items()}
    return FittedQuantizer(modules.get("text"), modules.get("image"), config, epochs, log, catalogue.collaborative_dim)


def _train(
    catalogue: Catalogue, config: QuantizerConfig, *, seed: int, device: torch.device, progress: Progress
) -> _Fitted:
    warn_of_slow_products(config.precision, device)
    names = list(catalogue.vectors)
    apart = config.method == "single_modality" or len(names) == 1
    groups = {f"quantizer/{name}": [name] for name in names} if apart else {"quantizer": names}
    trainings = [
        RqVaeTraining(catalogue.only(group), config, seed=seed, name=name, device=device)
        for name, group in groups.items()
    ]
    modules = {name: module for training in trainings for name, module in training.model.rq_vaes()}
    choice, best = EpochChoice(config.best_epoch), {}
    log: list[dict[str, float]] = []
    for epoch in range(1, config.num_epochs + 1):
        row: dict[str, float] = {"epoch": float(epoch), "loss": 0.0}
        for training in trainings:
            losses = training.one_epoch(epoch)
            row |= losses | {"loss": row["loss"] + losses["loss"]}
        progress("quantizer", epoch, config.num_epochs, {"loss": row["loss"]})
        if epoch % config.evaluate_every == 0 or epoch == config.num_epochs:
            log.append(row | _measured(modules, catalogue, config, device=device))
            for name in choice.offer(epoch, {name: log[-1][f"{name}_collision_rate"] for name in modules}):
                best[name] = {key: value.detach().clone() for key, value in modules[name].state_dict().items()}
        if config.revive_dead_codes and epoch % config.revive_every == 0:
            for training in trainings:
                training.revive_dead_codes()
    for name, module in modules.items():
        module.load_state_dict(best[name])
    return modules, choice.epochs, log


def _fit_k_means(
    catalogue: Catalogue, config: QuantizerConfig, *, seed: int, device: torch.device, progress: Progress
) -> _Fitted:
    modules: dict[str, ResidualKMeans] = {}
    row: dict[str, float] = {"epoch": 0.0, "loss": 0.0}
    for done, (name, vectors) in enumerate(catalogue.vectors.items(), start=1):
        modules[name] = ResidualKMeans(vectors.shape[1], config).to(device)
        items = torch.tensor(vectors, device=device)
        modules[name].standardize(items, collaborative_dim=catalogue.collaborative_dim)
        errors = modules[name].fit(items, seed=codebook_seed(seed, name))
        row |= {f"{name}_level_loss_{level}": error for level, error in enumerate(errors, start=1)}
        row |= {f"{name}_reconstruction": errors[-1], "loss": row["loss"] + errors[-1]}
        progress("quantizer", done, len(catalogue.vectors), {"loss": row["loss"]})
    return modules, dict.fromkeys(modules, 0), [row | _measured(modules, catalogue, config, device=device)]


def _measured(
    modules: Mapping[str, ModalityQuantizer],
    catalogue: Catalogue,
    config: QuantizerConfig,
    *,
    device: torch.device,
) -> dict[str, float]:
    """Collision rate and dead codes, all and by level, of each modality, before any collision is resolved."""
    figures: dict[str, float] = {}
    for name, module in modules.items():
        codes, _ = quantize(module, catalogue.vectors[name], device=device)
        dead = dead_codes(codes, codebook_size=config.codebook_size)
        figures[f"{name}_collision_rate"] = collision_rate(codes)
        figures[f"{name}_dead_codes"] = float(sum(dead))
        figures |= {f"{name}_dead_codes_{level}": float(count) for level, count in enumerate(dead, start=1)}
    return figures
