"""The six tasks' loss (MACRec section 3.3): next-item generation, explicit and implicit alignment.

A level's cross-entropy runs over the K codes of that level and modality, which are all that can follow.
Shapes: B rows, T items read, J targets, S encoder tokens, L levels, K codes, D d_model,
A heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from macrec_pipeline.recommender.model import Memory, as_bias
from macrec_pipeline.recommender.tasks import Batch, item_causal_views, padding_mask
from macrec_pipeline.recommender.vocabulary import ALIGNMENT_TASKS, HISTORY_TASKS
from macrec_pipeline.runtime.contrast import symmetric_info_nce

if TYPE_CHECKING:
    from macrec_pipeline.recommender.model import GenerativeRecommender


@dataclass(frozen=True)
class ItemCodes:
    """The catalogue's semantic IDs on the model's device, `codes[modality]` int64 [N, L], each in [0, K)."""

    codes: dict[str, torch.Tensor]

    @property
    def num_items(self) -> int:
        """N."""
        return len(next(iter(self.codes.values())))


def history_loss(model: GenerativeRecommender, items: ItemCodes, batch: Batch, *, task: str) -> torch.Tensor:
    """Summed cross-entropy in nats of a history task over the counted targets, each the mean over its L levels."""
    source, target = HISTORY_TASKS[task]  # type: ignore[index]
    memory = encode_histories(model, items, batch, task=task, source=source)
    losses = _target_losses(model, items.codes[target][batch.targets], memory, modality=target)  # [B, J]
    return (losses * batch.counted).sum()


def encode_histories(model: GenerativeRecommender, items: ItemCodes, batch: Batch, *, task: str, source: str) -> Memory:
    """What the targets of a batch are decoded from, with the bias of each towards the encoder's tokens."""
    config, words = model.config, model.vocabulary
    prompt = words.prompt(task).to(batch.read.device)
    tokens = words.item_tokens(items.codes[source][batch.read], modality=source).flatten(1)
    tokens = torch.cat([prompt.expand(len(tokens), -1), tokens], dim=1)  # [B, S]
    sizes = {"num_items": batch.read.shape[1], "num_levels": words.num_levels, "num_prompts": len(prompt)}
    if config.encoding == "exact":
        real = padding_mask(batch.length, **sizes)
        return model.remember(model.encode(tokens, real[:, None, None, :]), as_bias(real)[:, None, None, :])
    among, lags = item_causal_views(**sizes, history_length=config.history_length)
    # rows whose only target is the last end at different places
    lags = lags.to(tokens.device)
    lags = lags[batch.length - 1][:, None, :] if batch.only_last else lags[batch.first :]
    return model.remember(model.encode(tokens, among.to(tokens.device)), model.recency_bias(lags))


def alignment_losses(
    model: GenerativeRecommender, items: ItemCodes, chosen: torch.Tensor, *, task: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Explicit and implicit alignment of one ID -> ID task for the items `chosen`, int64 [B].

    Returns:
        The summed cross-entropy of writing the other modality's ID, and the implicit alignment: symmetric InfoNCE in
        nats between the pooled encodings of each item's two IDs, each encoded alone, against the batch; 0 where its
        weight is 0, for then it is not worked out.
    """
    source, target = ALIGNMENT_TASKS[task]  # type: ignore[index]
    words = model.vocabulary
    prompt = words.prompt(task).to(chosen.device)
    read = words.item_tokens(items.codes[source][chosen], modality=source)
    states = model.encode(torch.cat([prompt.expand(len(read), -1), read], dim=1))  # [B, P + L, D]
    written = items.codes[target][chosen]
    explicit = _target_losses(model, written[:, None], model.remember(states), modality=target).sum()
    if not model.config.implicit_weight:
        return explicit, torch.zeros_like(explicit)
    own = states[:, len(prompt) :].mean(dim=1)
    other = model.encode(words.item_tokens(written, modality=target)).mean(dim=1)
    return explicit, symmetric_info_nce(own, other, temperature=model.config.implicit_temperature)


def _target_losses(
    model: GenerativeRecommender,
    codes: torch.Tensor,
    memory: Memory,
    *,
    modality: str,
) -> torch.Tensor:
    """Cross-entropy of target codes int64 [B, J, L], averaged over the levels: float [B, J]."""
    inputs = model.decoder_inputs(codes[..., :-1], modality=modality)  # [B, J, L]
    logits = model.code_logits(model.decode(inputs, memory), modality=modality)  # [B, J, L, K]
    smoothing = model.config.label_smoothing if model.training else 0.0
    losses = F.cross_entropy(logits.flatten(0, 2), codes.flatten(), reduction="none", label_smoothing=smoothing)
    return losses.view(codes.shape).mean(dim=-1)
