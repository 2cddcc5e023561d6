"""Histories -> batches of integer tensors for the history tasks (MACRec section 3.3).

A row is a stretch of one user's items; its targets are some of the items after the first. Two encodings share it:

- `exact` (as published): one row a training sample, at most `history_length` items and then the target.
- `item_causal`: one row holds many targets. A history token looks at its own item and the `history_length - 1` items
  before it, a target at the `history_length` items before it, so one encoder pass serves every prefix of the row.

Shapes: R rows, B rows of a batch, T items of a row that are read, J targets of a row, S = P + T * L encoder tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from macrec_pipeline.config import RecommenderConfig

# Targets of one item-causal row: longer rows re-read less context, but attend over more that is masked. On two
# CPU cores 20 and 40 train about equally many targets a second, 10 and 80 mostly fewer.
TARGETS_PER_ROW = 20

# A batch of like lengths grows while its padded items are no more than the first of these, or than this multiple of the
# real ones; and never beyond the second, since what the layers keep of them all is held at once. Smaller batches keep a
# processor's cache, and would leave a GPU idle.
BATCH_LIMITS = {"cpu": (1024, 1024), "cuda": (2**14, 2**16)}
MOST_PADDED = 1.2

HIDDEN_LAG, PROMPT_LAG, FIRST_ITEM_LAG = 0, 1, 2


@dataclass(frozen=True)
class HistoryWindows:
    """Stretches of histories, as bounds in one flat array.

    Attributes:
        flat: int64 [sum of lengths], all histories end to end.
        start, stop: int64 [R], the row is `flat[start:stop]`.
        first_target: int64 [R], position in the row of its first target, at least 1; the last item is always one.
    """

    flat: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    first_target: np.ndarray

    def __len__(self) -> int:
        return len(self.start)

    @property
    def lengths(self) -> np.ndarray:
        """Items of each row, int64 [R]."""
        lengths: np.ndarray = self.stop - self.start
        return lengths

    @property
    def num_targets(self) -> int:
        """Targets of all rows together."""
        return int((self.lengths - self.first_target).sum())


@dataclass(frozen=True)
class HistoryBatch:
    """Some rows, padded to the longest.

    Attributes:
        read: int64 [B, T] item indices, 0 where `length` is passed.
        length: int64 [B], items read.
        targets: int64 [B, J] item indices.
        counted: bool [B, J], False for padding and for items that are context only.
        first: position in the row of the item before the first target column; meaningless if `only_last`.
        only_last: J is 1 and the target is the item after the last one that is read, wherever the row ends.
        padded: some row reads fewer than T items.
    """

    read: torch.Tensor
    length: torch.Tensor
    targets: torch.Tensor
    counted: torch.Tensor
    first: int
    only_last: bool
    padded: bool = True

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`read`, `length`, `targets` and `counted`."""
        return self.read, self.length, self.targets, self.counted

    @property
    def shape(self) -> tuple[object, ...]:
        """All but the contents of the tensors: B, T, J and the rest."""
        return *self.read.shape, self.targets.shape[1], self.first, self.only_last, self.padded

    def with_tensors(
        self, read: torch.Tensor, length: torch.Tensor, targets: torch.Tensor, counted: torch.Tensor
    ) -> HistoryBatch:
        """Other contents of the same shapes."""
        return HistoryBatch(read, length, targets, counted, self.first, self.only_last, self.padded)

    def to(self, device: torch.device) -> HistoryBatch:
        """The same batch on a device."""
        return self.with_tensors(*(tensor.to(device) for tensor in self.tensors))


def training_rows(histories: Sequence[np.ndarray], config: RecommenderConfig) -> HistoryWindows:
    """Every item after a history's first as a target, once. The histories are training parts, oldest first."""
    span = 1 if config.encoding == "exact" else TARGETS_PER_ROW
    return _cut(histories, span=span, context=config.history_length)


