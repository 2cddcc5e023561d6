"""Trains the generative recommender on all tasks at once (MACRec section 3.3).

Takes whole histories and the items' semantic IDs; returns the weights of the best epoch on validation data, and a log.
The last item of a history is the test target and the second-to-last the validation target; training sees neither. A
refit (`training/refit.py`) trains on whole histories instead, for a number of epochs that was chosen before. In
distributed training (`runtime/distributed.py`) each rank takes a share of the rows of every step.

Shapes (docs/notation.md): B batch rows, L levels, N items, T history items.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender, ModelSpec
from macrec_pipeline.recommender.model.history_encoding import (
    ALIGNMENT_TASKS,
    HISTORY_TASKS,
    MODALITIES,
    PROMPTED_TASKS,
    HistoryBatch,
    ItemCodes,
    Vocabulary,
    available_tasks,
)
from macrec_pipeline.recommender.training.batching import plan_batches, training_windows
from macrec_pipeline.recommender.training.fitted_recommender import FittedRecommender, load_starting_weights
from macrec_pipeline.recommender.training.losses import alignment_losses, history_loss
from macrec_pipeline.recommender.training.validation import validation_losses, validation_ndcg
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.checkpoint import Checkpoint, training_identity
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import derived_seed, numpy_generator, torch_generator
from macrec_pipeline.runtime.training import (
    MovingAverage,
    ResumableTrainable,
    Trainer,
    adam_w,
    autocast,
    averaged_weights,
    backward_pass,
    cosine_schedule,
    guarded_step,
    restore_schedule,
    warn_if_bfloat16_is_emulated,
)

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig, Task
    from macrec_pipeline.runtime.cuda_graphs import Losses

# Steps from one check of the loss and the gradient to the next; each check makes a GPU wait for its queued work.
CHECK_EVERY = {"cpu": 1, "cuda": 25}
# Minimum seconds between two checkpoints; on a GPU, writing one takes a good part of an epoch's time.
CHECKPOINT_SECONDS = {"cpu": 0.0, "cuda": 30.0}
# Encoder and decoder tokens per forward pass. What it keeps for its backward pass should fit into a processor's cache
# (docs/performance.md).
TOKENS_PER_PIECE = {"cpu": 4096, "cuda": 2**19}


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
    refit_epochs: int | None = None,
    target_weights: np.ndarray | None = None,
    continued: RecommenderConfig | None = None,
) -> FittedRecommender:
    """Train until the epochs or the patience run out.

    Args:
        histories: whole histories, int64 [T] item indices each with T >= 3, oldest first. For a refit T >= 1.
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size). None for a modality that the catalogue lacks;
            its tasks are left out.
        codebook_size: K.
        config: the section `recommender`.
        seed: root seed. Weights, order and dropout draw from separate streams.
        device: where to train.
        progress: called after every optimizer step with stage "recommender".
        checkpoint: file to resume from; rewritten after every epoch, on a GPU at most every half minute. On the CPU, an
            interrupted training ends with the same bytes as an uninterrupted one. A file with other data, settings or
            starting weights is ignored.
        start: folder written by `FittedRecommender.save`. Training starts from its weights if their shapes fit.
        refit_epochs: train on whole histories, including validation and test targets, for exactly this many of the
            epochs of `config`, and keep the weights of the last one. None: hold the targets out and keep the epoch that
            is best on validation.
        target_weights: for a refit, float32 [sum of T]: what each item, of all histories laid end to end, counts in the
            loss as a target. None counts all of them once.
        continued: the section `recommender` if training does start from the weights in `start`, with fewer epochs and a
            lower learning rate; None: `config`.

    Raises:
        ConfigError: no task in `config` trains a retrieval route of this catalogue.
        TrainingError: the loss or its gradient is not finite.
        StorageError: `start` cannot be read.
    """
    by_modality = zip(MODALITIES, (text_codes, image_codes), strict=True)
    codes = {modality: values for modality, values in by_modality if values is not None}
    settings = dict(vars(config)) | {"tasks": available_tasks(config.tasks, codes)}

    vocabulary = Vocabulary(next(iter(codes.values())).shape[1], codebook_size, config.num_prompt_tokens)
    generator = torch_generator(seed, "recommender/weights")
    model = GenerativeRecommender(vocabulary, ModelSpec.from_settings(settings), generator)
    digest, warm_start = (None, "none") if start is None else load_starting_weights(model, start)
    if digest is not None and continued is not None:
        config = continued
        settings = dict(vars(config)) | {"tasks": settings["tasks"]}
    identity: dict[str, Any] = {"config": settings, "seed": seed, "codebook_size": codebook_size}
    identity |= {} if digest is None else {"start": digest}
    identity |= {} if refit_epochs is None else {"refit_epochs": refit_epochs}

    resume_from = None
    if checkpoint is not None:
        lengths = np.array([len(history) for history in histories])
        weights = [] if target_weights is None else [target_weights]
        resume_from = Checkpoint(
            checkpoint,
            training_identity(identity, [np.concatenate(histories), lengths, *codes.values(), *weights]),
            min_seconds=CHECKPOINT_SECONDS[device.type],
        )
    warn_if_bfloat16_is_emulated(config.precision, device)
    items = ItemCodes({modality: torch.from_numpy(values).to(device) for modality, values in codes.items()})
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training = RecommenderTraining(
            model.to(device),
            items,
            histories,
            config,
            seed=seed,
            progress=progress,
            refit_epochs=refit_epochs,
            target_weights=target_weights,
        )
        patience = config.patience if refit_epochs is None else None
        trainer = Trainer(training, num_epochs=training.num_epochs, patience=patience)
        trainer.run(resume_from)
    return FittedRecommender(model.eval(), settings, trainer.log, trainer.best_epochs["recommender"], warm_start)


@dataclass(frozen=True)
class TrainingStep:
    """What one optimizer step learns from.

    Attributes:
        windows: {history task: int64 [B] window numbers}; the tasks' batches have equal shapes.
        items: int64 item indices, which every alignment task is computed for.
    """

    windows: Mapping[Task, np.ndarray]
    items: np.ndarray


class RecommenderTraining(ResumableTrainable):
    """The recommender with its data and optimizer, for `Trainer`.

    Args:
        model: on the training device.
        items: the catalogue's codes, on the training device.
        histories: whole histories, int64 [T] item indices each, oldest first.
        config: the training settings; the tasks are those of the model.
        seed: root seed.
        progress: called after every optimizer step.
        refit_epochs, target_weights: as for `fit_recommender`.

    Attributes:
        num_epochs: the largest number of epochs to train for.
    """

    def __init__(
        self,
        model: GenerativeRecommender,
        items: ItemCodes,
        histories: Sequence[np.ndarray],
        config: RecommenderConfig,
        *,
        seed: int,
        progress: Progress,
        refit_epochs: int | None = None,
        target_weights: np.ndarray | None = None,
    ) -> None:
        self.modules = {"recommender": model}
        self.num_epochs = config.num_epochs if refit_epochs is None else refit_epochs
        self._model, self._items, self._config, self._seed, self._progress = model, items, config, seed, progress
        self._device: torch.device = model.t5.device
        self._history_tasks = [task for task in model.spec.tasks if task in HISTORY_TASKS]
        self._alignment_tasks = [task for task in model.spec.tasks if task in ALIGNMENT_TASKS]
        self._is_refit = refit_epochs is not None
        learned = histories if self._is_refit else [history[:-2] for history in histories]
        self._windows = training_windows(learned, model.spec, target_weights)
        self._validation_histories = [] if self._is_refit else [history[:-1] for history in histories]
        self._steps_per_epoch = len(self._plan(np.random.default_rng(0)))  # independent of the generator
        distributed.broadcast_tensors(model.parameters())
        self._backward_pass = backward_pass(model.parameters(), self._device)
        self.optimizer = adam_w(model.parameters(), config)
        self._schedule = cosine_schedule(
            self.optimizer, num_steps=self._steps_per_epoch * config.num_epochs, warmup_share=config.warmup_share
        )
        self._average = MovingAverage(list(model.parameters()), config.ema_decay) if config.ema_decay else None

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Pass every task once over its samples; returns the mean `train_loss` and `implicit_loss` of the steps."""
        self._model.train()
        # streams of this epoch alone, so that a resumed training draws what an uninterrupted one would have drawn
        order = numpy_generator(self._seed, f"recommender/order/{epoch}")
        dropout_seed = derived_seed(self._seed, distributed.stream_name(f"recommender/dropout/{epoch}"))
        self._model.dropout_generator.manual_seed(dropout_seed)
        torch.manual_seed(dropout_seed)  # for devices other than the CPU
        step_losses: dict[str, list[torch.Tensor]] = {"train_loss": [], "implicit_loss": []}
        metrics: dict[str, float] = {}
        for number, step in enumerate(self._steps(order), start=1):
            check = number % CHECK_EVERY[self._device.type] == 0 or number == self._steps_per_epoch
            losses = {name: torch.zeros((), device=self._device) for name in step_losses}
            guarded_step(
                self._loss_parts(step, losses),
                self.optimizer,
                self._model.parameters(),
                where=f"recommender training, epoch {epoch}, step {number}",
                check_finite=check,
                keep_gradients=self._backward_pass.keeps_gradients,
            )
            self._schedule.step()
            if self._average is not None:
                self._average.update()
            for name, value in losses.items():
                step_losses[name].append(value)
            if check:
                metrics = {"train_loss": distributed.sum_over_ranks(losses["train_loss"].item())}
            num_done = (epoch - 1) * self._steps_per_epoch + number
            self._progress("recommender", num_done, self._steps_per_epoch * self.num_epochs, metrics)
        return {
            name: distributed.sum_over_ranks(
                sum(value / self._steps_per_epoch for value in torch.stack(values).tolist())
            )
            for name, values in step_losses.items()
        }

    def validate(self) -> dict[str, float]:
        """Return the validation losses, and NDCG@10 if it decides early stopping; nothing for a refit."""
        self._model.eval()
        if self._is_refit:
            return {}
        with autocast(self._config.precision, self._device):
            figures = validation_losses(self._model, self._items, self._validation_histories)
        if self._config.early_stopping == "validation_ndcg":
            figures["validation_ndcg"] = validation_ndcg(self._model, self._items, self._validation_histories)
        return figures

    def scores(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the validation figure that decides early stopping, as a score to minimize.

        In a refit the last epoch has the lowest score.
        """
        if self._is_refit:
            return {"recommender": -row["epoch"]}
        by_ndcg = self._config.early_stopping == "validation_ndcg"
        return {"recommender": -row["validation_ndcg"] if by_ndcg else row["validation_loss"]}

    def validated_weights(self) -> AbstractContextManager[None]:
        """Inside, the model holds the moving average of its weights, if there is one."""
        return averaged_weights(self._average)

    def extra_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the moving average and the learning-rate schedule."""
        average = [] if self._average is None else self._average.values
        tensors = {f"average/{index}": value for index, value in enumerate(average)}
        return tensors, {"schedule": self._schedule.state_dict()}

    def restore_extra_state(self, tensors: Mapping[str, Mapping[str, torch.Tensor]], values: Mapping[str, Any]) -> None:
        """Restore the moving average and the learning-rate schedule."""
        restore_schedule(self._schedule, self.optimizer, values["schedule"])
        if self._average is not None:
            average = [tensors["average"][str(index)] for index in range(len(tensors["average"]))]
            self._average.load(average, num_steps=len(values["log"]) * self._steps_per_epoch)

    def _steps(self, order: np.random.Generator) -> Iterator[TrainingStep]:
        """Yield the steps of an epoch; in each, the tasks meet different windows in batches of the same shape."""
        plans = {
            task: self._plan(stream)
            for task, stream in zip(self._history_tasks, order.spawn(len(self._history_tasks)), strict=True)
        }
        numbers = order.permutation(self._steps_per_epoch)
        item_slices = np.array_split(order.permutation(self._items.num_items), self._steps_per_epoch)
        for number, items in zip(numbers, item_slices, strict=True):
            yield TrainingStep({task: plan[number] for task, plan in plans.items()}, items)

    def _plan(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Return one task's batches ordered by shape: the k-th has the same shape whatever the generator draws."""
        targets_per_batch = max(1, self._config.batch_size // len(self._history_tasks))
        plan = plan_batches(self._windows, targets_per_batch=targets_per_batch, generator=generator)
        return sorted(plan, key=lambda chosen: (int(self._windows.lengths[chosen].max()), len(chosen)))

    def _loss_parts(self, step: TrainingStep, losses: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the step's loss in parts, each to be backpropagated before the next is computed, to save memory.

        The sum of the parts over all ranks is the mean loss per target over all tasks, plus the weighted mean of the
        implicit alignments. Both are added to `losses` by name. An alignment task contrasts the items with each other,
        so it is computed by a single rank.
        """
        only_last = self._model.spec.encoding == "exact"
        batches = [
            (tasks, self._windows.batch(np.concatenate(pieces), only_last=only_last))
            for tasks in _computed_together(self._history_tasks, self._device)
            # batches of equal shapes are cut into pieces of equal shapes
            for pieces in zip(*(self._pieces(step.windows[task]) for task in tasks), strict=True)
            if len(pieces[0])
        ]
        num_targets = sum(int(self._windows.targets_per_window[chosen].sum()) for chosen in step.windows.values())
        total = torch.tensor(float(num_targets + len(step.items) * len(self._alignment_tasks)))
        for tasks, batch in batches:
            values = self._backward_pass(
                (*tasks, *batch.shape), self._history_losses(tasks, batch), [*batch.tensors, total]
            )
            losses["train_loss"] += values["loss"].detach()
            yield values["loss"]
        own_tasks = self._alignment_tasks[distributed.rank() :: distributed.world_size()] if len(step.items) else []
        for tasks in _computed_together(own_tasks, self._device):
            values = self._backward_pass(
                (*tasks, len(step.items)), self._alignment_losses(tasks), [torch.from_numpy(step.items), total]
            )
            losses["train_loss"] += values["explicit"].detach()
            losses["implicit_loss"] += values["implicit"].detach()
            yield values["loss"]

    def _pieces(self, chosen: np.ndarray) -> list[np.ndarray]:
        """Return this rank's windows of a batch, in pieces of at most `TOKENS_PER_PIECE` tokens or one window.

        The pieces are divided among the ranks, in the same way for all tasks. A rank may get none of a small piece.
        """
        vocabulary = self._model.vocabulary
        num_items = 2 * int(self._windows.lengths[chosen].max())  # read, and at most as many written
        tokens_per_window = vocabulary.num_prompt_tokens + num_items * vocabulary.num_levels
        size = max(1, TOKENS_PER_PIECE[self._device.type] // tokens_per_window)
        pieces = np.array_split(chosen, -(-len(chosen) // (size * distributed.world_size())))
        return [piece[distributed.rank() :: distributed.world_size()] for piece in pieces]

    def _history_losses(self, tasks: Sequence[Task], like: HistoryBatch) -> Losses:
        """Return a function of a batch's tensors and the step's number of targets: the tasks' share of the loss."""

        def losses(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            *batch_tensors, total = tensors
            with autocast(self._config.precision, self._device):
                summed = history_loss(
                    self._model,
                    self._items,
                    like.with_tensors(*batch_tensors),
                    tasks=tasks,
                    label_smoothing=self._config.label_smoothing,
                )
                return {"loss": summed / total}

        return losses

    def _alignment_losses(self, tasks: Sequence[Task]) -> Losses:
        """Return a function of int64 [B] items and the step's number of targets: the tasks' share of the loss."""
        config = self._config

        def losses(items: torch.Tensor, total: torch.Tensor) -> dict[str, torch.Tensor]:
            with autocast(config.precision, self._device):
                explicit, implicit = alignment_losses(
                    self._model,
                    self._items,
                    items,
                    tasks=tasks,
                    label_smoothing=config.label_smoothing,
                    implicit_temperature=config.implicit_temperature if config.implicit_weight else None,
                )
            explicit, implicit = explicit / total, implicit / len(self._alignment_tasks)
            loss = explicit + config.implicit_weight * implicit
            return {"loss": loss, "explicit": explicit, "implicit": implicit}

        return losses


def _computed_together(tasks: Sequence[Task], device: torch.device) -> list[list[Task]]:
    """Group tasks for one forward pass: on a GPU those with and those without a prompt, on a CPU each one alone."""
    if device.type == "cpu":
        return [[task] for task in tasks]
    groups = [[task for task in tasks if (task in PROMPTED_TASKS) == prompted] for prompted in (False, True)]
    return [group for group in groups if group]
