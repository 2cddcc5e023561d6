"""The six tasks' loss (MACRec section 3.3): next-item generation, explicit and implicit alignment.

A level's cross-entropy runs over the K codes of that level and modality, which are all that can follow.
Tasks with equally many prompt tokens may be worked out together: their rows then come in equal stretches, one a task.
The sums are the same; on a GPU, which would else wait for its next kernel, it takes half the time.
Shapes: B rows, T items read, J targets, S encoder tokens, L levels, K codes, D d_model,
A heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from macrec_pipeline.recommender.model.generative_recommender import CrossAttentionCache
from macrec_pipeline.recommender.model.layers import as_bias
from macrec_pipeline.recommender.model.vocabulary import ALIGNMENT_TASKS, HISTORY_TASKS
from macrec_pipeline.recommender.training.batching import HistoryBatch, item_causal_views, padding_mask
from macrec_pipeline.runtime.info_nce import symmetric_info_nce

if TYPE_CHECKING:
    from macrec_pipeline.config import Task
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
    from macrec_pipeline.recommender.model.vocabulary import Vocabulary


@dataclass(frozen=True)
class ItemCodes:
    """The catalogue's semantic IDs on the model's device, `codes[modality]` int64 [N, L], each in [0, K)."""

    codes: dict[str, torch.Tensor]

    @property
    def num_items(self) -> int:
        """N."""
        return len(next(iter(self.codes.values())))


def history_loss(
    model: GenerativeRecommender, items: ItemCodes, batch: HistoryBatch, *, tasks: Sequence[Task]
) -> torch.Tensor:
    """Summed cross-entropy in nats of history tasks over the counted targets, each the mean over its L levels."""
    memory = encode_histories(model, items, batch, tasks=tasks)
    written = [HISTORY_TASKS[task][1] for task in tasks]
    codes = torch.cat(
        [items.codes[name][own] for name, own in zip(written, batch.targets.chunk(len(tasks)), strict=True)]
    )
    losses = _target_losses(model, codes, memory, modalities=written)  # [B, J]
    return (losses * batch.counted).sum()


def encode_histories(
    model: GenerativeRecommender, items: ItemCodes, batch: HistoryBatch, *, tasks: Sequence[Task]
) -> CrossAttentionCache:
    """What the targets of a batch are decoded from, with the bias of each towards the encoder's tokens."""
    config, words = model.config, model.vocabulary
    tokens = torch.cat(
        [
            _read(words, task, items.codes[HISTORY_TASKS[task][0]][own], modality=HISTORY_TASKS[task][0])
            for task, own in zip(tasks, batch.read.chunk(len(tasks)), strict=True)
        ]
    )  # [B, S]
    num_items, num_levels = batch.read.shape[1], words.num_levels
    sizes = {"num_items": num_items, "num_levels": num_levels, "num_prompts": tokens.shape[1] - num_items * num_levels}
    if config.encoding == "exact":
        if not batch.padded:
            return model.cross_attention_cache(model.encode(tokens))
        real = padding_mask(batch.length, **sizes)
        return model.cross_attention_cache(
            model.encode(tokens, real[:, None, None, :]), as_bias(real)[:, None, None, :]
        )
    among, lags = item_causal_views(**sizes, history_length=config.history_length)
    # rows whose only target is the last end at different places
    lags = lags.to(tokens.device)
    lags = lags[batch.length - 1][:, None, :] if batch.only_last else lags[batch.first :]
    return model.cross_attention_cache(model.encode(tokens, among.to(tokens.device)), model.recency_bias(lags))


def alignment_losses(
    model: GenerativeRecommender, items: ItemCodes, chosen: torch.Tensor, *, tasks: Sequence[Task]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Explicit and implicit alignment of ID -> ID tasks, each for the items `chosen`, int64 [B]; summed over the tasks.

    Returns:
        The summed cross-entropy of writing the other modality's ID, and the implicit alignment: symmetric InfoNCE in
        nats between the pooled encodings of each item's two IDs, each encoded alone, against the batch; 0 where its
        weight is 0, for then it is not worked out.
    """
    words = model.vocabulary
    sources, targets = zip(*(ALIGNMENT_TASKS[task] for task in tasks), strict=True)
    read = [
        _read(words, task, items.codes[name][chosen], modality=name) for task, name in zip(tasks, sources, strict=True)
    ]
    states = model.encode(torch.cat(read))  # [tasks * B, P + L, D]
    written = [items.codes[name][chosen] for name in targets]
    memory = model.cross_attention_cache(states)
    explicit = _target_losses(model, torch.cat(written)[:, None], memory, modalities=targets).sum()
    if not model.config.implicit_weight:
        return explicit, torch.zeros_like(explicit)
    own = states[:, -words.num_levels :].mean(dim=1)
    tokens = [words.item_tokens(codes, modality=name) for codes, name in zip(written, targets, strict=True)]
    other = model.encode(torch.cat(tokens)).mean(dim=1)
    pairs = zip(_stretches(own, len(tasks)), _stretches(other, len(tasks)), strict=True)
    implicit = [symmetric_info_nce(*pair, temperature=model.config.implicit_temperature) for pair in pairs]
    return explicit, torch.stack(implicit).sum()


def _read(words: Vocabulary, task: Task, codes: torch.Tensor, *, modality: str) -> torch.Tensor:
    """What a task reads, prompt first: codes int64 [B, ..., L] of its items -> tokens int64 [B, S]."""
    prompt = words.prompt(task, device=codes.device)
    tokens = words.item_tokens(codes, modality=modality).flatten(1)
    return torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1)


def _stretches(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Rows cut into equal stretches; a single one is passed on, for a cut changes the order of its gradient's sums."""
    return rows.chunk(count) if count > 1 else (rows,)


def _target_losses(
    model: GenerativeRecommender,
    codes: torch.Tensor,
    memory: CrossAttentionCache,
    *,
    modalities: Sequence[str],
) -> torch.Tensor:
    """Cross-entropy of target codes int64 [B, J, L], averaged over the levels: float [B, J]."""
    parts = zip(codes.chunk(len(modalities)), modalities, strict=True)
    inputs = torch.cat([model.decoder_inputs(own[..., :-1], modality=name) for own, name in parts])  # [B, J, L]
    states = _stretches(model.decode(inputs, memory), len(modalities))
    logits = [
        model.code_logits(own, modality=name).flatten(0, 2) for own, name in zip(states, modalities, strict=True)
    ]  # [B * J * L, K] each
    smoothing = model.config.label_smoothing if model.training else 0.0
    losses = [
        F.cross_entropy(each, own.flatten(), reduction="none", label_smoothing=smoothing)
        for each, own in zip(logits, codes.chunk(len(modalities)), strict=True)
    ]
    return torch.cat(losses).view(codes.shape).mean(dim=-1)
