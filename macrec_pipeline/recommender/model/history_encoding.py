"""From histories of items to what the encoder reads: tokens, attention masks and lags (MACRec section 3.3).

A task names the modality whose semantic IDs are read and the one whose IDs are written. Its prompt tokens come first,
then the L tokens of each item of the history, oldest item first. The vocabulary numbers the tokens:

    0                                               padding, which is also the decoder's start token
    1 + (m * L + l) * K + c                         code c of level l in modality m (0 is text, 1 is image)
    1 + 2 * L * K + t * num_prompt_tokens + p       prompt token p of the t-th prompted task

A catalogue with one modality keeps the other's token numbers, which then stay unused. There is no end-of-sequence
token: an ID always has L codes, so its end carries no information (docs/decisions/002-level-softmax.md).

Shapes (docs/notation.md): B batch rows, J targets, K codes, L levels, N items, S encoder tokens, T history
items; `[rows]` is one entry per row to be batched.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from macrec_pipeline.config import Task

PADDING = 0
MODALITIES = ("text", "image")

# Task -> (modality that is read, modality that is written). The order is part of the vocabulary.
HISTORY_TASKS: dict[Task, tuple[str, str]] = {
    "text_to_text": ("text", "text"),
    "image_to_image": ("image", "image"),
    "text_to_image": ("text", "image"),
    "image_to_text": ("image", "text"),
}
ALIGNMENT_TASKS: dict[Task, tuple[str, str]] = {
    "text_id_to_image_id": ("text", "image"),
    "image_id_to_text_id": ("image", "text"),
}
PROMPTED_TASKS: tuple[Task, ...] = ("text_to_image", "image_to_text", "text_id_to_image_id", "image_id_to_text_id")

# The lag of a token says how far back it lies, as seen from a target of an item-causal row.
HIDDEN_LAG, PROMPT_LAG, FIRST_ITEM_LAG = 0, 1, 2

# (small, large) limits on the padded items of a batch of histories of similar length. A batch grows while it stays
# under the small limit, or while padding costs little, but never beyond the large one, because the layers hold the
# states of the whole batch. Small batches stay in a CPU's cache but would leave a GPU idle.
BATCH_LIMITS = {"cpu": (1024, 1024), "cuda": (2**14, 2**16)}
MAX_PADDING_RATIO = 1.2


def available_tasks(tasks: Sequence[Task], modalities: Collection[str]) -> tuple[Task, ...]:
    """Return the tasks that read and write only IDs of the given modalities, in their order.

    Raises:
        ConfigError: none of these tasks trains a retrieval route.
    """
    modalities_of = HISTORY_TASKS | ALIGNMENT_TASKS
    available = tuple(task for task in tasks if set(modalities_of[task]) <= set(modalities))
    if not any(f"{modality}_to_{modality}" in available for modality in modalities):
        raise ConfigError(
            f"`recommender.tasks` is {', '.join(tasks)}, but the catalogue has only {' and '.join(modalities)} IDs, so "
            f"no retrieval route would be trained. Add {' or '.join(f'{name}_to_{name}' for name in modalities)}."
        )
    return available


@dataclass(frozen=True)
class Vocabulary:
    """Maps codes and prompts to token numbers.

    Attributes:
        num_levels: L.
        codebook_size: K.
        num_prompt_tokens: prompt tokens per prompted task.
    """

    num_levels: int
    codebook_size: int
    num_prompt_tokens: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self._first_prompt_token + len(PROMPTED_TASKS) * self.num_prompt_tokens

    @property
    def _first_prompt_token(self) -> int:
        return 1 + len(MODALITIES) * self.num_levels * self.codebook_size

    def first_code_token(self, modality: str) -> int:
        """Return the token of code 0 at level 0 of a modality; the modality's L * K tokens start there."""
        return 1 + MODALITIES.index(modality) * self.num_levels * self.codebook_size

    def item_tokens(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """Map codes int64 [..., L], each in [0, K), to tokens int64 [..., L]."""
        levels = torch.arange(self.num_levels, device=codes.device)
        return codes + levels * self.codebook_size + self.first_code_token(modality)

    def prompt(self, task: str, *, device: torch.device | None = None) -> torch.Tensor:
        """Return the prompt tokens of a task, int64 [num_prompt_tokens]; empty for the two unprompted tasks."""
        if task not in PROMPTED_TASKS:
            return torch.empty(0, dtype=torch.int64, device=device)
        start = self._first_prompt_token + PROMPTED_TASKS.index(task) * self.num_prompt_tokens
        return torch.arange(start, start + self.num_prompt_tokens, device=device)

    def encoder_tokens(self, task: str, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """Return what the encoder reads for a task: its prompt, then the items' tokens.

        Args:
            task: selects the prompt.
            codes: int64 [B, L] or [B, T, L], the codes of one item or of a history per row.
            modality: modality of the codes.

        Returns:
            int64 [B, S].
        """
        prompt = self.prompt(task, device=codes.device)
        tokens = self.item_tokens(codes, modality=modality).flatten(1)
        return torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1)


@dataclass(frozen=True)
class ItemCodes:
    """The catalogue's semantic IDs on the model's device.

    Attributes:
        codes: {modality: int64 [N, L]}, each code in [0, K).
    """

    codes: dict[str, torch.Tensor]

    @property
    def num_items(self) -> int:
        """N."""
        return len(next(iter(self.codes.values())))


@dataclass(frozen=True)
class HistoryBatch:
    """A batch of histories, padded to the longest, with the targets that follow their items.

    Attributes:
        history: int64 [B, T] item indices; 0 where a history has ended.
        lengths: int64 [B], items of each history.
        targets: int64 [B, J] item indices.
        target_mask: bool [B, J], False for padding and for items that are only context. If targets have weights in the
            loss, float32 [B, J]: the weight, and 0 instead of False.
        target_offset: target j follows the history item at position `target_offset + j`. Unused if `only_last`.
        only_last: J is 1, and the target is the item after the last one of each history, wherever that history ends.
        padded: whether some history has fewer than T items.
    """

    history: torch.Tensor
    lengths: torch.Tensor
    targets: torch.Tensor
    target_mask: torch.Tensor
    target_offset: int
    only_last: bool
    padded: bool = True

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """`history`, `lengths`, `targets` and `target_mask`."""
        return self.history, self.lengths, self.targets, self.target_mask

    @property
    def shape(self) -> tuple[object, ...]:
        """Everything but the contents of the tensors: equal for batches that need the same computation."""
        return *self.history.shape, self.targets.shape[1], self.target_offset, self.only_last, self.padded

    def with_tensors(
        self, history: torch.Tensor, lengths: torch.Tensor, targets: torch.Tensor, target_mask: torch.Tensor
    ) -> HistoryBatch:
        """Return a batch of the same shape with other contents."""
        return HistoryBatch(history, lengths, targets, target_mask, self.target_offset, self.only_last, self.padded)

    def to(self, device: torch.device) -> HistoryBatch:
        """Return the same batch on a device."""
        return self.with_tensors(*(tensor.to(device) for tensor in self.tensors))


def batches_by_length(lengths: np.ndarray, *, batch_size: int, device: torch.device) -> Iterator[np.ndarray]:
    """Group rows of similar length into batches, shortest first, so that little is padded.

    Args:
        lengths: int64 [rows], what each row costs before it is padded to the longest of its batch.
        batch_size: maximum number of rows per batch.
        device: where the batches will be processed.

    Yields:
        int64 [B] row numbers with B <= `batch_size`; every row occurs once.
    """
    small, large = BATCH_LIMITS[device.type]
    order = np.argsort(lengths, kind="stable")
    begin, num_items = 0, 0
    for end, length in enumerate(lengths[order], start=1):
        num_padded = (end - begin) * length
        too_large = num_padded > large or num_padded > max(small, MAX_PADDING_RATIO * (num_items + length))
        if end - begin > 1 and (end - begin > batch_size or too_large):
            yield order[begin : end - 1]
            begin, num_items = end - 1, 0
        num_items += length
    if len(order):
        yield order[begin:]


def padding_mask(lengths: torch.Tensor, *, num_items: int, num_levels: int, num_prompts: int) -> torch.Tensor:
    """Map history lengths int64 [B] to a mask bool [B, S] that is True at prompts and at tokens of real items."""
    is_item = torch.arange(num_items, device=lengths.device) < lengths[:, None]  # [B, T]
    is_prompt = torch.ones(len(lengths), num_prompts, dtype=torch.bool, device=lengths.device)
    return torch.cat([is_prompt, is_item[..., None].expand(-1, -1, num_levels).flatten(1)], dim=1)


def item_causal_mask_and_lags(
    num_items: int, *, num_levels: int, num_prompts: int, history_length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which tokens of an item-causal row attend to which, and the lag of each token for each target.

    Padding needs no mask, because it comes after every item that a target can depend on.

    Args:
        num_items: T.
        num_levels: L.
        num_prompts: prompt tokens before the first item.
        history_length: most recent items that a token or a target attends to.

    Returns:
        bool [S, S], True where a token attends to another: to the prompts, its own item and the `history_length - 1`
        items before it.
        int64 [T, S], the lag of each token for target j, the item after item j: `PROMPT_LAG`, `HIDDEN_LAG` outside
        the items j - history_length + 1 to j, else `FIRST_ITEM_LAG` + items back * L + the token's level.
    """
    item = torch.cat([torch.full((num_prompts,), -1), torch.arange(num_items).repeat_interleave(num_levels)])
    level = torch.cat([torch.zeros(num_prompts, dtype=torch.int64), torch.arange(num_levels).repeat(num_items)])

    def lags_from(newest_item: torch.Tensor) -> torch.Tensor:
        items_back = newest_item[:, None] - item
        visible = (items_back >= 0) & (items_back < history_length)
        item_lags = torch.where(visible, FIRST_ITEM_LAG + items_back * num_levels + level, HIDDEN_LAG)
        return torch.where(item < 0, PROMPT_LAG, item_lags)

    return lags_from(item) != HIDDEN_LAG, lags_from(torch.arange(num_items))


def num_lags(*, num_levels: int, history_length: int) -> int:
    """Return the number of distinct lags of `item_causal_mask_and_lags`."""
    return FIRST_ITEM_LAG + history_length * num_levels
