"""Trains the RQ-VAEs that share an optimizer: both modalities together, or a single one.

Takes the raw vectors and pseudo-labels of a catalogue, and collaborative vectors if the settings use them. Each epoch
returns the mean of every loss. In distributed training (`runtime/distributed.py`) the ranks draw the same batches and
divide their items among themselves.

Shapes (docs/notation.md): B batch rows, B' the batch rows of this rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.errors import ConfigError
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.seeds import numpy_generator, torch_generator
from macrec_pipeline.runtime.training import adam_w, backward_pass, cosine_schedule, guarded_step
from macrec_pipeline.semantic_ids.catalogue import Catalogue
from macrec_pipeline.semantic_ids.cross_modal import CrossModalQuantizer, Items
from macrec_pipeline.semantic_ids.dead_codes import revive_dead_codes
from macrec_pipeline.semantic_ids.modality_quantizer import centre_and_scale
from macrec_pipeline.semantic_ids.residual_quantizer import codebook_seed

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


_WARMUP_SHARE = 0.01


class RqVaeTraining:
    """A model, its optimizer, its order of the items and its random streams, none of them shared.

    Args:
        catalogue: the items, with the modalities that are trained together.
        config: the section `quantizer`.
        seed: root seed.
        name: prefix of the names of the random streams.
        device: where to train.

    Attributes:
        model: the RQ-VAEs and the terms between them.
        items: the catalogue on the device.
        optimizer: of the model.
        order: draws the order of the items.
        positive_draws: draws the positives of the layer contrast.

    Raises:
        ConfigError: a batch has fewer items than there are ranks.
    """

    def __init__(
        self, catalogue: Catalogue, config: QuantizerConfig, *, seed: int, name: str, device: torch.device
    ) -> None:
        self.catalogue, self.config, self.device = catalogue, config, device
        smallest_batch = len(catalogue) // -(-len(catalogue) // config.batch_size)
        if smallest_batch < distributed.world_size():
            raise ConfigError(
                f"The quantizer's smallest batch has {smallest_batch} items, too few for {distributed.world_size()} "
                "training processes. Lower `runtime.training_processes`, or raise `quantizer.batch_size`."
            )
        self.items = _items_on(device, catalogue)
        self.model = CrossModalQuantizer(
            {modality: vectors.shape[1] for modality, vectors in catalogue.vectors.items()},
            config,
            generator=torch_generator(seed, f"{name}/weights"),
            collaborative_dim=0 if catalogue.collaborative is None else catalogue.collaborative.shape[1],
        ).to(device)
        self.order = numpy_generator(seed, f"{name}/order")
        self.positive_draws = torch_generator(seed, f"{name}/positives")
        self._revivals = torch_generator(seed, f"{name}/revivals")
        self._initialize(seed)
        self.optimizer = adam_w(self.model.parameters(), config)
        self._backward_pass = backward_pass(self.model.parameters(), device, allow_graphs=distributed.world_size() == 1)
        self._schedule = None
        if config.schedule == "cosine":
            num_steps = -(-len(catalogue) // config.batch_size) * config.num_epochs
            self._schedule = cosine_schedule(self.optimizer, num_steps=num_steps, warmup_share=_WARMUP_SHARE)

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Pass once over the catalogue; returns the mean of the loss and of each of its parts.

        Raises:
            TrainingError: the loss or its gradient is not finite.
        """
        sums: dict[str, torch.Tensor] = {}
        batches = list(_batches(self.order.permutation(len(self.catalogue)), self.config.batch_size))
        for number, chosen in enumerate(batches, start=1):
            losses: dict[str, torch.Tensor] = {}
            guarded_step(
                self._loss(chosen, losses),
                self.optimizer,
                self.model.parameters(),
                where=f"quantizer training, epoch {epoch}",
                check_finite=self.device.type == "cpu" or number == len(batches),  # a check makes a GPU wait
                keep_gradients=self._backward_pass.keeps_gradients,
            )
            if self._schedule is not None:
                self._schedule.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * (len(chosen) / len(self.catalogue))
        # one transfer per epoch, since each makes a GPU wait
        values = torch.stack(list(sums.values())).tolist()
        return {name: distributed.sum_over_ranks(value) for name, value in zip(sums, values, strict=True)}

    def revive_dead_codes(self) -> None:
        """Reset the codes that no item uses, in every modality."""
        for modality, module in self.model.rq_vaes():
            revive_dead_codes(
                module, self.catalogue.vectors[modality], self.optimizer, generator=self._revivals, device=self.device
            )
        distributed.broadcast_tensors(self.model.parameters())

    def _loss(self, chosen: np.ndarray, losses: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the loss of the items `chosen`, int64 [B], computed on demand; put it and its parts into `losses`."""
        rows = torch.from_numpy(chosen).to(self.device)
        clusters = {modality: labels[rows] for modality, labels in self.items.clusters.items()}
        positives = self.model.draw_positives(clusters, generator=self.positive_draws)
        share = rows[distributed.rank() :: distributed.world_size()]  # [B']
        losses |= self._backward_pass(len(chosen), partial(self._losses, len(chosen)), [share, *positives.values()])
        yield losses["loss"]

    def _losses(self, batch_size: int, share: torch.Tensor, *positives: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the losses of this rank's items, int64 [B'], given the whole batch's positives per modality."""
        positives_of = dict(zip(self.model.contrasted_modalities, positives, strict=True))
        losses = self.model.losses(self.items.rows(share), positives_of, batch_size=batch_size)
        return {"loss": losses.total, **losses.parts}

    @torch.no_grad()
    def _initialize(self, seed: int) -> None:
        """Fit each modality's standardization, then initialize its codebooks from the latents of the first batch."""
        first_batch = self.order.permutation(len(self.catalogue))[: self.config.batch_size]
        rows = torch.from_numpy(first_batch).to(self.device)
        for modality, module in self.model.rq_vaes():
            vectors = self.items.vectors[modality]
            module.fit_standardization(vectors, collaborative_dim=self.catalogue.collaborative_dim)
            module.quantizer.initialize_codebooks(module.encode(vectors[rows]), seed=codebook_seed(seed, modality))
        distributed.broadcast_tensors(self.model.parameters())


def _items_on(device: torch.device, catalogue: Catalogue) -> Items:
    standardized = None
    if catalogue.collaborative is not None:
        raw = torch.tensor(catalogue.collaborative, device=device)
        centre, scale = centre_and_scale(raw)
        standardized = (raw - centre) / scale
    return Items(
        {modality: torch.tensor(vectors, device=device) for modality, vectors in catalogue.vectors.items()},
        {modality: torch.tensor(labels, device=device) for modality, labels in catalogue.clusters.items()},
        standardized,
    )


def _batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield even slices of at most `batch_size`, because a contrast within a small last batch would be worthless."""
    yield from np.array_split(order, -(-len(order) // batch_size))
