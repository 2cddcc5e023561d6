"""The test users' recommendations, by the fused model and by each route (MACRec section 4.1: leave-one-out)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from macrec_pipeline.runtime.progress import Progress, quiet_progress

if TYPE_CHECKING:
    import numpy as np

    from macrec_pipeline.recommender.bundle import RecommenderBundle
    from macrec_pipeline.recommender.decoding import Ranked

SYSTEMS = {"macrec": "fused", "macrec_text": "text", "macrec_image": "image"}


def predict_test_users(
    bundle: RecommenderBundle,
    histories: Sequence[np.ndarray],
    *,
    top_k: int,
    progress: Progress = quiet_progress,
) -> dict[tuple[str, bool], list[Ranked]]:
    """Rank the whole catalogue for every user, from all items but the last.

    Args:
        histories: whole histories, int64 [T] item indices, at least 2 long; the last item is the test target.
        top_k: items a user and system.

    Returns:
        (system, whether seen items are excluded) -> one `Ranked` a user, for the systems that the bundle has.
    """
    inputs = [history[:-1] for history in histories]
    systems = {system: route for system, route in SYSTEMS.items() if route in ("fused", *bundle.routes)}
    results: dict[tuple[str, bool], list[Ranked]] = {}
    for exclude_seen in (False, True):
        found = bundle.recommend(
            inputs, routes=list(systems.values()), k=top_k, exclude_seen=exclude_seen, progress=progress
        )
        results |= {(system, exclude_seen): found[route] for system, route in systems.items()}
    return results
