"""The training loop that the recommender, SASRec and the quantizer share, and what happens in one optimizer step.

`Trainer` takes a `Trainable`, a model with its data. It runs the epochs, logs them, stops when validation no longer
improves, keeps the best weights, and writes checkpoints from which an interrupted training resumes.
"""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.checkpoint import restore_training, training_tensors
from macrec_pipeline.runtime.cuda_graphs import CudaGraphBackward, Losses

if TYPE_CHECKING:
    from macrec_pipeline.runtime.checkpoint import Checkpoint

MAX_GRADIENT_NORM = 1.0

_log = logging.getLogger(__name__)


class Trainable(ABC):
    """One model with its data and optimizer, as `Trainer` trains it.

    Attributes:
        modules: {name: module}. The best weights are kept for each module separately.
    """

    modules: Mapping[str, nn.Module]

    @abstractmethod
    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Train for one epoch, counted from 1, and return its figures for the log."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """Measure the model and return the figures for the log."""

    @abstractmethod
    def scores(self, row: Mapping[str, float]) -> dict[str, float]:
        """Return the score of each module, lower being better, from a row of the log."""

    def validated_weights(self) -> AbstractContextManager[None]:
        """Inside, the modules hold the weights to validate and to keep, for instance a moving average."""
        return nullcontext()

    def finish_epoch(self, epoch: int, row: Mapping[str, float]) -> None:  # noqa: B027 - optional
        """Called at the very end of each epoch with its row of the log, for instance to report progress."""


class ResumableTrainable(Trainable):
    """A `Trainable` with a single module whose training can resume from a checkpoint.

    Attributes:
        optimizer: of the module's parameters.
    """

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def extra_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return what a checkpoint needs besides weights, optimizer and log: tensors `group/name`, and plain JSON."""

    @abstractmethod
    def restore_extra_state(self, tensors: Mapping[str, Mapping[str, torch.Tensor]], values: Mapping[str, Any]) -> None:
        """Restore the result of `extra_state`, with its tensors by group; weights and optimizer are restored already.

        The log in `values["log"]` says how many epochs are done.
        """


