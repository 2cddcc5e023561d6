"""Measures a model during training on the validation targets, the second-to-last item of each history.

In distributed training each rank measures its share of the targets, and every rank gets the metrics over all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.model.history_encoding import batches_by_length
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.batching import last_target_windows
from macrec_pipeline.recommender.training.losses import history_loss
from macrec_pipeline.runtime import distributed

if TYPE_CHECKING:
    from macrec_pipeline.config import Task
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
    from macrec_pipeline.recommender.model.history_encoding import ItemCodes

ROUTE_TASKS: tuple[Task, ...] = ("text_to_text", "image_to_image")
_LOSS_BATCH = {"cpu": 512, "cuda": 8192}
# Enough users to know NDCG@10 to about 0.005, few enough that an epoch is not spent on validation.
_MAX_RANKED_USERS = 2000
_BEAM_WIDTH, _CUTOFF = 20, 10


@torch.no_grad()
def validation_losses(
    model: GenerativeRecommender, items: ItemCodes, histories: Sequence[np.ndarray]
) -> dict[str, float]:
    """Return the loss of each trained route in nats per code, and their mean as `validation_loss`.

    Args:
        model: in evaluation mode.
        items: the catalogue's codes on the model's device.
        histories: int64 [T] item indices each, up to and including the validation target.
    """
    windows, device = last_target_windows(histories, model.spec), model.t5.device
    losses = {}
    for task in (task for task in ROUTE_TASKS if task in model.spec.tasks):
        parts = [torch.zeros((), device=device)]
        batches = list(batches_by_length(windows.lengths, batch_size=_LOSS_BATCH[device.type], device=device))
        for chosen in batches[distributed.rank() :: distributed.world_size()]:
            batch = windows.batch(chosen, only_last=True).to(device)
            parts.append(history_loss(model, items, batch, tasks=(task,)))
        # one transfer per route, since each makes a GPU wait
        total = distributed.sum_over_ranks(sum(torch.stack(parts).tolist()))
        losses[f"validation_loss_{task.split('_')[0]}"] = total / len(windows)
    return losses | {"validation_loss": sum(losses.values()) / len(losses)}


def validation_ndcg(model: GenerativeRecommender, items: ItemCodes, histories: Sequence[np.ndarray]) -> float:
    """Return NDCG@10 of the fused routes over a limited number of users, evenly spaced.

    Args:
        model: in evaluation mode.
        items: the catalogue's codes on the model's device.
        histories: int64 [T] item indices each, up to and including the validation target.
    """
    num_users = min(_MAX_RANKED_USERS, len(histories))
    chosen = np.linspace(0, len(histories) - 1, num_users).round().astype(int)
    share = [histories[index] for index in chosen[distributed.rank() :: distributed.world_size()]]
    ranked = MultiRouteRetriever(model, items).rank(
        [history[:-1] for history in share],
        routes=("fused",),
        top_k=min(_CUTOFF, items.num_items),
        beam_width=min(_BEAM_WIDTH, items.num_items),
        batch_size=_LOSS_BATCH[model.t5.device.type],
    )["fused"]
    gains = [
        1 / np.log2(np.flatnonzero(ranking.item_indices == history[-1]) + 2)
        for ranking, history in zip(ranked, share, strict=True)
    ]
    return float(distributed.sum_over_ranks(sum(gain.sum() for gain in gains)) / num_users)
