"""Training the generative recommender on all tasks at once (MACRec section 3.3).

In: whole histories and the semantic ID table. Out: the weights of the best epoch on validation data, and a log.
The last item of a history is the test target and the last but one the validation target; training sees neither.
Of several ranks (`runtime/distributed.py`) each takes a share of the rows of every step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
from macrec_pipeline.recommender.model.vocabulary import (
    MODALITIES,
    Vocabulary,
    possible_tasks,
)
from macrec_pipeline.recommender.training.fitted_recommender import FittedRecommender
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.recommender.training.train_step import TrainSteps
from macrec_pipeline.recommender.training.validation import Validation
from macrec_pipeline.recommender.training.warm_start import start_from
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.checkpoint import (
    load_checkpoint,
    restore_training,
    save_checkpoint,
    training_identity,
    training_tensors,
)
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import derived_seed, numpy_generator, torch_generator
from macrec_pipeline.runtime.training import (
    MovingAverage,
    adam_w,
    cosine_schedule,
    evaluated_weights,
    guarded_step,
    products_in,
    warn_of_slow_products,
)

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig

# Steps between two looks at the loss and the gradient, each of which makes a GPU wait until it has caught up.
LOOK_EVERY = {"cpu": 1, "cuda": 25}
# Least seconds between two checkpoints: an epoch on a GPU takes a few, and to write one takes one of them.
CHECKPOINT_SECONDS = {"cpu": 0.0, "cuda": 30.0}


def fit_recommender(
    histories: Sequence[np.ndarray],
    text_codes: np.ndarray | None,
    image_codes: np.ndarray | None,
    *,
    codebook_size: int,
    config: RecommenderConfig,
    seed: int,
    device: torch.device,
    progress: Progress = quiet_progress,
    checkpoint: Path | None = None,
    start: Path | None = None,
) -> FittedRecommender:
    """Train until the epochs or the patience run out.

    Args:
        histories: whole histories, int64 [T] item indices each, oldest first, at least 3 long.
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size); None for a modality that the catalogue
            lacks, whose tasks are then left out.
        seed: root seed; weights, order and dropout draw from streams of their own.
        progress: called after every optimizer step with stage "recommender".
        checkpoint: a file to go on from and to write after every epoch, on a GPU every half minute. A training that was
            cut off ends, on the CPU, with the bytes of one that was not; a file of other data, settings or starting
            weights is not used.
        start: a folder that `FittedRecommender.save` wrote, whose weights training starts from if they fit; see
            `warm_start`.

    Raises:
        ConfigError: no task of `config` is a retrieval route of the catalogue.
        TrainingError: the loss or its gradient is not finite.
        StorageError: `start` is there, but damaged.
    """
    both = zip(MODALITIES, (text_codes, image_codes), strict=True)
    codes = {modality: values for modality, values in both if values is not None}
    if (tasks := possible_tasks(config.tasks, codes)) != tuple(config.tasks):
        config = cast("RecommenderConfig", SimpleNamespace(**vars(config) | {"tasks": tasks}))
    items = ItemCodes({modality: torch.from_numpy(values).to(device) for modality, values in codes.items()})
    vocabulary = Vocabulary(next(iter(codes.values())).shape[1], codebook_size, config.num_prompt_tokens)
    model = GenerativeRecommender(vocabulary, config, torch_generator(seed, "recommender/weights"))
    pinned, warm_start = start_from(model, start)
    identity = training_identity(
        {"config": dict(vars(config)), "seed": seed, "codebook_size": codebook_size, **pinned},
        [np.concatenate(histories), np.array([len(history) for history in histories]), *codes.values()],
    )
    warn_of_slow_products(config.precision, device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        fitted = _Fit(model.to(device), items, histories, config, seed, device, progress).run(checkpoint, identity)
    return replace(fitted, warm_start=warm_start)


class _Fit:
    """One training run: the data, the optimizer and the best weights so far."""

    def __init__(
        self,
        model: GenerativeRecommender,
        items: ItemCodes,
        histories: Sequence[np.ndarray],
        config: RecommenderConfig,
        seed: int,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.model, self.items, self.config, self.seed = model, items, config, seed
        self.device, self.progress = device, progress
        distributed.as_on_first(model.parameters())
        self.steps = TrainSteps(model, items, [history[:-2] for history in histories], config, device)
        self.steps_per_epoch = self.steps.per_epoch
        self.validation = Validation(histories, items)
        self.optimizer = adam_w(model.parameters(), config)
        self.schedule = cosine_schedule(
            self.optimizer, num_steps=self.steps_per_epoch * config.num_epochs, warmup_share=config.warmup_share
        )
        self.average = MovingAverage(list(model.parameters()), config.ema_decay) if config.ema_decay else None
        self.log: list[dict[str, float]] = []
        self.best_epoch, self.best_state = 0, self._state()

    def run(self, checkpoint: Path | None, identity: str) -> FittedRecommender:
        """Train from the checkpoint, if there is one of this training, to the end; write one after an epoch."""
        if checkpoint is not None and (stored := load_checkpoint(checkpoint, identity=identity)) is not None:
            self._restore(*stored)
        written = time.monotonic()
        for epoch in range(len(self.log) + 1, self.config.num_epochs + 1):
            if self.log and epoch - 1 - self.best_epoch >= self.config.patience:
                break
            self.log.append({"epoch": float(epoch)} | self._train_epoch(epoch) | self._validate())
            if self._score(self.log[-1]) < min((self._score(row) for row in self.log[:-1]), default=math.inf):
                self.best_epoch, self.best_state = epoch, self._state()
            if checkpoint is not None and time.monotonic() - written >= CHECKPOINT_SECONDS[self.device.type]:
                save_checkpoint(checkpoint, identity=identity, tensors=self._tensors(), values=self._values())
                written = time.monotonic()
        self.model.load_state_dict(self.best_state)
        return FittedRecommender(self.model.eval(), self.log, self.best_epoch)

    def _score(self, row: dict[str, float]) -> float:
        """What early stopping lowers."""
        return -row["validation_ndcg"] if self.config.early_stopping == "validation_ndcg" else row["validation_loss"]

    def _state(self) -> dict[str, torch.Tensor]:
        """The weights that are validated, and kept if they are the best: a copy."""
        with evaluated_weights(self.average):
            return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _tensors(self) -> dict[str, torch.Tensor]:
        tensors = training_tensors(self.model, self.best_state, self.optimizer)
        if self.average is not None:
            tensors |= {f"average/{index}": value for index, value in enumerate(self.average.values)}
        return tensors

    def _values(self) -> dict[str, Any]:
        return {"log": self.log, "best_epoch": self.best_epoch, "schedule": self.schedule.state_dict()}

    def _restore(self, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
        self.log, self.best_epoch = values["log"], values["best_epoch"]
        self.schedule.load_state_dict(values["schedule"])
        groups = restore_training(tensors, self.model, self.optimizer)
        self.best_state = {name: value.to(self.device) for name, value in groups["best"].items()}
        for settings, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            settings["lr"] = rate
        if self.average is not None:
            self.average.load([groups["average"][str(index)] for index in range(len(groups["average"]))], self._done())

    def _done(self) -> int:
        """Optimizer steps of the epochs in the log."""
        return len(self.log) * self.steps_per_epoch

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass of every task over its samples; tasks meet different rows of one shape in a step."""
        self.model.train()
        # streams of the epoch's own, so that a training that goes on after a cut draws what it would have drawn
        order = numpy_generator(self.seed, f"recommender/order/{epoch}")
        dropout = derived_seed(self.seed, distributed.stream(f"recommender/dropout/{epoch}"))
        self.model.dropout_generator.manual_seed(dropout)
        torch.manual_seed(dropout)  # for devices other than the CPU
        shown: dict[str, float] = {}  # the last loss that was looked at
        kept: dict[str, list[torch.Tensor]] = {"train_loss": [], "implicit_loss": []}
        for done, step in enumerate(self.steps.epoch(order), start=1):
            look = done % LOOK_EVERY[self.device.type] == 0 or done == self.steps_per_epoch
            losses = {name: torch.zeros((), device=self.device) for name in kept}
            guarded_step(
                self.steps.parts(step, losses),
                self.optimizer,
                self.model.parameters(),
                where=f"recommender training, epoch {epoch}, step {done}",
                look=look,
                keep_gradients=self.steps.keep_gradients,
            )
            self.schedule.step()
            if self.average is not None:
                self.average.update()
            for name, value in losses.items():
                kept[name].append(value)
            if look:
                shown = {"train_loss": distributed.total(losses["train_loss"].item())}
            self.progress(
                "recommender",
                (epoch - 1) * self.steps_per_epoch + done,
                self.steps_per_epoch * self.config.num_epochs,
                shown,
            )
        return {
            name: distributed.total(sum(value / self.steps_per_epoch for value in torch.stack(values).tolist()))
            for name, values in kept.items()
        }

    def _validate(self) -> dict[str, float]:
        self.model.eval()
        with evaluated_weights(self.average):
            with products_in(self.config.precision, self.device):
                measured = self.validation.losses(self.model)
            if self.config.early_stopping == "validation_ndcg":
                measured["validation_ndcg"] = self.validation.ndcg(self.model)
        return measured
