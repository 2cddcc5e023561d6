"""The losses of the six tasks (MACRec section 3.3): next-item generation, explicit and implicit alignment.

The cross-entropy of a level runs over the K codes of that level and modality, since nothing else can follow. Tasks with
equally many prompt tokens may be computed together; their rows then form equal runs, one per task. The sums are the
same, but a GPU, which would otherwise wait for its next kernel, takes half the time.

Shapes (docs/notation.md): B batch rows, D hidden width, J targets per row, K codes, L levels, S encoder tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from macrec_pipeline.recommender.model.history_encoding import ALIGNMENT_TASKS, HISTORY_TASKS
from macrec_pipeline.runtime.info_nce import symmetric_info_nce

if TYPE_CHECKING:
    from macrec_pipeline.config import Task
    from macrec_pipeline.recommender.model.generative_recommender import CrossAttentionCache, GenerativeRecommender
    from macrec_pipeline.recommender.model.history_encoding import HistoryBatch, ItemCodes


def history_loss(
    model: GenerativeRecommender,
    items: ItemCodes,
    batch: HistoryBatch,
    *,
    tasks: Sequence[Task],
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Return the cross-entropy of history tasks in nats, averaged over the L levels and summed over the targets.

    Args:
        model: encodes and decodes.
        items: the catalogue's codes.
        batch: its rows are divided into equal runs, one per task.
        tasks: history tasks with equally long prompts.
        label_smoothing: share of each target's probability that is spread evenly over the K codes.
    """
    cross_cache = model.encode_histories(items, batch, tasks=tasks)
    modalities = [HISTORY_TASKS[task][1] for task in tasks]
    codes = torch.cat(
        [
            items.codes[modality][targets]
            for modality, targets in zip(modalities, batch.targets.chunk(len(tasks)), strict=True)
        ]
    )  # [B, J, L]
    losses = _target_losses(model, codes, cross_cache, modalities=modalities, label_smoothing=label_smoothing)
    return (losses * batch.target_mask).sum()


def alignment_losses(
    model: GenerativeRecommender,
    items: ItemCodes,
    chosen: torch.Tensor,
    *,
    tasks: Sequence[Task],
    label_smoothing: float = 0.0,
    implicit_temperature: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the explicit and the implicit alignment of tasks that map one ID of an item to its other ID.

    Args:
        model: encodes and decodes.
        items: the catalogue's codes.
        chosen: int64 [B], the items that every task is computed for.
        tasks: alignment tasks.
        label_smoothing: as in `history_loss`.
        implicit_temperature: divides the cosine similarity; None leaves the implicit alignment out.

    Returns:
        Two scalars, each summed over the tasks: the summed cross-entropy of writing the other modality's ID; and
        symmetric InfoNCE in nats, within the batch, between the pooled encodings of each item's two IDs, each encoded
        alone. The second one is 0 if it is left out.
    """
    vocabulary = model.vocabulary
    sources, targets = zip(*(ALIGNMENT_TASKS[task] for task in tasks), strict=True)
    tokens = [
        vocabulary.encoder_tokens(task, items.codes[modality][chosen], modality=modality)
        for task, modality in zip(tasks, sources, strict=True)
    ]
    states = model.encode(torch.cat(tokens))  # [tasks * B, prompt tokens + L, D]
    target_codes = [items.codes[modality][chosen] for modality in targets]
    explicit = _target_losses(
        model,
        torch.cat(target_codes)[:, None],
        model.cross_attention_cache(states),
        modalities=targets,
        label_smoothing=label_smoothing,
    ).sum()
    if implicit_temperature is None:
        return explicit, torch.zeros_like(explicit)
    source_vectors = states[:, -vocabulary.num_levels :].mean(dim=1)  # [tasks * B, D]
    target_tokens = [
        vocabulary.item_tokens(codes, modality=modality) for codes, modality in zip(target_codes, targets, strict=True)
    ]
    target_vectors = model.encode(torch.cat(target_tokens)).mean(dim=1)
    pairs = zip(_runs(source_vectors, len(tasks)), _runs(target_vectors, len(tasks)), strict=True)
    implicit = [symmetric_info_nce(*pair, temperature=implicit_temperature) for pair in pairs]
    return explicit, torch.stack(implicit).sum()


def _runs(rows: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Cut rows into equal runs. A single run is returned as it is: a cut would reorder the sums of its gradient."""
    return rows.chunk(count) if count > 1 else (rows,)


def _target_losses(
    model: GenerativeRecommender,
    codes: torch.Tensor,
    cross_cache: CrossAttentionCache,
    *,
    modalities: Sequence[str],
    label_smoothing: float,
) -> torch.Tensor:
    """Return the cross-entropy of target codes int64 [B, J, L], averaged over the levels: float [B, J]."""
    codes_of_runs = codes.chunk(len(modalities))
    inputs = torch.cat(
        [
            model.decoder_inputs(run[..., :-1], modality=modality)
            for run, modality in zip(codes_of_runs, modalities, strict=True)
        ]
    )  # [B, J, L]
    states_of_runs = _runs(model.decode(inputs, cross_cache), len(modalities))
    logits_of_runs = [
        model.code_logits(states, modality=modality).flatten(0, 2)
        for states, modality in zip(states_of_runs, modalities, strict=True)
    ]  # [B * J * L, K] each
    losses = [
        F.cross_entropy(logits, run.flatten(), reduction="none", label_smoothing=label_smoothing)
        for logits, run in zip(logits_of_runs, codes_of_runs, strict=True)
    ]
    return torch.cat(losses).view(codes.shape).mean(dim=-1)
