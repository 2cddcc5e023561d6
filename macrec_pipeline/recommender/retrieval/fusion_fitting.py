"""Fitting how the routes are fused, on the validation targets: the next-to-last item of each history.

The input is a trained model, optionally a trained SASRec, and whole histories, whose last item (the test target) is
never read. The output is the rule and the weights that reach the highest NDCG@10 in a small grid. The grid includes a
weight of zero for every route, so the collaborative route counts only if it improves the ranking of the validation
targets. If no validation target had occurred before in its history, the fitted rule never recommends a seen item, which
neither T5 nor SASRec learns by itself.

The epochs of both models were chosen on the same targets. The fitted NDCG therefore compares weights; it is not an
estimate of how good the fused ranking is.

Shapes (docs/notation.md): B batch rows, L levels, N items, T items of a history, W beams.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.retrieval.fusion import COLLABORATIVE, CalibratedFusion, fuse_calibrated
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever, RetrievalBatch
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.config import DecodingConfig
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
    from macrec_pipeline.recommender.retrieval.beam_search import Beams
    from macrec_pipeline.recommender.sasrec.model import Sasrec

FILE_NAME = "fusion.json"
# The grid's weights are multiples of 1 / _STEPS.
_STEPS = 10
# All weights are compared on the same users, so their differences have less noise than a single NDCG@10: this many
# users are enough to resolve a difference of 0.001.
MAX_USERS = 5000
_CUTOFF = 10


def fit_fusion(
    model: GenerativeRecommender,
    histories: Sequence[np.ndarray],
    codes: Mapping[str, np.ndarray],
    *,
    config: DecodingConfig,
    sasrec: Sasrec | None = None,
    progress: Progress = quiet_progress,
) -> CalibratedFusion | None:
    """Choose the rule and the weights that rank the validation targets best.

    Args:
        model: trained, in evaluation mode.
        histories: whole histories, int64 [T] item indices, T >= 3. At most `MAX_USERS` of them, evenly spaced, are
            used.
        codes: int64 [N, L] for "text", "image" or both.
        config: `beam_width`, `top_k` and `batch_size` are used, so the beams are as wide as at serving.
        sasrec: trained, in evaluation mode, on the model's device; None for no collaborative route.
        progress: receives the number of measured users.

    Returns:
        The best rule of the grid, or None if there is only one route. Ties prefer, in this order: less weight for the
        collaborative route, more even weights of the other routes, the mixture, less weight for the first route, and
        leaving out seen items.
    """
    on_device = {route: torch.from_numpy(values).to(model.t5.device) for route, values in codes.items()}
    retriever = MultiRouteRetriever(model, ItemCodes(on_device), sasrec=sasrec)
    if len(retriever.routes) == 1:
        return None
    seen_options = (False, True) if _any_target_was_seen(histories) else (False,)
    grid = [
        dataclasses.replace(rule, recommend_seen=recommend_seen)
        for recommend_seen in seen_options
        for rule in fusion_grid(retriever.routes)
    ]
    gains, num_users = _summed_gains(retriever, histories, grid, config, progress)
    return _best_rule(grid, gains / num_users, num_users=num_users)


def fusion_grid(routes: Sequence[str]) -> tuple[CalibratedFusion, ...]:
    """List the grid: each rule with all weights that sum to one, by rule, then by the first route's weight."""
    steps = [parts for parts in itertools.product(range(_STEPS + 1), repeat=len(routes)) if sum(parts) == _STEPS]
    return tuple(
        CalibratedFusion(rule, dict(zip(routes, (part / _STEPS for part in parts), strict=True)), 0.0, 0)
        for rule in ("mixture", "product")
        for parts in steps
    )


def save_fusion(fusion: CalibratedFusion, folder: Path) -> None:
    """Write `fusion.json` next to the weights that it was fitted for."""
    (folder / FILE_NAME).write_text(json.dumps(dataclasses.asdict(fusion), indent=2, sort_keys=True) + "\n")


def load_fusion(folder: Path) -> CalibratedFusion | None:
    """Read what `save_fusion` wrote; None if there is no such file.

    Raises:
        StorageError: the file does not describe a rule.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    return CalibratedFusion.from_description(json.loads(path.read_text()), where=str(path))


def _any_target_was_seen(histories: Sequence[np.ndarray]) -> bool:
    """Tell whether any validation target occurred before; if none did, leaving out seen items cannot lower NDCG."""
    return any(history[-2] in history[:-2] for history in histories)


def _summed_gains(
    retriever: MultiRouteRetriever,
    histories: Sequence[np.ndarray],
    grid: Sequence[CalibratedFusion],
    config: DecodingConfig,
    progress: Progress,
) -> tuple[np.ndarray, int]:
    """Measure every rule: NDCG@10 summed over users, float64 [len(grid)], and the number of users."""
    chosen = np.linspace(0, len(histories) - 1, min(MAX_USERS, len(histories))).round().astype(int)
    users = [histories[user][:-1] for user in chosen]
    gains, num_done = np.zeros(len(grid)), 0
    for positions in retriever.batches([history[:-1] for history in users], batch_size=config.batch_size):
        in_batch = [users[position] for position in positions]
        targets = torch.tensor([history[-1] for history in in_batch], device=retriever.model.t5.device)
        batch = RetrievalBatch(retriever, [history[:-1] for history in in_batch])
        width = max(config.beam_width, config.top_k)
        candidates = {
            recommend_seen: batch.candidates(retriever.routes, width=width, exclude_seen=not recommend_seen)
            for recommend_seen in dict.fromkeys(rule.recommend_seen for rule in grid)
        }
        gains += [_summed_gain(fuse_calibrated(candidates[rule.recommend_seen], rule), targets) for rule in grid]
        num_done += len(in_batch)
        progress("fusion", num_done, len(users))
    return gains, len(users)


def _summed_gain(fused: Beams, targets: torch.Tensor) -> float:
    """Sum NDCG@10 over the rows; each row has one relevant item, int64 [B]."""
    positions = torch.nonzero(fused.items[:, :_CUTOFF] == targets[:, None])[:, 1]
    return float((1 / torch.log2(positions.double() + 2)).sum())


def _best_rule(grid: Sequence[CalibratedFusion], ndcg: np.ndarray, *, num_users: int) -> CalibratedFusion:
    """Choose the rule with the highest NDCG, float64 [len(grid)], and record the figure in it."""

    def sort_key(index: int) -> tuple[float, float, float]:
        weights = grid[index].weights
        generative = [weight for route, weight in weights.items() if route != COLLABORATIVE]
        # rounding hides differences that only come from the order of a sum, or from tenths not being exact
        spread = round(max(generative) - min(generative), 9)
        return -round(float(ndcg[index]), 12), weights.get(COLLABORATIVE, 0.0), spread

    index = min(range(len(grid)), key=sort_key)
    return dataclasses.replace(grid[index], validation_ndcg=float(ndcg[index]), num_users=num_users)
