"""The recommender's vocabulary: nothing but padding, the codes of both modalities and the prompt tokens.

    0                                   padding, and the decoder's start token
    1 + (m * L + l) * K + c             code c of level l in modality m (text 0, image 1)
    1 + 2 * L * K + t * P + p           prompt token p of the t-th prompted task

Tokens of a modality that the catalogue lacks have their places all the same; nothing reads or writes them.
There is no end-of-sequence token: an ID has exactly L codes, so its end carries no information
(docs/decisions/002-level-softmax.md). Symbols: N items, L levels, K codes a level, P prompt tokens a task.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from macrec_pipeline.errors import ConfigError

if TYPE_CHECKING:
    from macrec_pipeline.config import Task

PADDING = 0
MODALITIES = ("text", "image")
# task -> (modality that is read, modality that is written); the order is part of the vocabulary
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


def possible_tasks(tasks: Sequence[Task], modalities: Collection[str]) -> tuple[Task, ...]:
    """Those of `tasks` that read and write IDs of `modalities` only, in their order.

    Raises:
        ConfigError: none of them is a retrieval route.
    """
    known = HISTORY_TASKS | ALIGNMENT_TASKS
    possible = tuple(task for task in tasks if set(known[task]) <= set(modalities))
    if not any(f"{modality}_to_{modality}" in possible for modality in modalities):
        raise ConfigError(
            f"recommender.tasks is {', '.join(tasks)}, but the catalogue has only {' and '.join(modalities)} IDs. "
            f"Add {' or '.join(f'{modality}_to_{modality}' for modality in modalities)}."
        )
    return possible


@dataclass(frozen=True)
class Vocabulary:
    """Maps codes and prompts to tokens.

    Attributes:
        num_levels: L.
        codebook_size: K.
        num_prompt_tokens: P, prompt tokens of each prompted task.
    """

    num_levels: int
    codebook_size: int
    num_prompt_tokens: int

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self._first_prompt + len(PROMPTED_TASKS) * self.num_prompt_tokens

    @property
    def _first_prompt(self) -> int:
        return 1 + len(MODALITIES) * self.num_levels * self.codebook_size

    def first_code_token(self, modality: str) -> int:
        """The token of code 0 at level 0 of a modality; that modality's L * K tokens follow."""
        return 1 + MODALITIES.index(modality) * self.num_levels * self.codebook_size

    def item_tokens(self, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
        """Codes int64 [..., L], each in [0, K) -> tokens int64 [..., L]."""
        levels = torch.arange(self.num_levels, device=codes.device)
        return codes + levels * self.codebook_size + self.first_code_token(modality)

    def prompt(self, task: str, *, device: torch.device | None = None) -> torch.Tensor:
        """The prompt tokens of a task, int64 [P]; empty for the two routes, which are not prompted."""
        if task not in PROMPTED_TASKS:
            return torch.empty(0, dtype=torch.int64, device=device)
        start = self._first_prompt + PROMPTED_TASKS.index(task) * self.num_prompt_tokens
        return torch.arange(start, start + self.num_prompt_tokens, device=device)
