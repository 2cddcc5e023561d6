"""Cuts histories into windows, and windows into batches, for the history tasks (MACRec section 3.3).

A window is a stretch of one user's items. Some of its items after the first are its targets. There are two encodings:

- `exact`, as published: one window per training sample, with at most `history_length` items and then the target.
- `item_causal`: one window has many targets. A history token attends to its own item and the `history_length - 1` items
  before it, and a target attends to the `history_length` items before it, so one encoder pass serves every prefix.

Shapes (docs/notation.md): B batch rows, J targets per row, R training windows, T history items.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.model.history_encoding import HistoryBatch

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model.generative_recommender import ModelSpec

# Targets of an item-causal window. Longer windows read less context twice but attend over more that is masked; 20 and
# 40 train about equally many targets per second on a CPU, 10 and 80 mostly fewer.
TARGETS_PER_WINDOW = 20


@dataclass(frozen=True)
class HistoryWindows:
    """Stretches of histories, as bounds in one flat array.

    Attributes:
        items: int64 [sum of T], all histories laid end to end.
        start, stop: int64 [R]; a window is `items[start:stop]`.
        first_target: int64 [R], position in the window of its first target, at least 1. All later items are targets.
        weights: float32 [sum of T], what each item counts in the loss if it is a target; None counts all of them once.
    """

    items: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    first_target: np.ndarray
    weights: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Items per window, int64 [R]."""
        lengths: np.ndarray = self.stop - self.start
        return lengths

    @cached_property
    def targets_per_window(self) -> np.ndarray:
        """int64 [R]."""
        targets: np.ndarray = self.lengths - self.first_target
        return targets

    @property
    def num_targets(self) -> int:
        """Targets of all windows together."""
        return int(self.targets_per_window.sum())

    def batch(self, chosen: np.ndarray, *, only_last: bool) -> HistoryBatch:
        """Gather some windows into tensors.

        Args:
            chosen: int64 [B] window numbers.
            only_last: whether the last item of each window is its only target. Otherwise the targets start at the
                earliest first target of these windows.
        """
        lengths = self.lengths[chosen]
        positions = np.arange(lengths.max())
        inside = positions < lengths[:, None]
        flat_positions = np.minimum(self.start[chosen, None] + positions, len(self.items) - 1)
        items = np.where(inside, self.items[flat_positions], 0)
        history, history_lengths = torch.from_numpy(items[:, :-1]), torch.from_numpy(lengths - 1)
        padded = bool((lengths < lengths.max()).any())
        if only_last:
            targets = torch.from_numpy(self.items[self.stop[chosen] - 1])[:, None]
            target_mask = torch.ones_like(targets, dtype=torch.bool)
            if self.weights is not None:
                target_mask = torch.from_numpy(self.weights[self.stop[chosen] - 1])[:, None]
            return HistoryBatch(history, history_lengths, targets, target_mask, 0, True, padded)
        is_target = inside & (positions >= self.first_target[chosen, None])
        if self.weights is not None:
            is_target = np.where(is_target, self.weights[flat_positions], np.float32(0))
        first = int(self.first_target[chosen].min())
        targets, target_mask = torch.from_numpy(items[:, first:]), torch.from_numpy(is_target[:, first:])
        return HistoryBatch(history, history_lengths, targets, target_mask, first - 1, False, padded)


def training_windows(
    histories: Sequence[np.ndarray], spec: ModelSpec, weights: np.ndarray | None = None
) -> HistoryWindows:
    """Return windows in which every item after the first of a history is a target exactly once.

    Args:
        histories: training parts, int64 [T] item indices each, oldest first.
        spec: gives the encoding and the history length.
        weights: as for `HistoryWindows`.
    """
    num_targets = 1 if spec.encoding == "exact" else TARGETS_PER_WINDOW
    windows = _cut(histories, num_targets=num_targets, num_context=spec.history_length)
    return windows if weights is None else replace(windows, weights=weights)


def last_target_windows(histories: Sequence[np.ndarray], spec: ModelSpec) -> HistoryWindows:
    """Return one window per history, whose only target is the last item of the history."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    stop = np.cumsum(lengths)
    start = np.maximum(stop - lengths, stop - 1 - spec.receptive_field)
    return HistoryWindows(_flatten(histories), start, stop, stop - start - 1)


def plan_batches(
    windows: HistoryWindows, *, targets_per_batch: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield the window numbers of one batch after the other; every window occurs once.

    Windows of similar length share a batch. The number of batches and their shapes depend only on the lengths. The
    generator decides which windows share a batch, and the order of the batches.
    """
    shuffled = generator.permutation(len(windows))
    num_targets = windows.targets_per_window
    order = shuffled[np.lexsort((num_targets[shuffled], windows.lengths[shuffled]))[::-1]]
    num_targets = num_targets[order]
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, targets_per_batch // int(num_targets[begin : begin + targets_per_batch].max()))
        batches.append(order[begin : begin + size])
        begin += size
    for index in generator.permutation(len(batches)):
        yield batches[index]


def _flatten(histories: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])


def _cut(histories: Sequence[np.ndarray], *, num_targets: int, num_context: int) -> HistoryWindows:
    """Cut histories into windows of at most `num_targets` targets after at most `num_context` items of context."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    begin = np.cumsum(lengths) - lengths
    windows_per_history = np.maximum(lengths - 1 + num_targets - 1, 0) // num_targets  # targets are items 1, 2, ...
    history_of_window = np.repeat(np.arange(len(histories)), windows_per_history)
    first_window = np.repeat(np.cumsum(windows_per_history) - windows_per_history, windows_per_history)
    number_in_history = np.arange(len(history_of_window)) - first_window
    first = 1 + number_in_history * num_targets  # position in the history of the window's first target
    start = np.maximum(first - num_context, 0)
    stop = np.minimum(first + num_targets, lengths[history_of_window])
    offset = begin[history_of_window]
    return HistoryWindows(_flatten(histories), offset + start, offset + stop, first - start)
