"""One epoch of training the cross-modal quantizer, with the published model and embeddings of the published widths.

The baseline does the same arithmetic in a straightforward way: torch's own layers in float32, a Python loop over the
levels, and default AdamW. Both start from the same weights, read the same items in the same order and draw the same
positives, so the mean losses of the epoch are equal except for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.speed.case import Case, Timed
from benchmarks.speed.machine import Machine
from macrec_pipeline.config import QuantizerConfig, RuntimeConfig
from macrec_pipeline.runtime.devices import prepare_device
from macrec_pipeline.runtime.seeds import numpy_generator, torch_generator
from macrec_pipeline.runtime.training import adam_w
from macrec_pipeline.semantic_ids.catalogue import Catalogue
from macrec_pipeline.semantic_ids.losses import draw_positives
from macrec_pipeline.semantic_ids.rq_vae import RqVae
from macrec_pipeline.semantic_ids.rq_vae_training import RqVaeTraining

_RAW = {"text": 4096, "image": 768}
_CLUSTERS, _SEED = 512, 1
_OTHER = {"text": "image", "image": "text"}
_SMALL = QuantizerConfig(
    projection_dim=16, hidden_dims=(16, 8), latent_dim=4, codebook_size=8, batch_size=64, learning_rate=1e-3
)
Precision = Literal["float32", "bfloat16"]
_PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")


def cases() -> list[Case]:
    """Return the cases of the table."""
    return [_case(6_250, precision=precision, repeats=3, baseline_repeats=2) for precision in _PRECISIONS]


def growing() -> list[Case]:
    """Return cases for the cost by number of items."""
    return [_case(items, precision="bfloat16", repeats=2, baseline_repeats=0) for items in (4_096, 16_384, 65_536)]


def tiny() -> list[Case]:
    """Return cases for the tests."""
    return [
        _case(200, dims={"text": 24, "image": 12}, config=_SMALL, precision=precision, repeats=1, baseline_repeats=1)
        for precision in _PRECISIONS
    ]


def write_catalogue(folder: Path, items: int, dims: Mapping[str, int]) -> None:
    """Write `text.npy` and `image.npy`, float32 [N, D] around common centres, and pseudo-labels `..._clusters.npy`."""
    generator = np.random.default_rng(1)
    centre = generator.integers(0, max(items // 12, 2), items)
    for name, dim in dims.items():
        centres = generator.standard_normal((centre.max() + 1, dim), dtype=np.float32)
        np.save(folder / f"{name}.npy", centres[centre] + generator.standard_normal((items, dim), dtype=np.float32) / 2)
        np.save(folder / f"{name}_clusters.npy", centre % _CLUSTERS)


def _training(folder: Path, config: QuantizerConfig) -> RqVaeTraining:
    device = prepare_device(RuntimeConfig(device="cpu", num_threads=torch.get_num_threads()))
    vectors = {name: np.load(folder / f"{name}.npy") for name in _OTHER}
    clusters = {name: np.load(folder / f"{name}_clusters.npy") for name in _OTHER}
    return RqVaeTraining(
        Catalogue.from_arrays(vectors, clusters, None, config), config, seed=_SEED, name="quantizer", device=device
    )


def _pipeline(folder: Path, config: QuantizerConfig) -> Timed:
    training = _training(folder, config)
    start = copy.deepcopy(training.model.state_dict())

    def run() -> float:
        training.model.load_state_dict(start)
        training.optimizer = adam_w(training.model.parameters(), config)
        training.order, training.positive_draws = numpy_generator(_SEED, "epoch"), torch_generator(_SEED, "epoch")
        return training.train_epoch(1)["loss"]

    return run


def _baseline(folder: Path, config: QuantizerConfig) -> Timed:
    training = _training(folder, config)
    model, items = training.model, training.items
    start = copy.deepcopy(model.state_dict())

    def run() -> float:
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        generator = torch_generator(_SEED, "epoch")
        order = numpy_generator(_SEED, "epoch").permutation(len(training.catalogue))
        total = 0.0
        for part in np.array_split(order, -(-len(order) // config.batch_size)):
            rows = items.rows(torch.from_numpy(part))
            loss = torch.zeros(())
            latents: list[torch.Tensor] = []
            for name, module in model.rq_vaes():
                positives = draw_positives(rows.clusters[_OTHER[name]], generator=generator)
                modality_loss, latent = _modality_loss(module, rows.vectors[name], positives, config)
                loss, latents = loss + modality_loss, [*latents, F.normalize(latent, dim=1)]
            similarity = latents[0] @ latents[1].T / config.temperature
            pairs = torch.arange(len(part))
            alignment = (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2
            loss = loss + config.alignment_weight * alignment
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(part) / len(order)
        return total

    return run


def _modality_loss(
    module: RqVae, vectors: torch.Tensor, positives: torch.Tensor, config: QuantizerConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of one modality (reconstruction, levels, layer contrast) and its quantized latent."""
    target = (vectors - module.centre) / module.scale
    latent = module.encoder(module.projection(target))
    residual, quantized = latent, torch.zeros_like(latent)
    levels, contrasts = [], []
    for level, codebook in enumerate(module.quantizer.codebooks, start=1):
        if level >= config.contrast_from_level:
            unit = F.normalize(residual, dim=1)
            similarity = unit @ unit.T / config.temperature
            has_no_positive = positives == torch.arange(len(positives))
            similarity = similarity.masked_fill(
                torch.eye(len(unit), dtype=torch.bool) & ~has_no_positive, float("-inf")
            )
            contrasts.append(F.cross_entropy(similarity, positives))
        code = codebook[torch.cdist(residual.detach(), codebook.detach()).argmin(dim=1)]
        levels.append(
            F.mse_loss(code, residual.detach()) + config.commitment_weight * F.mse_loss(code.detach(), residual)
        )
        residual, quantized = residual - code.detach(), quantized + code.detach()
    quantized = latent + (quantized - latent).detach()
    loss = F.mse_loss(module.decoder(quantized), target) + torch.stack(levels).mean()
    return loss + config.contrast_weight * torch.stack(contrasts).mean(), quantized


def _case(
    items: int,
    *,
    precision: Precision,
    dims: Mapping[str, int] = _RAW,
    config: QuantizerConfig | None = None,
    **kwargs: Any,
) -> Case:
    config = (config or QuantizerConfig()).model_copy(update={"precision": precision})

    def limit(machine: Machine) -> float:
        """Count the layers' matrix products, twice as many backward as forward, at the machine's float32 rate."""
        inner = (config.projection_dim, *config.hidden_dims, config.latent_dim)
        middle = 2 * sum(inputs * outputs for inputs, outputs in pairwise(inner))
        macs = sum(2 * dim * config.projection_dim + middle for dim in dims.values())
        return 3 * 2 * items * macs / machine.gigaflops / 1e9

    def check_equal(pipeline: float, baseline: float) -> None:
        # bfloat16 has 8 bits of precision, which is 0.4%
        tolerance = 1e-4 if precision == "float32" else 1e-2
        assert abs(pipeline - baseline) <= tolerance * abs(baseline), f"mean losses are {pipeline} and {baseline}"

    return Case(
        name=f"quantizer training, an epoch, {precision}, {items:,} items",
        size=items,
        size_of="items",
        prepare=lambda folder: write_catalogue(folder, items, dims),
        pipeline=lambda folder: _pipeline(folder, config),
        baseline=lambda folder: _baseline(folder, config.model_copy(update={"precision": "float32"})),
        check_equal=check_equal,
        limit=limit,
        bfloat16=precision == "bfloat16",
        **kwargs,
    )
