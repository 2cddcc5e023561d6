"""How good a model in training is on the validation targets, the last but one item of each history.

Of several ranks each works out its share of the targets, and all get the figures of the whole.
Shapes: U users, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.batching import batch_of, batches_by_length, last_target_rows
from macrec_pipeline.recommender.training.losses import ItemCodes, history_loss
from macrec_pipeline.runtime import distributed

if TYPE_CHECKING:
    from macrec_pipeline.config import Task
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender

ROUTE_TASKS: tuple[Task, ...] = ("text_to_text", "image_to_image")
_LOSS_BATCH = {"cpu": 512, "cuda": 8192}
# Enough that NDCG@10 is known to about 0.005, few enough that an epoch is not spent on it.
_RANKED_USERS = 2000
_BEAM_WIDTH, _CUTOFF = 20, 10


class Validation:
    """The validation targets of one training.

    Args:
        histories: whole histories, int64 [T] item indices each; their last item, the test target, is never looked at.
        items: the catalogue's codes on the model's device.
    """

    def __init__(self, histories: Sequence[np.ndarray], items: ItemCodes) -> None:
        self.histories = [history[:-1] for history in histories]
        self.items = items

    @torch.no_grad()
    def losses(self, model: GenerativeRecommender) -> dict[str, float]:
        """Nats a code of each trained route, and `validation_loss`, their mean; for a model in evaluation mode."""
        rows, device = last_target_rows(self.histories, model.config), model.t5.device
        losses = {}
        for task in (task for task in ROUTE_TASKS if task in model.config.tasks):
            parts = [torch.zeros((), device=device)]
            batches = list(batches_by_length(rows.lengths, batch_size=_LOSS_BATCH[device.type], device=device))
            for chosen in batches[distributed.rank() :: distributed.count()]:
                batch = batch_of(rows, chosen, only_last=True).to(device)
                parts.append(history_loss(model, self.items, batch, tasks=(task,)))
            # one transfer a route: each makes a GPU wait
            summed = distributed.total(sum(torch.stack(parts).tolist()))
            losses[f"validation_loss_{task.split('_')[0]}"] = summed / len(rows)
        return losses | {"validation_loss": sum(losses.values()) / len(losses)}

    def ndcg(self, model: GenerativeRecommender) -> float:
        """NDCG@10 of the fused routes over at most 2,000 users, evenly spaced; for a model in evaluation mode."""
        count = min(_RANKED_USERS, len(self.histories))
        chosen = np.linspace(0, len(self.histories) - 1, count).round().astype(int)
        users = [self.histories[index] for index in chosen[distributed.rank() :: distributed.count()]]
        ranked = MultiRouteRetriever(model, self.items).rank(
            [history[:-1] for history in users],
            routes=("fused",),
            top_k=min(_CUTOFF, self.items.num_items),
            beam_width=min(_BEAM_WIDTH, self.items.num_items),
            batch_size=_LOSS_BATCH[model.t5.device.type],
        )["fused"]
        gains = [
            1 / np.log2(np.flatnonzero(found.item_indices == history[-1]) + 2)
            for found, history in zip(ranked, users, strict=True)
        ]
        return float(distributed.total(sum(gain.sum() for gain in gains)) / count)
