"""Training of SASRec on the training parts of the histories, stopped by its own validation figure.

What enters: histories. What leaves: `FittedSasrec`, the weights of the epoch with the best NDCG@10 for
`history[:-2]` -> `history[-2]`. Training sees neither that target nor the test target.
B rows of a batch, T positions, W windows, N items, U users.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec
from macrec_pipeline.recommender.sasrec.model import Sasrec, flatten, next_item_scores, windows_of
from macrec_pipeline.runtime.checkpoint import (
    load_checkpoint,
    restore_training,
    save_checkpoint,
    training_identity,
    training_tensors,
)
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import derived_seed, numpy_generator, torch_generator
from macrec_pipeline.runtime.training import adam_w, guarded_step

if TYPE_CHECKING:
    from macrec_pipeline.config import SasrecConfig

VALIDATION_CUTOFF = 10
_STAGE = "sasrec"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Windows:
    """Stretches of the histories, each item but the first of a history a target in exactly one.

    Attributes:
        firsts: where the first input of a window is among all items end to end, int64 [W].
        lengths: inputs of a window, as many as its targets, which come one item later; int64 [W].
    """

    firsts: np.ndarray
    lengths: np.ndarray


def fit_sasrec(
    histories: Sequence[np.ndarray],
    *,
    num_items: int,
    config: SasrecConfig,
    seed: int,
    device: torch.device = _CPU,
    progress: Progress = quiet_progress,
    checkpoint: Path | None = None,
) -> FittedSasrec:
    """Train until the epochs or the patience run out.

    Args:
        histories: whole histories, int64 [T] item indices each, oldest first, targets included.
        num_items: N.
        seed: root seed; weights, order and dropout draw from streams of their own.
        progress: called after every optimizer step and every epoch with stage "sasrec"; counts targets of all epochs.
        checkpoint: a file to go on from and to write after every epoch. A training that was cut off ends, on the CPU,
            with the bytes of one that was not; a file of other data or settings is not used.

    Raises:
        TrainingError: the loss or its gradient is not finite.
    """
    identity = training_identity(
        {"config": dict(vars(config)), "seed": seed, "num_items": num_items}, flatten(histories)
    )
    model = Sasrec(num_items, config, torch_generator(seed, "sasrec/weights")).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _Fit(model, histories, config, seed, progress).run(checkpoint, identity)


def training_windows(lengths: np.ndarray, *, max_length: int) -> Windows:
    """Cut the training part `[:-2]` of every history into windows of at most `max_length` targets, from its end on.

    Args:
        lengths: items of each whole history, int64 [U].
        max_length: targets of a window.
    """
    targets = np.maximum(lengths - 3, 0)  # the first item of a training part has nothing before it
    num_windows = -(-targets // max_length)
    users = np.repeat(np.arange(len(lengths)), num_windows)
    places = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    ends = targets[users] - places * max_length
    firsts = np.maximum(ends - max_length, 0)
    return Windows((np.cumsum(lengths) - lengths)[users] + firsts, ends - firsts)


def validation_ndcg(model: Sasrec, histories: Sequence[np.ndarray]) -> float:
    """Mean NDCG@10 of the validation target over the users who have one, seen items allowed; 0 without users."""
    model.eval()
    gains = [np.zeros(0)]
    flat, starts = flatten(histories)
    for users, scores in next_item_scores(model, [history[:-2] for history in histories]):
        targets = torch.from_numpy(flat[starts[users + 1] - 2]).to(scores.device)
        reached = scores.gather(1, targets[:, None])
        ranks = (scores >= reached).sum(dim=1).cpu().numpy()  # a tie counts against the model
        gains.append(np.where(ranks <= VALIDATION_CUTOFF, 1.0 / np.log2(ranks + 1.0), 0.0))
    found = np.concatenate(gains)
    return float(found.mean()) if len(found) else 0.0


class _Fit:
    """One training run: the data, the optimizer and the best weights so far."""

    def __init__(
        self, model: Sasrec, histories: Sequence[np.ndarray], config: SasrecConfig, seed: int, progress: Progress
    ) -> None:
        self.model, self.histories, self.config, self.progress = model, histories, config, progress
        self.seed = seed
        self.order, self.dropout = numpy_generator(seed, "sasrec/order"), torch_generator(seed, "sasrec/dropout")
        model.draw_dropout_from(self.dropout)
        self.optimizer = adam_w(model.parameters(), config)
        self.flat, starts = flatten(histories)
        self.windows = training_windows(np.diff(starts), max_length=config.max_length)
        self.num_targets = int(self.windows.lengths.sum())
        self.total = config.max_epochs * self.num_targets + 1  # the last step: the best weights are put back
        self.log: list[dict[str, float]] = []
        self.best_epoch, self.best_state = 0, self._state()

    def run(self, checkpoint: Path | None, identity: str) -> FittedSasrec:
        """Train from the checkpoint, if there is one of this training, to the end; write it after every epoch."""
        if checkpoint is not None and (stored := load_checkpoint(checkpoint, identity=identity)) is not None:
            self._restore(*stored)
        for epoch in range(len(self.log) + 1, self.config.max_epochs + 1) if self.num_targets else ():
            if self.log and epoch - 1 - self.best_epoch >= self.config.patience:
                break
            loss = self._train_epoch(epoch)
            validation = validation_ndcg(self.model, self.histories)
            if validation > max((row["validation_ndcg"] for row in self.log), default=-1.0):
                self.best_epoch, self.best_state = epoch, self._state()
            self.log.append({"epoch": float(epoch), "train_loss": loss, "validation_ndcg": validation})
            if checkpoint is not None:
                save_checkpoint(checkpoint, identity=identity, tensors=self._tensors(), values=self._values())
            self.progress(_STAGE, epoch * self.num_targets, self.total, {"validation_ndcg": validation})
        self.model.load_state_dict(self.best_state)
        fitted = FittedSasrec(self.model.eval(), self.log, self.best_epoch)
        if self.log:  # patience is an end, too
            self.progress(_STAGE, self.total, self.total, {"validation_ndcg": fitted.validation_ndcg})
        return fitted

    def _train_epoch(self, epoch: int) -> float:
        """One pass over all windows; the mean loss a target in nats."""
        self.model.train()
        torch.manual_seed(derived_seed(self.seed, f"sasrec/dropout/{epoch}"))  # for devices other than the CPU
        device = self.model.items.weight.device
        total, count = 0.0, 0
        for step, batch in enumerate(plan_batches(self.windows, self.config.batch_size, self.order), start=1):
            inputs, exists = (part.to(device) for part in windows_of(self.flat, batch.firsts, batch.lengths))
            targets, _ = windows_of(self.flat, batch.firsts + 1, batch.lengths)
            # the output layer is the greater part of the work, so padding is dropped before it
            states = self.model(inputs)[exists]  # [targets, D]
            loss = self.model.loss(states, targets.to(device)[exists])
            where = f"SASRec training, epoch {epoch}, step {step}"
            guarded_step([loss], self.optimizer, self.model.parameters(), where=where)
            value = loss.item()
            total, count = total + value * len(states), count + len(states)
            self.progress(_STAGE, (epoch - 1) * self.num_targets + count, self.total, {"train_loss": value})
        return total / self.num_targets

    def _state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = training_tensors(self.model, self.best_state, self.optimizer)
        return tensors | {"generator/dropout": self.dropout.get_state()}

    def _values(self) -> dict[str, Any]:
        return {"log": self.log, "best_epoch": self.best_epoch, "order": self.order.bit_generator.state}

    def _restore(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        self.log, self.best_epoch = values["log"], values["best_epoch"]
        self.order.bit_generator.state = values["order"]
        groups = restore_training(tensors, self.model, self.optimizer)
        self.best_state = groups["best"]
        self.dropout.set_state(groups["generator"]["dropout"])


def plan_batches(windows: Windows, targets_per_batch: int, generator: np.random.Generator) -> list[Windows]:
    """Batches of windows of similar length and about `targets_per_batch` targets, in random order."""
    shuffled = generator.permutation(len(windows.firsts))
    order = shuffled[np.argsort(windows.lengths[shuffled], kind="stable")]
    ends = np.cumsum(windows.lengths[order])
    numbers = (ends - 1) // targets_per_batch  # the batch in which a window's last target falls
    batches = np.split(order, np.flatnonzero(np.diff(numbers)) + 1)
    return [
        Windows(windows.firsts[batches[one]], windows.lengths[batches[one]])
        for one in generator.permutation(len(batches))
    ]
