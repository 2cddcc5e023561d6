"""Training the RQ-VAEs that share an optimizer: both modalities together, or one alone.

In: a catalogue's raw vectors, pseudo-labels and, if wanted, collaborative vectors. Out: epoch by epoch the mean of each
loss; at a measurement the collision rate and the dead codes of each modality.
Several ranks (`runtime/distributed.py`) draw the same batches and share out their items.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.errors import ConfigError
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.cuda_graphs import propagation
from macrec_pipeline.runtime.seeds import numpy_generator, torch_generator
from macrec_pipeline.runtime.training import adam_w, cosine_schedule, guarded_step
from macrec_pipeline.semantic_ids.catalogue import Catalogue
from macrec_pipeline.semantic_ids.cross_modal import CrossModalQuantizer, Items
from macrec_pipeline.semantic_ids.dead_codes import reset_dead_codes
from macrec_pipeline.semantic_ids.modality_quantizer import centre_and_scale
from macrec_pipeline.semantic_ids.residual_quantizer import codebook_seed

if TYPE_CHECKING:
    from macrec_pipeline.config import QuantizerConfig


_WARMUP_SHARE = 0.01


class RqVaeTraining:
    """A model, its optimizer, its order of the items and its draws: nothing is shared with another training.

    Args:
        catalogue: the items, with the modalities that are trained together.
        config: sizes, weights and steps.
        seed: root seed.
        name: of the streams of random numbers.

    Raises:
        ConfigError: a batch has fewer items than there are ranks.
    """

    def __init__(
        self, catalogue: Catalogue, config: QuantizerConfig, *, seed: int, name: str, device: torch.device
    ) -> None:
        self.catalogue, self.config, self.device = catalogue, config, device
        if (smallest := len(catalogue) // -(-len(catalogue) // config.batch_size)) < distributed.count():
            raise ConfigError(
                f"The quantizer's batches have {smallest} items, too few for {distributed.count()} processes. "
                "Set runtime.training_processes lower, or quantizer.batch_size higher."
            )
        self.items = _items(catalogue, device=device)
        self.model = CrossModalQuantizer(
            {modality: vectors.shape[1] for modality, vectors in catalogue.vectors.items()},
            config,
            generator=torch_generator(seed, f"{name}/weights"),
            collaborative_dim=0 if catalogue.collaborative is None else catalogue.collaborative.shape[1],
        ).to(device)
        self.order, self.draws = numpy_generator(seed, f"{name}/order"), torch_generator(seed, f"{name}/positives")
        self.revivals = torch_generator(seed, f"{name}/revivals")
        self._initialise(seed)
        self.optimizer = adam_w(self.model.parameters(), config)
        self.propagate = propagation(self.model.parameters(), device, may_record=distributed.count() == 1)
        self.schedule = None
        if config.schedule == "cosine":
            steps = -(-len(catalogue) // config.batch_size) * config.num_epochs
            self.schedule = cosine_schedule(self.optimizer, num_steps=steps, warmup_share=_WARMUP_SHARE)

    def one_epoch(self, epoch: int) -> dict[str, float]:
        """Pass over the catalogue once; the mean of the loss and of each of its parts.

        Raises:
            TrainingError: the loss or its gradient is not finite.
        """
        sums: dict[str, torch.Tensor] = {}
        batches = list(_batches(self.order.permutation(len(self.catalogue)), self.config.batch_size))
        for number, chosen in enumerate(batches, start=1):
            losses: dict[str, torch.Tensor] = {}
            guarded_step(
                self._parts(chosen, losses),
                self.optimizer,
                self.model.parameters(),
                where=f"quantizer training, epoch {epoch}",
                look=self.device.type == "cpu" or number == len(batches),  # a look makes a GPU wait
                keep_gradients=self.propagate.keeps_gradients,
            )
            if self.schedule is not None:
                self.schedule.step()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0.0) + value.detach() * (len(chosen) / len(self.catalogue))
        # one transfer an epoch: each would make a GPU wait
        values = torch.stack(list(sums.values())).tolist()
        return {name: distributed.total(value) for name, value in zip(sums, values, strict=True)}

    def _parts(self, chosen: np.ndarray, losses: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """The loss of the items `chosen`, int64 [B], worked out when the step asks for it; `losses` gets all of it."""
        rows = torch.from_numpy(chosen).to(self.device)
        clusters = {name: labels[rows] for name, labels in self.items.clusters.items()}
        positives = self.model.draw_positives(clusters, generator=self.draws)
        own = rows[distributed.rank() :: distributed.count()]
        losses |= self.propagate(len(chosen), partial(self._losses, len(chosen)), [own, *positives.values()])
        yield losses["loss"]

    def _losses(self, batch_size: int, own: torch.Tensor, *positives: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of this rank's items of a batch, int64 [B'], and the positives of all B in each contrasted modality."""
        drawn = dict(zip(self.model.contrasted, positives, strict=True))
        losses = self.model.losses(self.items.rows(own), drawn, batch_size=batch_size)
        return {"loss": losses.total, **losses.parts}

    def revive_dead_codes(self) -> None:
        """Bring the codes that no item has back, in every modality."""
        for name, module in self.model.rq_vaes():
            reset_dead_codes(
                module, self.catalogue.vectors[name], self.optimizer, generator=self.revivals, device=self.device
            )
        distributed.as_on_first(self.model.parameters())

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        """Standardize each modality's input, then start its codebooks from the first batch's latents."""
        first = self.order.permutation(len(self.catalogue))[: self.config.batch_size]
        rows = torch.from_numpy(first).to(self.device)
        for name, module in self.model.rq_vaes():
            vectors = self.items.vectors[name]
            module.standardize(vectors, collaborative_dim=self.catalogue.collaborative_dim)
            module.quantizer.initialise(module.latents(vectors[rows]), seed=codebook_seed(seed, name))
        distributed.as_on_first(self.model.parameters())


def _items(catalogue: Catalogue, *, device: torch.device) -> Items:
    standardized = None
    if catalogue.collaborative is not None:
        raw = torch.tensor(catalogue.collaborative, device=device)
        centre, scale = centre_and_scale(raw)
        standardized = (raw - centre) / scale
    return Items(
        {name: torch.tensor(vectors, device=device) for name, vectors in catalogue.vectors.items()},
        {name: torch.tensor(labels, device=device) for name, labels in catalogue.clusters.items()},
        standardized,
    )


def _batches(order: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Even slices of at most `batch_size`: a contrast against two left-over items would be worthless."""
    yield from np.array_split(order, -(-len(order) // batch_size))
