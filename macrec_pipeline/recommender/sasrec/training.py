"""Trains SASRec on the training parts of the histories.

Takes histories and returns the weights of the epoch with the best validation NDCG@10, which predicts `history[-2]` from
`history[:-2]`. Training sees neither that validation target nor the test target. A refit (`training/refit.py`) trains
on whole histories instead, for a number of epochs that was chosen before.

Shapes (docs/notation.md): B batch rows, D hidden width (`d_model`), N items, R training windows, T history items,
U users.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec, load_starting_weights, weights_digest
from macrec_pipeline.recommender.sasrec.model import Sasrec, SasrecSpec, cut_windows, flatten, next_item_scores
from macrec_pipeline.runtime.checkpoint import Checkpoint, training_identity
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import derived_seed, numpy_generator, torch_generator
from macrec_pipeline.runtime.training import (
    ResumableTrainable,
    Trainer,
    adam_w,
    cosine_schedule,
    guarded_step,
    restore_schedule,
)

if TYPE_CHECKING:
    from macrec_pipeline.config import SasrecConfig

VALIDATION_CUTOFF = 10
NUM_HELD_OUT = 2
"""The items at the end of a history that training does not see: the validation target and the test target."""
# A continued training starts with AdamW's moments at zero, so its first steps are short.
_CONTINUED_WARMUP = 0.1
_STAGE = "sasrec"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Windows:
    """Stretches of the histories. Each item after the first of a training part is a target in exactly one of them.

    Attributes:
        firsts: int64 [R], position of the first input of each window among all items laid end to end.
        lengths: int64 [R], inputs per window. There are as many targets, each one item after its input.
    """

    firsts: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class SasrecStart:
    """The weights that a training starts from.

    Attributes:
        folder: of the earlier SASRec, with its item IDs.
        item_ids: the IDs of today's N items, in their order.
        config: the section `sasrec` for the continued training: fewer epochs and a lower learning rate, which falls to
            0. It applies only if the earlier weights fit.
    """

    folder: Path
    item_ids: Sequence[str]
    config: SasrecConfig


def fit_sasrec(
    histories: Sequence[np.ndarray],
    *,
    num_items: int,
    config: SasrecConfig,
    seed: int,
    device: torch.device = _CPU,
    progress: Progress = quiet_progress,
    checkpoint: Path | None = None,
    start: SasrecStart | None = None,
    refit_epochs: int | None = None,
    refit_start: Path | None = None,
) -> FittedSasrec:
    """Train until the epochs or the patience run out.

    Args:
        histories: whole histories including the held-out targets, int64 [T] item indices each, oldest first.
        num_items: N.
        config: the section `sasrec`.
        seed: root seed. Weights, order and dropout draw from separate streams.
        device: where to train.
        progress: called after every optimizer step and every epoch with stage "sasrec"; counts targets of all epochs.
        checkpoint: file to resume from; rewritten after every epoch. On the CPU, an interrupted training ends with the
            same bytes as an uninterrupted one. A file with other data, settings or starting weights is ignored.
        start: weights of an earlier run to start from, if their shapes fit; None starts from random ones.
        refit_epochs: train on whole histories, including validation and test targets, for exactly this many epochs, and
            keep the weights of the last one. None: hold the targets out and keep the epoch that is best on validation.
        refit_start: folder written by `FittedSasrec.save`, of a model with the same settings and items. A refit starts
            from its weights; None starts it from random ones.

    Raises:
        TrainingError: the loss or its gradient is not finite.
        StorageError: the weights to start from are damaged.
    """
    spec = SasrecSpec.from_settings(vars(config))
    model = Sasrec(num_items, spec, torch_generator(seed, "sasrec/weights"))
    start_digest, warm_start = None, "none"
    if start is not None:
        start_digest, warm_start = load_starting_weights(model, start.folder, start.item_ids)
        config = config if start_digest is None else start.config
    settings = dict(vars(config))
    # Settings of what to start from say nothing about a training from random weights.
    settings.pop("warm_start", None)
    resume_from = None
    if checkpoint is not None:
        identity: dict[str, Any] = {"config": settings, "seed": seed, "num_items": num_items}
        identity |= {} if start_digest is None else {"start": start_digest}
        identity |= {} if refit_epochs is None else {"refit_epochs": refit_epochs}
        identity |= {} if refit_start is None else {"start": weights_digest(refit_start)}
        resume_from = Checkpoint(checkpoint, training_identity(identity, flatten(histories)))
    if refit_start is not None:
        model.load_state_dict(FittedSasrec.load(refit_start).model.state_dict())
    model = model.to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training = SasrecTraining(
            model,
            histories,
            config,
            seed=seed,
            progress=progress,
            is_continued=start_digest is not None,
            refit_epochs=refit_epochs,
        )
        num_epochs = training.num_epochs if training.num_targets else 0
        trainer = Trainer(training, num_epochs=num_epochs, patience=config.patience if refit_epochs is None else None)
        trainer.run(resume_from)
    settings.pop("enabled", None)
    fitted = FittedSasrec(model.eval(), settings, trainer.log, trainer.best_epochs["sasrec"], warm_start)
    if fitted.log:  # patience may have ended the training before the last epoch
        figures = {} if refit_epochs is not None else {"validation_ndcg": fitted.validation_ndcg}
        progress(_STAGE, training.total_progress, training.total_progress, figures)
    return fitted


def training_windows(lengths: np.ndarray, *, max_length: int, num_held_out: int = NUM_HELD_OUT) -> Windows:
    """Cut the training part of every history into windows, starting from its end.

    Args:
        lengths: int64 [U], items of each whole history.
        max_length: maximum number of targets per window.
        num_held_out: items at the end of a history that are not part of its training part.
    """
    num_targets = np.maximum(lengths - num_held_out - 1, 0)  # the first item of a training part is no target
    num_windows = -(-num_targets // max_length)
    users = np.repeat(np.arange(len(lengths)), num_windows)
    number_from_end = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    ends = num_targets[users] - number_from_end * max_length
    firsts = np.maximum(ends - max_length, 0)
    return Windows((np.cumsum(lengths) - lengths)[users] + firsts, ends - firsts)


def validation_ndcg(model: Sasrec, histories: Sequence[np.ndarray]) -> float:
    """Return the mean NDCG@10 of the validation targets with seen items allowed; 0 if no user has such a target."""
    model.eval()
    gains = [np.zeros(0)]
    items, starts = flatten(histories)
    for users, scores in next_item_scores(model, [history[:-2] for history in histories]):
        targets = torch.from_numpy(items[starts[users + 1] - 2]).to(scores.device)
        target_scores = scores.gather(1, targets[:, None])
        ranks = (scores >= target_scores).sum(dim=1).cpu().numpy()  # a tie counts against the model
        gains.append(np.where(ranks <= VALIDATION_CUTOFF, 1.0 / np.log2(ranks + 1.0), 0.0))
    all_gains = np.concatenate(gains)
    return float(all_gains.mean()) if len(all_gains) else 0.0


class SasrecTraining(ResumableTrainable):
    """SASRec with its data and optimizer, for `Trainer`.

    Args:
        model: on the training device.
        histories: whole histories, int64 [T] item indices each, oldest first.
        config: the training settings.
        seed: root seed.
        progress: called after every optimizer step and every epoch.
        is_continued: whether the learning rate rises briefly and then falls to 0, as suits trained weights; otherwise
            it stays the same.
        refit_epochs: as for `fit_sasrec`.

    Attributes:
        num_epochs: the largest number of epochs to train for.
        num_targets: targets per epoch.
        total_progress: the number that `progress` counts to: the targets of all epochs, and 1 for the end.
    """

    def __init__(
        self,
        model: Sasrec,
        histories: Sequence[np.ndarray],
        config: SasrecConfig,
        *,
        seed: int,
        progress: Progress,
        is_continued: bool = False,
        refit_epochs: int | None = None,
    ) -> None:
        self.modules = {"sasrec": model}
        self._model, self._histories, self._config, self._progress = model, histories, config, progress
        self._seed, self._is_refit = seed, refit_epochs is not None
        self.num_epochs = config.max_epochs if refit_epochs is None else refit_epochs
        self._order, self._dropout = numpy_generator(seed, "sasrec/order"), torch_generator(seed, "sasrec/dropout")
        model.draw_dropout_from(self._dropout)
        self.optimizer = adam_w(model.parameters(), config)
        self._items, starts = flatten(histories)
        num_held_out = 0 if self._is_refit else NUM_HELD_OUT
        self._windows = training_windows(np.diff(starts), max_length=config.max_length, num_held_out=num_held_out)
        self.num_targets = int(self._windows.lengths.sum())
        self.total_progress = self.num_epochs * self.num_targets + 1
        self._schedule = self._falling_rate() if is_continued and self.num_targets else None

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Pass once over all windows; returns the mean `train_loss` in nats per target."""
        self._model.train()
        torch.manual_seed(derived_seed(self._seed, f"sasrec/dropout/{epoch}"))  # for devices other than the CPU
        device = self._model.items.weight.device
        summed_loss, num_done = 0.0, 0
        batches = plan_batches(self._windows, targets_per_batch=self._config.batch_size, generator=self._order)
        for step, batch in enumerate(batches, start=1):
            inputs, exists = (part.to(device) for part in cut_windows(self._items, batch.firsts, batch.lengths))
            targets, _ = cut_windows(self._items, batch.firsts + 1, batch.lengths)
            # padding is dropped here, because the output layer is most of the work
            states = self._model(inputs)[exists]  # [targets, D]
            loss = self._model.loss(states, targets.to(device)[exists])
            where = f"SASRec training, epoch {epoch}, step {step}"
            guarded_step([loss], self.optimizer, self._model.parameters(), where=where)
            if self._schedule is not None:
                self._schedule.step()
            value = loss.item()
            summed_loss, num_done = summed_loss + value * len(states), num_done + len(states)
            done = (epoch - 1) * self.num_targets + num_done
            self._progress(_STAGE, done, self.total_progress, {"train_loss": value})
        return {"train_loss": summed_loss / self.num_targets}

    def validate(self) -> dict[str, float]:
        """Return NDCG@10 on the validation targets; nothing for a refit."""
        if self._is_refit:
            self._model.eval()
            return {}
        return {"validation_ndcg": validation_ndcg(self._model, self._histories)}

    def scores(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the negative validation NDCG@10; in a refit the last epoch has the lowest score."""
        if self._is_refit:
            return {"sasrec": -row["epoch"]}
        return {"sasrec": -row["validation_ndcg"]}

    def finish_epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        """Report the validation figure."""
        metrics = {name: row[name] for name in ("validation_ndcg",) if name in row}
        self._progress(_STAGE, epoch * self.num_targets, self.total_progress, metrics)

    def extra_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the states of the two generators and of the learning rate."""
        values: dict[str, Any] = {"order": self._order.bit_generator.state}
        values |= {} if self._schedule is None else {"schedule": self._schedule.state_dict()}
        return {"generator/dropout": self._dropout.get_state()}, values

    def restore_extra_state(self, tensors: Mapping[str, Mapping[str, torch.Tensor]], values: Mapping[str, Any]) -> None:
        """Restore the states of the two generators and of the learning rate."""
        self._order.bit_generator.state = values["order"]
        self._dropout.set_state(tensors["generator"]["dropout"])
        if self._schedule is not None:
            restore_schedule(self._schedule, self.optimizer, values["schedule"])

    def _falling_rate(self) -> torch.optim.lr_scheduler.LambdaLR:
        # The number of batches does not depend on the generator: windows of equal length are interchangeable.
        plan = plan_batches(
            self._windows, targets_per_batch=self._config.batch_size, generator=np.random.default_rng(0)
        )
        num_steps = len(plan) * self._config.max_epochs
        return cosine_schedule(self.optimizer, num_steps=num_steps, warmup_share=_CONTINUED_WARMUP)


def plan_batches(windows: Windows, *, targets_per_batch: int, generator: np.random.Generator) -> list[Windows]:
    """Return batches of windows of similar length, with about `targets_per_batch` targets each, in random order."""
    shuffled = generator.permutation(len(windows.firsts))
    order = shuffled[np.argsort(windows.lengths[shuffled], kind="stable")]
    ends = np.cumsum(windows.lengths[order])
    batch_numbers = (ends - 1) // targets_per_batch  # of the last target of each window
    batches = np.split(order, np.flatnonzero(np.diff(batch_numbers)) + 1)
    return [
        Windows(windows.firsts[batches[number]], windows.lengths[batches[number]])
        for number in generator.permutation(len(batches))
    ]