def last_target_rows(histories: Sequence[np.ndarray], config: RecommenderConfig) -> HistoryWindows:
    """One row a history, whose only target is the history's last item."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    stop = np.cumsum(lengths)
    start = np.maximum(stop - lengths, stop - 1 - receptive_field(config))
    return HistoryWindows(_flatten(histories), start, stop, stop - start - 1)


def receptive_field(config: RecommenderConfig) -> int:
    """Items that a target depends on: each item-causal encoder layer looks `history_length - 1` items further back."""
    if config.encoding == "exact":
        return config.history_length
    return config.history_length + config.num_encoder_layers * (config.history_length - 1)


def batch_of(rows: HistoryWindows, chosen: np.ndarray, *, only_last: bool) -> HistoryBatch:
    """Gather rows into tensors.

    Args:
        rows: all rows.
        chosen: int64 [B] row numbers.
        only_last: J is 1, the last item; otherwise target j is the item after the read one at `first` + j, and items
            that are context in every row are no targets.
    """
    lengths = rows.lengths[chosen]
    positions = np.arange(lengths.max())
    inside = positions < lengths[:, None]
    items = np.where(inside, rows.flat[np.minimum(rows.start[chosen, None] + positions, len(rows.flat) - 1)], 0)
    read, length = torch.from_numpy(items[:, :-1]), torch.from_numpy(lengths - 1)
    padded = bool((lengths < lengths.max()).any())
    if only_last:
        targets = torch.from_numpy(rows.flat[rows.stop[chosen] - 1])[:, None]
        return HistoryBatch(read, length, targets, torch.ones_like(targets, dtype=torch.bool), 0, True, padded)
    counted = inside & (positions >= rows.first_target[chosen, None])
    first = int(rows.first_target[chosen].min())
    targets, counted = torch.from_numpy(items[:, first:]), torch.from_numpy(counted[:, first:])
    return HistoryBatch(read, length, targets, counted, first - 1, False, padded)


def plan_batches(
    rows: HistoryWindows, *, targets_per_batch: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield row numbers of one batch after the other, each row once, rows of like length together.

    The number of batches and their shapes depend on the lengths alone; which rows meet, and when, on the generator.
    """
    shuffled = generator.permutation(len(rows))
    width = rows.lengths - rows.first_target  # targets of a row
    order = shuffled[np.lexsort((width[shuffled], rows.lengths[shuffled]))[::-1]]
    width = width[order]
    batches, begin = [], 0
    while begin < len(order):
        size = max(1, targets_per_batch // int(width[begin : begin + targets_per_batch].max()))
        batches.append(order[begin : begin + size])
        begin += size
    for index in generator.permutation(len(batches)):
        yield batches[index]


def batches_by_length(lengths: np.ndarray, *, batch_size: int, device: torch.device) -> Iterator[np.ndarray]:
    """Places of a batch after the other, int64 [B] with B <= `batch_size`: each place once, shortest first.

    Args:
        lengths: int64 [R], what each row costs before it is padded to the longest of its batch.
        batch_size: the most rows of a batch.
        device: where the batches are to be worked on.
    """
    small, large = BATCH_LIMITS[device.type]
    order = np.argsort(lengths, kind="stable")
    begin, real = 0, 0
    for end, length in enumerate(lengths[order], start=1):
        padded = (end - begin) * length
        grown = padded > large or padded > max(small, MOST_PADDED * (real + length))
        if end - begin > 1 and (end - begin > batch_size or grown):
            yield order[begin : end - 1]
            begin, real = end - 1, 0
        real += length
    if len(order):
        yield order[begin:]


def item_causal_views(
    num_items: int, *, num_levels: int, num_prompts: int, history_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Who may look at whom in an item-causal row; padding needs no mask, since it lies after all that count.

    Returns:
        bool [S, S]: a token looks at the prompts, its own item and the `history_length - 1` items before.
        int64 [T, S]: the lag of each token for target j (the item after item j): `HIDDEN_LAG` beyond the window
            j - history_length + 1 .. j, `PROMPT_LAG`, or `FIRST_ITEM_LAG` + items back * L + the token's level.
    """
    item = torch.cat([torch.full((num_prompts,), -1), torch.arange(num_items).repeat_interleave(num_levels)])
    level = torch.cat([torch.zeros(num_prompts, dtype=torch.int64), torch.arange(num_levels).repeat(num_items)])

    def lags(query: torch.Tensor) -> torch.Tensor:
        back = query[:, None] - item
        inside = (back >= 0) & (back < history_length)
        of_items = torch.where(inside, FIRST_ITEM_LAG + back * num_levels + level, HIDDEN_LAG)
        return torch.where(item < 0, PROMPT_LAG, of_items)

    return lags(item) != HIDDEN_LAG, lags(torch.arange(num_items))


def num_lags(num_levels: int, config: RecommenderConfig) -> int:
    """Distinct values of a lag of `item_causal_views`."""
    return FIRST_ITEM_LAG + config.history_length * num_levels


def padding_mask(length: torch.Tensor, *, num_items: int, num_levels: int, num_prompts: int) -> torch.Tensor:
    """Lengths int64 [B] -> bool [B, S], True at prompts and real items."""
    real = torch.arange(num_items, device=length.device) < length[:, None]
    prompts = torch.ones(len(length), num_prompts, dtype=torch.bool, device=length.device)
    return torch.cat([prompts, real[..., None].expand(-1, -1, num_levels).flatten(1)], dim=1)


def _flatten(histories: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.asarray(history, dtype=np.int64) for history in histories])


def _cut(histories: Sequence[np.ndarray], *, span: int, context: int) -> HistoryWindows:
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    begin = np.cumsum(lengths) - lengths
    per_history = np.maximum(lengths - 1 + span - 1, 0) // span  # rows that cover targets 1 .. length-1
    owner = np.repeat(np.arange(len(histories)), per_history)
    rank = np.arange(len(owner)) - np.repeat(np.cumsum(per_history) - per_history, per_history)
    first = 1 + rank * span  # position in the history of the row's first target
    start = np.maximum(first - context, 0)
    stop = np.minimum(first + span, lengths[owner])
    return HistoryWindows(_flatten(histories), begin[owner] + start, begin[owner] + stop, first - start)
