"""Training of SASRec on the training parts of the histories, stopped by its own validation figure.

What enters: histories. What leaves: `FittedSasrec`, the weights of the epoch with the best NDCG@10 for
`history[:-2]` -> `history[-2]`. Training sees neither that target nor the test target.
B rows of a batch, T positions, W windows, N items, U users.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from macrec_pipeline.evaluation.metrics import MISSED, ndcg
from macrec_pipeline.evaluation.sasrec import Sasrec, next_item_scores, windows_of
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import numpy_generator, torch_generator
from macrec_pipeline.runtime.training import guarded_step

if TYPE_CHECKING:
    from macrec_pipeline.config import SasrecConfig
    from macrec_pipeline.evaluation.sequences import FlatHistories, IntArray

VALIDATION_CUTOFF = 10
_STAGE = "sasrec"
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Windows:
    """Stretches of the histories, each item but the first of a history a target in exactly one.

    Attributes:
        firsts: where the first input of a window is in `FlatHistories.items`, int64 [W].
        lengths: inputs of a window, as many as its targets, which come one item later; int64 [W].
    """

    firsts: IntArray
    lengths: IntArray


@dataclass(frozen=True)
class FittedSasrec:
    """A trained SASRec and how it came about.

    Attributes:
        model: on the training device, in evaluation mode.
        log: one mapping an epoch: epoch, train_loss (nats a target) and validation_ndcg (seen items allowed).
        best_epoch: the epoch whose weights the model has, from 1; 0 if there was nothing to train on.
    """

    model: Sasrec
    log: list[dict[str, float]] = field(repr=False)
    best_epoch: int

    @property
    def item_embeddings(self) -> np.ndarray:
        """What was learned of each item from who took it when: float32 [N, D]."""
        return self.model.item_embeddings()


def fit_sasrec(
    histories: FlatHistories,
    *,
    num_items: int,
    config: SasrecConfig,
    seed: int,
    device: torch.device = _CPU,
    progress: Progress = quiet_progress,
) -> FittedSasrec:
    """Train until the epochs or the patience run out.

    Args:
        histories: whole histories, targets included.
        num_items: N.
        seed: root seed; weights, order and dropout draw from streams of their own.
        progress: called after every optimizer step and every epoch with stage "sasrec"; counts targets of all epochs.

    Raises:
        TrainingError: the loss or its gradient is not finite.
    """
    model = Sasrec(num_items, config, torch_generator(seed, "sasrec/weights")).to(device)
    model.draw_dropout_from(torch_generator(seed, "sasrec/dropout"))
    return _fit(model, histories, config, seed, progress)


def training_windows(histories: FlatHistories, *, max_length: int) -> Windows:
    """Cut the training part `[:-2]` of every history into windows of at most `max_length` targets, from its end on."""
    targets = np.maximum(histories.lengths - 3, 0)  # the first item of a training part has nothing before it
    num_windows = -(-targets // max_length)
    users = np.repeat(np.arange(histories.num_users), num_windows)
    places = np.arange(len(users)) - np.repeat(np.cumsum(num_windows) - num_windows, num_windows)
    ends = targets[users] - places * max_length
    firsts = np.maximum(ends - max_length, 0)
    return Windows(histories.starts[users] + firsts, ends - firsts)


def validation_ndcg(model: Sasrec, histories: FlatHistories) -> float:
    """Mean NDCG@10 of the validation target over the users who have one, seen items allowed; 0 without users."""
    model.eval()
    gains = [np.zeros(0)]
    for users, scores in next_item_scores(model, histories, num_hidden=2):
        targets = torch.from_numpy(histories.items[histories.starts[users + 1] - 2]).to(scores.device)
        reached = scores.gather(1, targets[:, None])
        ranks = ((scores >= reached).sum(dim=1)).cpu().numpy()  # a tie counts against the model
        assert (ranks != MISSED).all(), "the target is in the catalogue"
        gains.append(ndcg(ranks, cutoff=VALIDATION_CUTOFF))
    found = np.concatenate(gains)
    return float(found.mean()) if len(found) else 0.0


def _fit(model: Sasrec, histories: FlatHistories, config: SasrecConfig, seed: int, progress: Progress) -> FittedSasrec:
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    order = numpy_generator(seed, "sasrec/order")
    windows = training_windows(histories, max_length=config.max_length)
    num_targets = int(windows.lengths.sum())
    total = config.max_epochs * num_targets + 1  # the last step: the best weights are put back
    log: list[dict[str, float]] = []
    best_epoch, best_state = 0, _state(model)
    for epoch in range(1, config.max_epochs + 1) if len(windows.firsts) else ():
        loss = _train_epoch(model, optimizer, histories, _plan(windows, config, order), epoch, config, progress)
        validation = validation_ndcg(model, histories)
        if validation > max((row["validation_ndcg"] for row in log), default=-1.0):
            best_epoch, best_state = epoch, _state(model)
        log.append({"epoch": float(epoch), "train_loss": loss, "validation_ndcg": validation})
        progress(_STAGE, epoch * num_targets, total, {"validation_ndcg": validation})
        if epoch - best_epoch >= config.patience:
            break
    model.load_state_dict(best_state)
    if log:  # patience is an end, too
        progress(_STAGE, total, total, {"validation_ndcg": log[best_epoch - 1]["validation_ndcg"]})
    return FittedSasrec(model.eval(), log, best_epoch)


def _train_epoch(
    model: Sasrec,
    optimizer: torch.optim.Optimizer,
    histories: FlatHistories,
    plan: list[Windows],
    epoch: int,
    config: SasrecConfig,
    progress: Progress,
) -> float:
    """One pass over all windows; the mean loss a target in nats."""
    model.train()
    device = model.items.weight.device
    num_targets = sum(int(batch.lengths.sum()) for batch in plan)
    total, count = 0.0, 0
    for step, batch in enumerate(plan, start=1):
        inputs, exists = (part.to(device) for part in windows_of(histories.items, batch.firsts, batch.lengths))
        targets, _ = windows_of(histories.items, batch.firsts + 1, batch.lengths)
        # the output layer is the greater part of the work, so padding is dropped before it
        logits = model.scores(model(inputs)[exists])  # [targets, N]
        loss = F.cross_entropy(logits, targets.to(device)[exists])
        guarded_step(loss, optimizer, model.parameters(), where=f"SASRec training, epoch {epoch}, step {step}")
        value = loss.item()
        total, count = total + value * len(logits), count + len(logits)
        progress(_STAGE, (epoch - 1) * num_targets + count, config.max_epochs * num_targets + 1, {"train_loss": value})
    return total / num_targets


def _plan(windows: Windows, config: SasrecConfig, generator: np.random.Generator) -> list[Windows]:
    """Batches of windows of similar length and about `batch_size` targets, in random order."""
    shuffled = generator.permutation(len(windows.firsts))
    order = shuffled[np.argsort(windows.lengths[shuffled], kind="stable")]
    ends = np.cumsum(windows.lengths[order])
    numbers = (ends - 1) // config.batch_size  # the batch in which a window's last target falls
    batches = np.split(order, np.flatnonzero(np.diff(numbers)) + 1)
    return [
        Windows(windows.firsts[batches[one]], windows.lengths[batches[one]])
        for one in generator.permutation(len(batches))
    ]


def _state(model: Sasrec) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