class Trainer:
    """Runs the epochs of a training and leaves each module with its best weights.

    Args:
        trainable: what is trained.
        num_epochs: maximum number of epochs; 0 trains nothing.
        patience: stop after this many epochs without a better score; None never stops early.
        validate_every: epochs from one validation to the next. The last epoch is always validated.
        prefer_later: whether an epoch replaces the best one so far when their scores are equal.

    Attributes:
        log: one row per validated epoch: the epoch, and the figures of `train_epoch` and `validate`.
        best_epochs: {module name: epoch of its weights}, counted from 1; 0 if no epoch was validated.
    """

    def __init__(
        self,
        trainable: Trainable,
        *,
        num_epochs: int,
        patience: int | None = None,
        validate_every: int = 1,
        prefer_later: bool = False,
    ) -> None:
        self.log: list[dict[str, float]] = []
        self.best_epochs = dict.fromkeys(trainable.modules, 0)
        self._trainable, self._num_epochs, self._patience = trainable, num_epochs, patience
        self._validate_every, self._prefer_later = validate_every, prefer_later
        self._best_scores = dict.fromkeys(trainable.modules, math.inf)
        with trainable.validated_weights():
            self._best_weights = {name: _copied_weights(module) for name, module in trainable.modules.items()}

    def run(self, checkpoint: Checkpoint | None = None) -> None:
        """Train to the end.

        Args:
            checkpoint: resumes the training from this file if it belongs to it, and is rewritten after each epoch. Only
                for a `ResumableTrainable` that is validated after every epoch.

        Raises:
            TrainingError: the loss or its gradient is not finite.
        """
        if checkpoint is not None and (stored := checkpoint.load()) is not None:
            self._restore(*stored)
        saved_at = time.monotonic()
        for epoch in range(len(self.log) + 1, self._num_epochs + 1):
            if self._is_out_of_patience(epoch):
                break
            row = {"epoch": float(epoch)} | self._trainable.train_epoch(epoch)
            if epoch % self._validate_every == 0 or epoch == self._num_epochs:
                with self._trainable.validated_weights():
                    row |= self._trainable.validate()
                    self.log.append(row)
                    self._keep_best_weights(epoch, row)
            if checkpoint is not None and time.monotonic() - saved_at >= checkpoint.min_seconds:
                self._save(checkpoint)
                saved_at = time.monotonic()
            self._trainable.finish_epoch(epoch, row)
        for name, module in self._trainable.modules.items():
            module.load_state_dict(self._best_weights[name])

    def _is_out_of_patience(self, epoch: int) -> bool:
        if self._patience is None or not self.log:
            return False
        return epoch - 1 - max(self.best_epochs.values()) >= self._patience

    def _keep_best_weights(self, epoch: int, row: Mapping[str, float]) -> None:
        for name, score in self._trainable.scores(row).items():
            best = self._best_scores[name]
            if score < best or (self._prefer_later and score == best):
                self._best_scores[name], self.best_epochs[name] = score, epoch
                self._best_weights[name] = _copied_weights(self._trainable.modules[name])

    def _resumable(self) -> tuple[ResumableTrainable, str, nn.Module]:
        assert isinstance(self._trainable, ResumableTrainable), "this training cannot resume"
        assert self._validate_every == 1, "the log has to hold every epoch"
        ((name, module),) = self._trainable.modules.items()
        return self._trainable, name, module

    def _save(self, checkpoint: Checkpoint) -> None:
        trainable, name, module = self._resumable()
        tensors, values = trainable.extra_state()
        checkpoint.save(
            training_tensors(module, self._best_weights[name], trainable.optimizer) | tensors,
            {"log": self.log, "best_epoch": self.best_epochs[name]} | values,
        )

    def _restore(self, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> None:
        trainable, name, module = self._resumable()
        groups = restore_training(tensors, module, trainable.optimizer)
        self.log, self.best_epochs[name] = values["log"], values["best_epoch"]
        self._best_weights[name] = groups["best"]
        self._best_scores[name] = min((trainable.scores(row)[name] for row in self.log), default=math.inf)
        trainable.restore_extra_state(groups, values)


def _copied_weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def adam_w(parameters: Iterable[nn.Parameter], config: Any) -> torch.optim.AdamW:
    """Return AdamW with the `learning_rate` and `weight_decay` of a settings section, fused for speed."""
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def cosine_schedule(
    optimizer: torch.optim.Optimizer, *, num_steps: int, warmup_share: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a linear warm-up over a share of the steps, followed by half a cosine down to zero."""
    warmup = max(1, round(num_steps * warmup_share))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, num_steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def restore_schedule(
    schedule: torch.optim.lr_scheduler.LambdaLR, optimizer: torch.optim.Optimizer, state: dict[str, Any]
) -> None:
    """Restore a schedule from its `state_dict`, and give the optimizer the learning rates of that moment."""
    schedule.load_state_dict(state)
    for settings, rate in zip(optimizer.param_groups, schedule.get_last_lr(), strict=True):
        settings["lr"] = rate


class BackwardPass(Protocol):
    """Computes losses and either backpropagates the first of them or leaves that to the caller."""

    keeps_gradients: bool
    """Whether gradients accumulate in tensors that must stay at the same addresses."""

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses of the inputs; the first one remains to be backpropagated if it requires a gradient.

        Args:
            key: equal for inputs of equal shapes with which `losses` does the same computation.
            losses: must not draw random numbers on the host or read a value back from the device. In a CUDA graph it
                must not communicate with other ranks either.
            inputs: on the host or on the device.
        """


def backward_pass(
    parameters: Iterable[nn.Parameter], device: torch.device, *, allow_graphs: bool = True
) -> BackwardPass:
    """Return CUDA graphs on a GPU, where `allow_graphs`, and an ordinary pass otherwise.

    Args:
        parameters: everything that is trained.
        device: of the parameters.
        allow_graphs: whether the losses meet what `BackwardPass` demands of a CUDA graph.
    """
    return CudaGraphBackward(parameters, device) if allow_graphs and device.type == "cuda" else EagerBackward(device)


class EagerBackward:
    """Computes the losses and leaves backpropagation to the caller; works on any device."""

    keeps_gradients = False

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, key: Hashable, losses: Losses, inputs: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return losses that remain to be backpropagated."""
        return losses(*(value.to(self._device) for value in inputs))


def guarded_step(
    parts: Iterable[torch.Tensor],
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    *,
    where: str,
    check_finite: bool = True,
    keep_gradients: bool = False,
) -> None:
    """Backpropagate, clip the gradient and step; stop the training if the gradient is not finite.

    Args:
        parts: scalars whose sum over all ranks is the loss. Each is backpropagated before the next is computed, unless
            it was backpropagated already.
        optimizer: of the parameters.
        parameters: their gradients are clipped together.
        where: begins the message of an error.
        check_finite: false leaves the check to a later step, since it makes a GPU wait. Weights that received a
            gradient that is not finite never become finite again, so a later check still finds it. The last step before
            the weights are used must check.
        keep_gradients: set gradients to zero in place instead of dropping them.

    Raises:
        TrainingError: names where it happened, the loss and the norm of the gradient.
    """
    optimizer.zero_grad(set_to_none=not keep_gradients)
    losses = []
    for part in parts:
        if part.requires_grad:
            part.backward()  # type: ignore[no-untyped-call]
        losses.append(part.detach())  # read below only for an error message, because reading makes a GPU wait
    parameters = list(parameters)
    distributed.sum_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    if check_finite and not torch.isfinite(norm):
        loss = distributed.sum_over_ranks(float(sum(losses)))
        raise TrainingError(
            f"{where}: the loss is {loss:.4g} and the norm of its gradient is {norm.item():.4g}; both must be finite. "
            "Lower the learning rate, or look for extreme values in the embeddings."
        )
    optimizer.step()


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """Inside, compute matrix products in "float32" or "bfloat16"; parameters and accumulated sums stay float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def warn_if_bfloat16_is_emulated(precision: str, device: torch.device) -> None:
    """Log a warning if this CPU has to emulate bfloat16 products, which takes many times as long as float32."""
    if precision != "bfloat16" or device.type != "cpu":
        return
    has_onednn = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if has_onednn and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _log.warning(
            "precision is bfloat16, which this processor can only emulate, so training will take many times as long as "
            "with float32. Set precision to float32 on this machine."
        )


class MovingAverage:
    """An exponential moving average of parameters.

    Args:
        parameters: the live parameters, float tensors.
        decay: weight of the old average in each step. It is lower in the first steps, min(decay, (1 + t) / (10 + t)) at
            step t, so that the initial weights fade quickly.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.num_steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Add the parameters as they are after one more optimizer step."""
        self.num_steps += 1
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1 - decay)

    def load(self, values: Sequence[torch.Tensor], num_steps: int) -> None:
        """Continue from an average after `num_steps` optimizer steps."""
        self.num_steps = num_steps
        for value, stored in zip(self.values, values, strict=True):
            value.copy_(stored)


@contextmanager
def averaged_weights(average: MovingAverage | None) -> Iterator[None]:
    """Inside, the live parameters hold their moving average; with None nothing changes."""
    if average is None:
        yield
        return
    live_values = [parameter.detach().clone() for parameter in average.parameters]
    _overwrite(average.parameters, average.values)
    try:
        yield
    finally:
        _overwrite(average.parameters, live_values)


@torch.no_grad()
def _overwrite(parameters: Sequence[nn.Parameter], values: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
