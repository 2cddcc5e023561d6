"""The steps of an epoch: which rows and items meet in each, and each one's loss, part by part.

In: the training parts of the histories and the catalogue's codes. Out: losses, to be propagated as they come. Of
several ranks (`runtime/distributed.py`) each works out its share of every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.model.vocabulary import ALIGNMENT_TASKS, HISTORY_TASKS, PROMPTED_TASKS
from macrec_pipeline.recommender.training.batching import HistoryBatch, batch_of, plan_batches, training_rows
from macrec_pipeline.recommender.training.losses import ItemCodes, alignment_losses, history_loss
from macrec_pipeline.runtime import distributed
from macrec_pipeline.runtime.cuda_graphs import Losses, propagation
from macrec_pipeline.runtime.training import products_in

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig, Task
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender

# What a forward pass keeps for its backward pass should fit into a processor's cache: docs/performance.md.
TOKENS_A_PIECE = {"cpu": 4096, "cuda": 2**19}


@dataclass(frozen=True)
class TrainStep:
    """What is learned from in one step.

    Attributes:
        rows: history task -> int64 [B] row numbers; of equal shapes for all tasks.
        items: int64 [M], what the alignment tasks are about.
    """

    rows: Mapping[Task, np.ndarray]
    items: np.ndarray


class TrainSteps:
    """All steps of a training.

    Args:
        histories: training parts, int64 [T] item indices each, oldest first.
        config: the tasks, the batch size, the encoding and the weights.
        device: of the model and the codes.

    Attributes:
        per_epoch: how many; the lengths alone say it.
    """

    def __init__(
        self,
        model: GenerativeRecommender,
        items: ItemCodes,
        histories: Sequence[np.ndarray],
        config: RecommenderConfig,
        device: torch.device,
    ) -> None:
        self._model, self._items, self._config, self._device = model, items, config, device
        self._rows = training_rows(histories, config)
        self._targets_of_row = self._rows.lengths - self._rows.first_target
        self._history_tasks = [task for task in config.tasks if task in HISTORY_TASKS]
        self._alignment_tasks = [task for task in config.tasks if task in ALIGNMENT_TASKS]
        self._targets_per_batch = max(1, config.batch_size // len(self._history_tasks))
        self._propagate = propagation(model.parameters(), device)
        self.per_epoch = len(self._plan(np.random.default_rng(0)))

    @property
    def keep_gradients(self) -> bool:
        """Whether gradients are to be set to zero where they are, instead of being dropped."""
        return self._propagate.keeps_gradients

    def epoch(self, order: np.random.Generator) -> Iterator[TrainStep]:
        """One pass of every task over its samples; tasks meet different rows of one shape in a step."""
        plans = {
            task: self._plan(stream)
            for task, stream in zip(self._history_tasks, order.spawn(len(self._history_tasks)), strict=True)
        }
        steps = order.permutation(self.per_epoch)
        slices = np.array_split(order.permutation(self._items.num_items), self.per_epoch)
        for step, chosen in zip(steps, slices, strict=True):
            yield TrainStep({task: plan[step] for task, plan in plans.items()}, chosen)

    def parts(self, step: TrainStep, losses: dict[str, torch.Tensor]) -> Iterator[torch.Tensor]:
        """The step's loss in parts, each to be propagated before the next is worked out, so that little is kept.

        The parts' sum over all ranks is the mean loss a target over all tasks and the weighed mean of the implicit
        alignments. Both are added to `losses` by name. A task that contrasts items is one rank's, with all of them.
        """
        only_last = self._config.encoding == "exact"
        rows_of, chosen = step.rows, step.items
        batches = [
            (tasks, batch_of(self._rows, np.concatenate(piece), only_last=only_last))
            for tasks in _together(self._history_tasks, self._device)
            for piece in zip(*(self._pieces(rows_of[task]) for task in tasks), strict=True)  # like shapes, cut alike
            if len(piece[0])
        ]
        count = sum(int(self._targets_of_row[rows].sum()) for rows in rows_of.values())
        total = torch.tensor(float(count + len(chosen) * len(self._alignment_tasks)))
        for tasks, batch in batches:
            found = self._propagate((*tasks, *batch.shape), self._history_losses(tasks, batch), [*batch.tensors, total])
            losses["train_loss"] += found["loss"].detach()
            yield found["loss"]
        aligned = self._alignment_tasks[distributed.rank() :: distributed.count()] if len(chosen) else []
        for tasks in _together(aligned, self._device):
            found = self._propagate(
                (*tasks, len(chosen)), self._alignment_losses(tasks), [torch.from_numpy(chosen), total]
            )
            losses["train_loss"] += found["explicit"].detach()
            losses["implicit_loss"] += found["implicit"].detach()
            yield found["loss"]

    def _history_losses(self, tasks: Sequence[Task], like: HistoryBatch) -> Losses:
        """The share of history tasks in a step's loss: of a batch's tensors, and the number of the step's targets."""

        def losses(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            batch = like.with_tensors(*tensors[:-1])
            with products_in(self._config.precision, self._device):
                return {"loss": history_loss(self._model, self._items, batch, tasks=tasks) / tensors[-1]}

        return losses

    def _alignment_losses(self, tasks: Sequence[Task]) -> Losses:
        """The share of ID -> ID tasks: of int64 [B] items, and the number of the step's targets."""

        def losses(chosen: torch.Tensor, total: torch.Tensor) -> dict[str, torch.Tensor]:
            with products_in(self._config.precision, self._device):
                explicit, implicit = alignment_losses(self._model, self._items, chosen, tasks=tasks)
            explicit, implicit = explicit / total, implicit / len(self._alignment_tasks)
            loss = explicit + self._config.implicit_weight * implicit
            return {"loss": loss, "explicit": explicit, "implicit": implicit}

        return losses

    def _pieces(self, rows: np.ndarray) -> list[np.ndarray]:
        """This rank's rows of one batch, cut so that a piece has no more than `TOKENS_A_PIECE`, or one row.

        What is shared out are the pieces, which are alike for all tasks; of a small one a rank may get no row.
        """
        words = self._model.vocabulary
        items = 2 * int(self._rows.lengths[rows].max())  # read, and at most as many to write
        size = max(1, TOKENS_A_PIECE[self._device.type] // (words.num_prompt_tokens + items * words.num_levels))
        pieces = np.array_split(rows, -(-len(rows) // (size * distributed.count())))
        return [piece[distributed.rank() :: distributed.count()] for piece in pieces]

    def _plan(self, generator: np.random.Generator) -> list[np.ndarray]:
        """Batches of one task, by shape: the k-th has the same shape whatever was drawn."""
        plan = plan_batches(self._rows, targets_per_batch=self._targets_per_batch, generator=generator)
        return sorted(plan, key=lambda chosen: (int(self._rows.lengths[chosen].max()), len(chosen)))


def _together(tasks: Sequence[Task], device: torch.device) -> list[list[Task]]:
    """Tasks that are worked out at once: on a GPU those with prompts and those without, on a processor each alone."""
    if device.type == "cpu":
        return [[task] for task in tasks]
    groups = [[task for task in tasks if (task in PROMPTED_TASKS) == prompted] for prompted in (False, True)]
    return [group for group in groups if group]
