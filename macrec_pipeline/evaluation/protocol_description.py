"""How the numbers of an evaluation were made, as plain values for `metrics.json` and the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation.flat_histories import FlatHistories
from macrec_pipeline.evaluation.metrics import COVERAGE_DEPTH

LEAVE_ONE_OUT = "leave-one-out: the last item is the test target, the one before it validation, the rest training"


def describe_protocol(
    flat: FlatHistories,
    *,
    depth: int,
    num_items: int,
    cutoffs: list[int],
    config: EvaluationConfig,
    seed: int,
    baselines: Mapping[str, Mapping[str, Any]],
    split: str = LEAVE_ONE_OUT,
) -> dict[str, Any]:
    """The split, the candidates, the settings, and how many test targets repeat an item of their own input.

    Args:
        flat: the test users' histories.
        depth: items a list.
        num_items: the size of the catalogue.
        cutoffs: k of HR@k and NDCG@k, those of `config` and the headline's.
        baselines: system -> what it was set to.
        split: how targets were held out.
    """
    users, items = flat.without_last(1)
    targets_seen = np.zeros(flat.num_users, dtype=bool)
    targets_seen[users[items == flat.targets[users]]] = True
    return {
        "split": split,
        "candidates": "the full catalogue",
        "headline": "seen items allowed",
        "list_length": depth,
        "cutoffs": cutoffs,
        "mrr_depth": depth,
        "coverage_depth": COVERAGE_DEPTH,
        "interval": "percentile bootstrap over test users; coverage: moved to the measured value",
        "bootstrap_samples": config.bootstrap_samples,
        "confidence": config.confidence,
        "seed": seed,
        **{system: dict(settings) for system, settings in baselines.items()},
        "test_targets_seen_before": int(targets_seen.sum()),
    }
