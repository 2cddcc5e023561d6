"""Fitting the cross-modal quantizer (MACRec section 3.2), and keeping the best epoch of each modality.

In: raw embeddings and pseudo-labels of the same items. Out: for the text IDs the weights of the epoch with the lowest
text collision rate, for the image IDs those of the epoch with the lowest image collision rate, and a log.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from macrec_pipeline.errors import StorageError
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import derived_seed, numpy_generator, torch_generator
from macrec_pipeline.runtime.training import guarded_step
from macrec_pipeline.semantic_ids.cross_modal import CrossModalQuantizer, ModalityQuantizer
from macrec_pipeline.semantic_ids.diagnostics import collision_rate
from macrec_pipeline.semantic_ids.residual_quantizer import nearest_codes

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig

MODALITIES = ("text", "image")
_INFERENCE_BATCH = 8192


@dataclass(frozen=True)
class FittedQuantizer:
    """A quantizer a modality, each from its best epoch.

    Attributes:
        text, image: in evaluation mode, on the training device.
        best_epoch: epoch of each modality's weights, counted from 1.
        log: one mapping a measurement: epoch, loss, its parts, text_collision_rate, image_collision_rate.
    """

    text: ModalityQuantizer
    image: ModalityQuantizer
    config: QuantizerConfig
    best_epoch: dict[str, int]
    log: list[dict[str, float]] = field(repr=False)

    def save(self, folder: Path) -> None:
        """Write `text.safetensors`, `image.safetensors`, `quantizer.json` and `training_log.json` into a folder."""
        dims = {}
        for modality in MODALITIES:
            module: ModalityQuantizer = getattr(self, modality)
            save_file(
                {name: value.contiguous().cpu() for name, value in module.state_dict().items()},
                folder / f"{modality}.safetensors",
            )
            dims[modality] = module.projection.in_features
        settings = dict(vars(self.config))
        description = {"config": settings, "embedding_dim": dims, "best_epoch": self.best_epoch}
        (folder / "quantizer.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / "training_log.json").write_text(json.dumps(self.log, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path, *, device: torch.device) -> FittedQuantizer:
        """Read what `save` wrote. Raises `StorageError` that names the file."""
        try:
            description = json.loads((folder / "quantizer.json").read_text())
            config = cast("QuantizerConfig", SimpleNamespace(**description["config"]))
            modules = {}
            for modality in MODALITIES:
                module = ModalityQuantizer(description["embedding_dim"][modality], config)
                module.load_state_dict(load_file(folder / f"{modality}.safetensors"))
                modules[modality] = module.to(device).eval()
            log = json.loads((folder / "training_log.json").read_text())
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise StorageError(f"{folder} is no usable quantizer: {error}. Materialize `quantizer` again.") from error
        return cls(modules["text"], modules["image"], config, description["best_epoch"], log)


def fit_quantizer(
    text_vectors: np.ndarray,
    image_vectors: np.ndarray,
    text_clusters: np.ndarray,
    image_clusters: np.ndarray,
    config: QuantizerConfig,
    *,
    seed: int,
    device: torch.device,
    progress: Progress = quiet_progress,
) -> FittedQuantizer:
    """Train both modalities together.

    Args:
        text_vectors, image_vectors: float32 [N, D], one row an item, the same items in the same order.
        text_clusters, image_clusters: int64 [N], pseudo-labels.
        seed: root seed.
        progress: called after every epoch with stage "quantizer".

    Raises:
        TrainingError: the loss or its gradient is not finite.
    """
    vectors = {"text": text_vectors, "image": image_vectors}
    tensors = [
        torch.tensor(array, device=device) for array in (text_vectors, image_vectors, text_clusters, image_clusters)
    ]
    model = CrossModalQuantizer(
        text_vectors.shape[1], image_vectors.shape[1], config, torch_generator(seed, "quantizer/weights")
    ).to(device)
    order, draws = numpy_generator(seed, "quantizer/order"), torch_generator(seed, "quantizer/positives")
    _initialise(model, tensors, order.permutation(len(text_vectors))[: config.batch_size], seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    best = {modality: _Best() for modality in MODALITIES}
    log: list[dict[str, float]] = []
    for epoch in range(1, config.num_epochs + 1):
        sums: dict[str, float] = {}
        for chosen in _batches(order.permutation(len(text_vectors)), config.batch_size):
            batch = [tensor[torch.from_numpy(chosen).to(device)] for tensor in tensors]
            losses = model.losses(*batch, generator=draws)
            guarded_step(losses.total, optimizer, model.parameters(), where=f"quantizer training, epoch {epoch}")
            for name, value in {"loss": losses.total, **losses.parts}.items():
                sums[name] = sums.get(name, 0.0) + value.item() * len(chosen) / len(text_vectors)
        if epoch % config.evaluate_every == 0 or epoch == config.num_epochs:
            row = {"epoch": float(epoch)} | sums
            for modality in MODALITIES:
                module: ModalityQuantizer = getattr(model, modality)
                rate = collision_rate(quantize(module, vectors[modality], device=device)[0])
                row[f"{modality}_collision_rate"] = rate
                best[modality].offer(rate, epoch, module)
            log.append(row)
        progress("quantizer", epoch, config.num_epochs, {"loss": sums["loss"]})
    for modality in MODALITIES:
        getattr(model, modality).load_state_dict(best[modality].state)
    epochs = {modality: best[modality].epoch for modality in MODALITIES}
    return FittedQuantizer(model.text.eval(), model.image.eval(), config, epochs, log)


@torch.no_grad()
def quantize(
    module: ModalityQuantizer, vectors: np.ndarray, *, device: torch.device
) -> tuple[np.ndarray, torch.Tensor]:
    """Quantize raw embeddings float32 [N, D], before any collision is resolved.

    Returns:
        The nearest codes, int64 [N, L], and what entered the last two levels, float [N, 2, H] on the CPU (twice the
        same if there is one level).
    """
    codes, residuals = [], []
    for begin in range(0, len(vectors), _INFERENCE_BATCH):
        entering = [module.latents(torch.tensor(vectors[begin : begin + _INFERENCE_BATCH], device=device))]
        chosen = []
        for codebook in module.quantizer.codebooks:
            chosen.append(nearest_codes(entering[-1], codebook))
            entering.append(entering[-1] - codebook[chosen[-1]])
        entering.pop()  # what no level explains
        codes.append(torch.stack(chosen, dim=1).cpu())
        residuals.append(torch.stack([entering[max(0, len(entering) - 2)], entering[-1]], dim=1).cpu())
    return torch.cat(codes).numpy(), torch.cat(residuals)


@dataclass
class _Best:
    """The weights with the lowest collision rate so far; of equal rates the later ones, which reconstruct better."""

    rate: float = float("inf")
    epoch: int = 0
    state: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, rate: float, epoch: int, module: ModalityQuantizer) -> None:
        if rate <= self.rate:
            self.rate, self.epoch = rate, epoch
            self.state = {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def _initialise(model: CrossModalQuantizer, tensors: list[torch.Tensor], chosen: np.ndarray, seed: int) -> None:
    """Standardize each modality's input, then start its codebooks from the first batch's latents."""
    rows = torch.from_numpy(chosen).to(tensors[0].device)
    for modality, vectors in zip(MODALITIES, tensors, strict=False):
        module: ModalityQuantizer = getattr(model, modality)
        module.standardize(vectors)
        start = derived_seed(seed, f"quantizer/{modality} codebooks")
        module.quantizer.initialise(module.latents(vectors[rows]), seed=start % 2**31)


def _batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Even slices of at most `batch_size`: a contrast against two left-over items would be worthless."""
    yield from np.array_split(order, -(-len(order) // batch_size))
