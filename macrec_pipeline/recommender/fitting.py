"""Training the generative recommender on all tasks at once (MACRec section 3.3).

In: whole histories and the semantic ID table. Out: the weights of the epoch with the lowest validation loss, and a log.
The last item of a history is the test target and the last but one the validation target; training sees neither.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.model import GenerativeRecommender
from macrec_pipeline.recommender.objective import ItemCodes, alignment_losses, history_loss
from macrec_pipeline.recommender.tasks import Batch, Rows, batch_of, last_target_rows, plan_batches, training_rows
from macrec_pipeline.recommender.vocabulary import ALIGNMENT_TASKS, HISTORY_TASKS, Vocabulary
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import derived_seed, numpy_generator, torch_generator
from macrec_pipeline.runtime.training import cosine_schedule, guarded_step

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig

ROUTE_TASKS = ("text_to_text", "image_to_image")


@dataclass(frozen=True)
class FittedRecommender:
    """A trained model and how it came about.

    Attributes:
        model: on the training device, in evaluation mode.
        log: one mapping an epoch: epoch, train_loss and implicit_loss (means over its steps), validation_loss_text,
            validation_loss_image and their mean validation_loss; nats a code, but for the implicit loss.
        best_epoch: the epoch whose weights the model has, from 1.
    """

    model: GenerativeRecommender
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int

    def save(self, folder: Path) -> None:
        """Write `model.safetensors`, `recommender.json` and `training_log.json` into a folder."""
        self.model.save_weights(folder / "model.safetensors")
        description = {"config": dict(vars(self.model.config)), "best_epoch": self.best_epoch}
        (folder / "recommender.json").write_text(json.dumps(description, indent=2, sort_keys=True) + "\n")
        (folder / "training_log.json").write_text(json.dumps(self.log, indent=1) + "\n")


def fit_recommender(
    histories: Sequence[np.ndarray],
    text_codes: np.ndarray,
    image_codes: np.ndarray,
    *,
    codebook_size: int,
    config: RecommenderConfig,
    seed: int,
    device: torch.device,
    progress: Progress = quiet_progress,
) -> FittedRecommender:
    """Train until the epochs or the patience run out.

    Args:
        histories: whole histories, int64 [T] item indices each, oldest first, at least 3 long.
        text_codes, image_codes: int64 [N, L], each in [0, codebook_size).
        seed: root seed; weights, order and dropout draw from streams of their own.
        progress: called after every optimizer step with stage "recommender".

    Raises:
        TrainingError: the loss or its gradient is not finite.
    """
    items = ItemCodes(
        {"text": torch.from_numpy(text_codes).to(device), "image": torch.from_numpy(image_codes).to(device)}
    )
    vocabulary = Vocabulary(text_codes.shape[1], codebook_size, config.num_prompt_tokens)
    model = GenerativeRecommender(vocabulary, config, torch_generator(seed, "recommender/weights")).to(device)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, "recommender/dropout"))  # nn.Dropout knows only the global generator
        return _Fit(model, items, histories, config, seed, device, progress).run()


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
        self.model, self.items, self.config, self.device, self.progress = model, items, config, device, progress
        self.train_rows = training_rows([history[:-2] for history in histories], config)
        self.validation_rows = last_target_rows([history[:-1] for history in histories], config)
        self.history_tasks = [task for task in config.tasks if task in HISTORY_TASKS]
        self.alignment_tasks = [task for task in config.tasks if task in ALIGNMENT_TASKS]
        self.order = numpy_generator(seed, "recommender/order")
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        targets = max(1, config.batch_size // len(self.history_tasks))
        self.targets_per_batch = targets
        self.steps_per_epoch = sum(1 for _ in self._plan(np.random.default_rng(0)))
        self.schedule = cosine_schedule(
            self.optimizer, num_steps=self.steps_per_epoch * config.num_epochs, warmup_share=config.warmup_share
        )

    def run(self) -> FittedRecommender:
        log: list[dict[str, float]] = []
        best_loss, best_epoch, best_state = float("inf"), 0, self._state()
        for epoch in range(1, self.config.num_epochs + 1):
            row = {"epoch": float(epoch)} | self._train_epoch(epoch) | self._validate()
            log.append(row)
            if row["validation_loss"] < best_loss:
                best_loss, best_epoch, best_state = row["validation_loss"], epoch, self._state()
            elif epoch - best_epoch >= self.config.patience:
                break
        self.model.load_state_dict(best_state)
        return FittedRecommender(self.model.eval(), log, best_epoch)

    def _state(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def _plan(self, generator: np.random.Generator) -> list[np.ndarray]:
        return list(plan_batches(self.train_rows, targets_per_batch=self.targets_per_batch, generator=generator))

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass of every task over its samples; tasks meet different rows of one shape in a step."""
        self.model.train()
        first, *others = (self._plan(numpy_stream) for numpy_stream in self.order.spawn(len(self.history_tasks)))
        by_shape = [sorted(plan, key=self._shape) for plan in (first, *others)]
        steps = self.order.permutation(self.steps_per_epoch)
        slices = np.array_split(self.order.permutation(self.items.num_items), self.steps_per_epoch)
        totals: dict[str, float] = {}
        for done, (step, chosen) in enumerate(zip(steps, slices, strict=True), start=1):
            losses = self._losses([plan[step] for plan in by_shape], chosen)
            guarded_step(
                losses["train_loss"] + self.config.implicit_weight * losses["implicit_loss"],
                self.optimizer,
                self.model.parameters(),
                where=f"recommender training, epoch {epoch}, step {done}",
            )
            self.schedule.step()
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.item() / self.steps_per_epoch
            whole = (epoch - 1) * self.steps_per_epoch + done
            self.progress(
                "recommender",
                whole,
                self.steps_per_epoch * self.config.num_epochs,
                {"train_loss": losses["train_loss"].item()},
            )
        return totals

    def _shape(self, chosen: np.ndarray) -> tuple[int, int]:
        return int(self.train_rows.lengths[chosen].max()), len(chosen)

    def _losses(self, rows_by_task: list[np.ndarray], chosen: np.ndarray) -> dict[str, torch.Tensor]:
        """Mean loss a target over all tasks, and the mean implicit alignment."""
        total = torch.zeros((), device=self.device)
        implicit = torch.zeros((), device=self.device)
        count = 0
        for task, rows in zip(self.history_tasks, rows_by_task, strict=True):
            batch = self._batch(self.train_rows, rows, only_last=self.config.encoding == "exact")
            total = total + history_loss(self.model, self.items, batch, task=task)
            count += int(batch.counted.sum())
        if len(chosen):
            for task in self.alignment_tasks:
                indices = torch.from_numpy(chosen).to(self.device)
                explicit, aligned = alignment_losses(self.model, self.items, indices, task=task)
                total, implicit = total + explicit, implicit + aligned / len(self.alignment_tasks)
                count += len(chosen)
        return {"train_loss": total / count, "implicit_loss": implicit}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Loss of each trained route on the validation targets; validation_loss is their mean."""
        self.model.eval()
        losses = {}
        order = np.argsort(self.validation_rows.lengths, kind="stable")
        for task in (task for task in ROUTE_TASKS if task in self.history_tasks):
            total = 0.0
            for rows in np.array_split(order, max(1, len(order) // 512)):
                batch = self._batch(self.validation_rows, rows, only_last=True)
                total += history_loss(self.model, self.items, batch, task=task).item()
            losses[f"validation_loss_{task.split('_')[0]}"] = total / len(order)
        return losses | {"validation_loss": sum(losses.values()) / len(losses)}

    def _batch(self, rows: Rows, chosen: np.ndarray, *, only_last: bool) -> Batch:
        return batch_of(rows, chosen, only_last=only_last).to(self.device)
