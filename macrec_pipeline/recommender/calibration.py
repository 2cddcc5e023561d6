"""Fitting how the two routes are fused, on the validation targets: the last but one item of each history.

In: a trained model and whole histories, of which the last item, the test target, is never looked at. Out: the rule and
the weight with the highest NDCG@10 among a small grid. Shapes: B rows, W beams.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender.decoding import Decoder
from macrec_pipeline.recommender.fusion import CalibratedFusion, fuse_calibrated
from macrec_pipeline.recommender.objective import ItemCodes
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.config import DecodingConfig
    from macrec_pipeline.recommender.beam_search import Beams
    from macrec_pipeline.recommender.model import GenerativeRecommender

FILE_NAME = "fusion.json"
WEIGHTS = tuple(step / 10 for step in range(11))
GRID = tuple(CalibratedFusion(rule, weight, 0.0, 0) for rule in ("mixture", "product") for weight in WEIGHTS)
# Two of the grid's figures differ by less noise than one has: this many users tell a thousandth of NDCG@10.
MAX_USERS = 5000
_CUTOFF = 10


def fit_fusion(
    model: GenerativeRecommender,
    histories: Sequence[np.ndarray],
    codes: Mapping[str, np.ndarray],
    *,
    config: DecodingConfig,
    progress: Progress = quiet_progress,
) -> CalibratedFusion | None:
    """Choose the rule and the weight that rank the validation targets best.

    Args:
        model: trained, in evaluation mode.
        histories: whole histories, int64 [T] item indices, at least 3 long; at most 5,000, evenly spaced, are used.
        codes: "text" and "image" -> int64 [N, L].
        config: the beams are as wide as they are at serving.

    Returns:
        The best of the grid by NDCG@10, seen items allowed; None for a model of one route. Equal figures go to the more
        even weight, then to the mixture, then to the lower weight.
    """
    on_device = {route: torch.from_numpy(codes[route]).to(model.t5.device) for route in ("text", "image")}
    decoder = Decoder(model, ItemCodes(on_device))
    if len(decoder.routes) == 1:
        return None
    gains, num_users = _measure(decoder, histories, config, progress)
    return _best(gains / num_users, num_users=num_users)


def save_fusion(fusion: CalibratedFusion, folder: Path) -> None:
    """Write `fusion.json` beside the weights that it was fitted for."""
    (folder / FILE_NAME).write_text(json.dumps(dataclasses.asdict(fusion), indent=2, sort_keys=True) + "\n")


def load_fusion(folder: Path) -> CalibratedFusion | None:
    """Read what `save_fusion` wrote, None if there is none; raises `StorageError` if it is something else."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    return CalibratedFusion.from_description(json.loads(path.read_text()), where=str(path))


def described_fusion(description: Mapping[str, Any], *, num_routes: int, where: str) -> CalibratedFusion | None:
    """The calibrated rule that a bundle's description asks for and holds; None is the published rule.

    Raises:
        StorageError: calibrated fusion is asked for, but was never fitted; names `where` it was looked for.
    """
    if description["decoding"].get("fusion", "published") == "published" or num_routes == 1:
        return None
    if "fusion" not in description:
        raise StorageError(
            f"{where} asks for calibrated fusion, but has no fitted weights. "
            "Materialize `recommender` again, or set decoding.fusion to published."
        )
    return CalibratedFusion.from_description(description["fusion"], where=f"fusion in {where}")


def _measure(
    decoder: Decoder, histories: Sequence[np.ndarray], config: DecodingConfig, progress: Progress
) -> tuple[np.ndarray, int]:
    """Each candidate's NDCG@10 summed over users, float64 [len(GRID)], and the number of users."""
    chosen = np.linspace(0, len(histories) - 1, min(MAX_USERS, len(histories))).round().astype(int)
    users = sorted((histories[user][:-1] for user in chosen), key=len)  # like lengths share a batch
    width = max(config.beam_width, config.top_k)
    gains = np.zeros(len(GRID))
    for begin in range(0, len(users), config.batch_size):
        batch = users[begin : begin + config.batch_size]
        inputs = [history[:-1] for history in batch]
        targets = torch.tensor([history[-1] for history in batch], device=decoder.model.t5.device)
        text, image = (decoder.search(inputs, route, width) for route in ("text", "image"))
        for index, candidate in enumerate(GRID):
            fused = fuse_calibrated(text, image, candidate, num_levels=decoder.model.vocabulary.num_levels)
            gains[index] += _summed_gain(fused, targets)
        progress("fusion", begin + len(batch), len(users))
    return gains, len(users)


def _summed_gain(fused: Beams, targets: torch.Tensor) -> float:
    """NDCG@10 summed over the rows, each of which has one relevant item."""
    places = torch.nonzero(fused.items[:, :_CUTOFF] == targets[:, None])[:, 1]
    return float((1 / torch.log2(places.double() + 2)).sum())


def _best(ndcg: np.ndarray, *, num_users: int) -> CalibratedFusion:
    """Figures of the grid, float64 [len(GRID)] -> the one to use."""

    def merit(index: int) -> tuple[float, float]:
        # summing equal gains in another order is no difference
        return -round(float(ndcg[index]), 12), abs(GRID[index].text_weight - 0.5)

    index = min(range(len(GRID)), key=merit)
    return dataclasses.replace(GRID[index], validation_ndcg=float(ndcg[index]), num_users=num_users)
