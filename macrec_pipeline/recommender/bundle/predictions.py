"""The test users' recommendations, by the fused model and by each route (MACRec section 4.1: leave-one-out)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from macrec_pipeline.recommender.retrieval.exact_scoring import agreement
from macrec_pipeline.recommender.retrieval.fusion import COLLABORATIVE
from macrec_pipeline.recommender.retrieval.ranking import Ranked
from macrec_pipeline.recommender.retrieval.sasrec_route import rank_catalogue
from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    from macrec_pipeline.recommender.bundle.bundle import RecommenderBundle
    from macrec_pipeline.recommender.sasrec.model import Sasrec

# Exact scores cost time by users times items: these bound it to a small part of what the predictions take.
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
        histories: whole histories, int64 [T] item indices, at least 2 long; the last item is the test target.
        top_k: items a user and system.
        sasrec: in evaluation mode; ranks by itself as a system of its own. None for no such system.

    Returns:
        (system, whether seen items are excluded) -> one `Ranked` a user, for the systems that the bundle has, and
        "sasrec".
    """
    inputs = [history[:-1] for history in histories]
    alone = [] if len(bundle.routes) == 1 else bundle.routes  # a single route is what is fused
    systems = {system: route for system, route in SYSTEMS.items() if route in ("fused", *alone)}
    results: dict[tuple[str, bool], list[Ranked]] = {}
    for exclude_seen in (False, True):
        found = bundle.recommend(
            inputs, routes=list(systems.values()), k=top_k, exclude_seen=exclude_seen, progress=progress
        )
        results |= {(system, exclude_seen): found[route] for system, route in systems.items()}
        if sasrec is not None:
            results[SASREC, exclude_seen] = rank_catalogue(
                sasrec, inputs, top_k=top_k, exclude_seen=exclude_seen, progress=progress
            )
    return results


def beam_agreement(bundle: RecommenderBundle, histories: Sequence[np.ndarray]) -> dict[str, dict[str, float]]:
    """How often beam search finds what scoring the whole catalogue finds, over some users, evenly spaced.

    256 users at most, fewer if the catalogue is large.

    Args:
        bundle: with its own beam width, which a longer list widens here as it does in `predict_test_users`.
        histories: whole histories; the last item is the test target and not read.

    Returns:
        For each route `same_top_10`, the share of users whose ten best items are the same set, `overlap_10`, the mean
        share of the ten that are found, and `users`, how many these are of; empty for more than 20,000 items. The
        collaborative route has no beam and is left out.
    """
    if bundle.num_items > EXACT_ITEMS:
        return {}
    num_users = min(EXACT_USERS, EXACT_PAIRS // bundle.num_items, len(histories))
    chosen = np.linspace(0, len(histories) - 1, num_users).round().astype(int)
    inputs = sorted((histories[user][:-1] for user in chosen), key=len)  # like lengths share a batch
    cutoff = min(EXACT_CUTOFF, bundle.num_items)
    measured = {}
    for route in (route for route in bundle.routes if route != COLLABORATIVE):
        found = bundle.recommend(inputs, routes=(route,), k=max(cutoff, bundle.description["decoding"]["top_k"]))[route]
        exact: list[Ranked] = []
        for begin in range(0, len(inputs), _EXACT_BATCH):
            scores = bundle.exact_scores(inputs[begin : begin + _EXACT_BATCH], route=route)
            best = scores.double().cpu().topk(cutoff)
            exact += [Ranked(*lists) for lists in zip(best.indices.numpy(), best.values.numpy(), strict=True)]
        share = agreement(found, exact, cutoff=cutoff)
        measured[route] = {"same_top_10": share.same_set, "overlap_10": share.overlap, "users": float(num_users)}
    return measured
