"""Fitting how the routes are fused, on the validation targets: the last but one item of each history.

In: a trained model, perhaps a trained SASRec, and whole histories, of which the last item, the test target, is never
looked at. Out: the rule and the weights with the highest NDCG@10 among a small grid. Every route can get no weight at
all, so that the collaborative one counts only if it ranks the validation targets better. Where no target was taken
before, none is ever recommended again: neither T5 nor SASRec learns that by itself. Both models chose their epoch by
these targets, too: the figure is no measure of how good the fused ranking is, only of which weights are best.
Runs with torch and numpy alone. Shapes: B rows, W beams.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.retrieval.fusion import COLLABORATIVE, CalibratedFusion, fuse_candidates
from macrec_pipeline.recommender.retrieval.retriever import MultiRouteRetriever
from macrec_pipeline.recommender.training.losses import ItemCodes
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.config import DecodingConfig
    from macrec_pipeline.recommender.model.generative_recommender import GenerativeRecommender
    from macrec_pipeline.recommender.retrieval.beam_search import Beams
    from macrec_pipeline.recommender.sasrec.model import Sasrec

FILE_NAME = "fusion.json"
# Weights are multiples of a tenth.
_STEPS = 10
# Two of the grid's figures differ by less noise than one has: this many users tell a thousandth of NDCG@10.
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
        histories: whole histories, int64 [T] item indices, at least 3 long; at most 5,000, evenly spaced, are used.
        codes: "text" and "image", those that the catalogue has -> int64 [N, L].
        config: the beams are as wide as they are at serving; `beam_width`, `top_k` and `batch_size` are read.
        sasrec: the collaborative route, trained, in evaluation mode, on the model's device; None for none.

    Returns:
        The best of the grid by NDCG@10; None for a single route. Equal figures go to less weight of the collaborative
        route, then to more even weights of the others, then to the mixture, then to the lower weight of the first
        route, then to leaving seen items out.
    """
    on_device = {route: torch.from_numpy(values).to(model.t5.device) for route, values in codes.items()}
    decoder = MultiRouteRetriever(model, ItemCodes(on_device), collaborative=sasrec)
    if len(decoder.routes) == 1:
        return None
    ways = (False, True) if _some_repeat(histories) else (False,)
    grid = [dataclasses.replace(one, recommend_seen=way) for way in ways for one in fusion_grid(decoder.routes)]
    gains, num_users = _measure(decoder, histories, grid, config, progress)
    return _best(grid, gains / num_users, num_users=num_users)


def fusion_grid(routes: Sequence[str]) -> tuple[CalibratedFusion, ...]:
    """Both rules with all weights in steps of a tenth that sum to one, by rule, then by the first route's weight."""
    shares = [parts for parts in itertools.product(range(_STEPS + 1), repeat=len(routes)) if sum(parts) == _STEPS]
    return tuple(
        CalibratedFusion(rule, dict(zip(routes, (part / _STEPS for part in parts), strict=True)), 0.0, 0)
        for rule in ("mixture", "product")
        for parts in shares
    )


def save_fusion(fusion: CalibratedFusion, folder: Path) -> None:
    """Write `fusion.json` beside the weights that it was fitted for."""
    (folder / FILE_NAME).write_text(json.dumps(dataclasses.asdict(fusion), indent=2, sort_keys=True) + "\n")


def load_fusion(folder: Path) -> CalibratedFusion | None:
    """Read what `save_fusion` wrote, None if there is none; raises `StorageError` if it is something else."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    return CalibratedFusion.from_description(json.loads(path.read_text()), where=str(path))


def described_fusion(description: Mapping[str, Any], *, routes: Sequence[str], where: str) -> CalibratedFusion | None:
    """The calibrated rule for `routes` that a bundle's description asks for and holds; None is the published rule.

    Raises:
        StorageError: calibrated fusion is asked for, but was never fitted, or for other routes; names `where` it was
            looked for.
    """
    if description["decoding"].get("fusion", "published") == "published" or len(routes) == 1:
        return None
    if "fusion" not in description:
        raise StorageError(
            f"{where} asks for calibrated fusion, but has no fitted weights. "
            "Materialize `recommender` again, or set decoding.fusion to published."
        )
    fusion = CalibratedFusion.from_description(description["fusion"], where=f"fusion in {where}")
    weighed, existing = (", ".join(sorted(names)) for names in (fusion.weights, routes))
    if weighed != existing:
        raise StorageError(
            f"fusion in {where} weighs {weighed}, but the routes are {existing}. Materialize `recommender` again."
        )
    return fusion


def _some_repeat(histories: Sequence[np.ndarray]) -> bool:
    """Whether any validation target was taken before; if not, leaving out what was can only raise the figures."""
    return any(history[-2] in history[:-2] for history in histories)


def _measure(
    decoder: MultiRouteRetriever,
    histories: Sequence[np.ndarray],
    grid: Sequence[CalibratedFusion],
    config: DecodingConfig,
    progress: Progress,
) -> tuple[np.ndarray, int]:
    """Each candidate's NDCG@10 summed over users, float64 [len(grid)], and the number of users."""
    chosen = np.linspace(0, len(histories) - 1, min(MAX_USERS, len(histories))).round().astype(int)
    users = [histories[user][:-1] for user in chosen]
    gains, done = np.zeros(len(grid)), 0
    for places in decoder.batches([history[:-1] for history in users], batch_size=config.batch_size):
        batch = [users[place] for place in places]
        targets = torch.tensor([history[-1] for history in batch], device=decoder.model.t5.device)
        reading, width = decoder.read([history[:-1] for history in batch]), max(config.beam_width, config.top_k)
        found = {
            way: reading.candidates(decoder.routes, width=width, exclude_seen=not way)
            for way in dict.fromkeys(candidate.recommend_seen for candidate in grid)
        }
        gains += [_summed_gain(fuse_candidates(found[one.recommend_seen], one), targets) for one in grid]
        done += len(batch)
        progress("fusion", done, len(users))
    return gains, len(users)


def _summed_gain(fused: Beams, targets: torch.Tensor) -> float:
    """NDCG@10 summed over the rows, each of which has one relevant item."""
    places = torch.nonzero(fused.items[:, :_CUTOFF] == targets[:, None])[:, 1]
    return float((1 / torch.log2(places.double() + 2)).sum())


def _best(grid: Sequence[CalibratedFusion], ndcg: np.ndarray, *, num_users: int) -> CalibratedFusion:
    """Figures of the grid, float64 [len(grid)] -> the one to use."""

    def merit(index: int) -> tuple[float, float, float]:
        weights = grid[index].weights
        generative = [share for route, share in weights.items() if route != COLLABORATIVE]
        # summing equal gains in another order is no difference, nor is a tenth that is not quite one
        spread = round(max(generative) - min(generative), 9)
        return -round(float(ndcg[index]), 12), weights.get(COLLABORATIVE, 0.0), spread

    index = min(range(len(grid)), key=merit)
    return dataclasses.replace(grid[index], validation_ndcg=float(ndcg[index]), num_users=num_users)
