"""SASRec as a retrieval route: the log-probability of every item as the next one, and the best of them.

In: a trained SASRec and histories. Out: a distribution over the catalogue a history, exact, without a beam.
Shapes: B rows, N items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.retrieval.fusion import best_items
from macrec_pipeline.recommender.retrieval.ranking import Ranked, as_ranked, seen_items
from macrec_pipeline.recommender.sasrec.model import CELLS_AT_ONCE, next_item_scores
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.sasrec.model import Sasrec


def log_probabilities(
    model: Sasrec, histories: Sequence[np.ndarray], *, forbidden: torch.Tensor | None = None
) -> torch.Tensor:
    """Score the whole catalogue.

    As in a beam search, the distribution is over the items that are allowed.

    Args:
        model: in evaluation mode.
        histories: int64 [T] item indices each, oldest first; one without items gets minus infinity everywhere.
        forbidden: bool [B, N] on the model's device, items that a row must not get; they score minus infinity.

    Returns:
        float32 [B, N] in nats, on the model's device.
    """
    device = model.items.weight.device
    result = torch.full((len(histories), model.num_items), float("-inf"), device=device)
    for rows, scores in next_item_scores(model, histories):
        chosen = torch.from_numpy(rows).to(device)
        if forbidden is not None:
            scores = scores.masked_fill_(forbidden[chosen], float("-inf"))
        result[chosen] = torch.log_softmax(scores, dim=1)
    # a row in which nothing is allowed has no distribution
    return result if forbidden is None else result.masked_fill_(forbidden, float("-inf"))


def rank_catalogue(
    model: Sasrec,
    histories: Sequence[np.ndarray],
    *,
    top_k: int,
    exclude_seen: bool = False,
    progress: Progress = quiet_progress,
) -> list[Ranked]:
    """The most probable next items of every history, by SASRec alone.

    Args:
        histories: int64 [T] item indices each, oldest first.
        top_k: items returned, fewer where fewer are allowed.
        exclude_seen: never return an item of the history, however long ago.

    Returns:
        One `Ranked` a history, in the order given; ties break by item index.
    """
    answers: list[Ranked] = []
    rows = max(1, CELLS_AT_ONCE // model.num_items)
    for begin in range(0, len(histories), rows):
        batch = histories[begin : begin + rows]
        forbidden = seen_items(batch, num_items=model.num_items) if exclude_seen else None
        forbidden = forbidden if forbidden is None else forbidden.to(model.items.weight.device)
        answers += as_ranked(best_items(log_probabilities(model, batch, forbidden=forbidden), width=top_k), top_k)
        progress("collaborative decoding", len(answers), len(histories))
    return answers
