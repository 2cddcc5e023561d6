"""Offline evaluation of a bundle: the test users' recommendations, and how close beam search is to exact scoring.

`predict_test_users` ranks the catalogue for every user from all items but the last, which is the test target (MACRec
section 4.1, leave-one-out), by the fused routes and by each route alone. `beam_agreement` compares beam search with
exact scores of the whole catalogue, for a sample of these users.

Shapes (docs/notation.md): T items of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from macrec_pipeline.recommender.retrieval.diversity import DiversityOptions
from macrec_pipeline.recommender.retrieval.fusion import COLLABORATIVE
from macrec_pipeline.recommender.retrieval.retriever import Ranked, rank_catalogue
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle
    from macrec_pipeline.recommender.sasrec.model import Sasrec

# The cost of exact scores grows with users times items. These limits keep it small next to that of the predictions.
EXACT_ITEMS, EXACT_USERS, EXACT_PAIRS = 20_000, 256, 400_000
EXACT_CUTOFF = 10
_EXACT_BATCH = 32

SYSTEMS = {"macrec": "fused", "macrec_text": "text", "macrec_image": "image"}
SASREC = "sasrec"


def predict_test_users(
    bundle: RecommenderBundle,
    histories: Sequence[np.ndarray],
    *,
    top_k: int,
    sasrec: Sasrec | None = None,
    progress: Progress = quiet_progress,
) -> dict[tuple[str, bool], list[Ranked]]:
    """Rank the whole catalogue for every user, from all items but the last.

    Args:
        bundle: the model to evaluate.
        histories: whole histories, int64 [T] item indices, T >= 2; the last item is the test target.
        top_k: number of items per user and system.
        sasrec: in evaluation mode, evaluated as a system of its own; None for no such system.
        progress: receives the number of decoded histories of each pass.

    Returns:
        One `Ranked` per user for each pair of a system and whether seen items are excluded. The systems are those of
        `SYSTEMS` that the bundle has, and "sasrec".
    """
    inputs = [history[:-1] for history in histories]
    single_routes = [] if len(bundle.routes) == 1 else bundle.routes  # a single route equals "fused"
    systems = {system: route for system, route in SYSTEMS.items() if route in ("fused", *single_routes)}
    results: dict[tuple[str, bool], list[Ranked]] = {}
    for exclude_seen in (False, True):
        ranked = bundle.recommend(
            inputs, routes=list(systems.values()), k=top_k, exclude_seen=exclude_seen, progress=progress
        )
        results |= {(system, exclude_seen): ranked[route] for system, route in systems.items()}
        if sasrec is not None:
            results[SASREC, exclude_seen] = rank_catalogue(
                sasrec, inputs, top_k=top_k, exclude_seen=exclude_seen, listed=bundle.listed, progress=progress
            )
    return results


def beam_agreement(bundle: RecommenderBundle, histories: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """Measure how often beam search finds the items that exact scoring of the whole catalogue finds.

    At most `EXACT_USERS` users are measured, evenly spaced; fewer if the catalogue is large.

    Args:
        bundle: uses its own beam width, raised to `top_k` as in `predict_test_users`.
        histories: whole histories; the last item is the test target and is not read.

    Returns:
        For each generative route: `same_top_10`, the share of users whose ten best items are the same set;
        `overlap_10`, the mean share of the exact ten best items that beam search finds; and `users`, the number of
        measured users. Empty if the catalogue has more than `EXACT_ITEMS` items. The collaborative route has no beam.
    """
    if bundle.num_items > EXACT_ITEMS:
        return {}
    num_users = min(EXACT_USERS, EXACT_PAIRS // bundle.num_items, len(histories))
    chosen = np.linspace(0, len(histories) - 1, num_users).round().astype(int)
    inputs = sorted((histories[user][:-1] for user in chosen), key=len)  # batches of similar length need less padding
    cutoff = min(EXACT_CUTOFF, bundle.num_items if bundle.listed is None else int(bundle.listed.sum()))
    results = {}
    for route in (route for route in bundle.routes if route != COLLABORATIVE):
        k = max(cutoff, bundle.description["decoding"]["top_k"])
        by_beam = bundle.recommend(inputs, routes=(route,), k=k, diversity=DiversityOptions())[route]
        exact: list[Ranked] = []
        for begin in range(0, len(inputs), _EXACT_BATCH):
            scores = bundle.exact_scores(inputs[begin : begin + _EXACT_BATCH], route=route)
            scores = scores.double().cpu()
            if bundle.listed is not None:
                scores = scores.masked_fill(~torch.from_numpy(bundle.listed), float("-inf"))
            best = scores.topk(cutoff)
            exact += [Ranked(*row) for row in zip(best.indices.numpy(), best.values.numpy(), strict=True)]
        shares = agreement(by_beam, exact, cutoff=cutoff)
        results[route] = {"same_top_10": shares.same_set, "overlap_10": shares.overlap, "users": float(num_users)}
    return results


@dataclass(frozen=True)
class Agreement:
    """How much of what exact scoring finds a beam search finds as well.

    Attributes:
        same_set: share of histories for which both find the same set of items.
        overlap: mean share of the exact best items that beam search finds.
    """

    same_set: float
    overlap: float


def agreement(by_beam: Sequence[Ranked], exact: Sequence[Ranked], *, cutoff: int = EXACT_CUTOFF) -> Agreement:
    """Compare the first `cutoff` items of each history's two lists, in any order.

    Args:
        by_beam, exact: one list per history, of at least one history; no exact list is empty.
        cutoff: length at which the lists are cut.
    """
    overlaps = []
    num_same = 0
    for beam_ranked, exact_ranked in zip(by_beam, exact, strict=True):
        found, expected = (set(ranked.item_indices[:cutoff].tolist()) for ranked in (beam_ranked, exact_ranked))
        num_same += found == expected
        overlaps.append(len(found & expected) / len(expected))
    return Agreement(num_same / len(overlaps), sum(overlaps) / len(overlaps))
