"""Trainings that are made on several ranks and alone; `python -m tests.torchrun.as_ranks FOLDER` is a rank."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.runtime import distributed
from macrec_pipeline.semantic_ids import FittedQuantizer
from tests.recommender.cycle import CPU, SMALL, codes, cyclic_histories
from tests.semantic_ids.two_modalities import collaborative_vectors, fitted, tiny

BRIEF = SMALL | {"dropout": 0.0, "num_epochs": 2, "learning_rate": 1e-3}
ITEM_CAUSAL = BRIEF | {"ema_decay": 0.9}


def _recommender(settings: dict[str, Any]) -> FittedRecommender:
    return fit_recommender(
        cyclic_histories(15),
        codes(1),
        codes(2),
        codebook_size=4,
        config=RecommenderConfig.model_validate(settings),
        seed=5,
        device=CPU,
    )


def _quantizer(**changes: Any) -> FittedQuantizer:
    return fitted(tiny(batch_size=35, num_epochs=3, evaluate_every=1, **changes), collaborative=collaborative_vectors())


# 15 users and 35 items a batch are not shared out evenly; the last one's steps have rows for one rank alone
TRAININGS: dict[str, Callable[[], FittedRecommender | FittedQuantizer]] = {
    "exact": partial(_recommender, BRIEF | {"encoding": "exact", "early_stopping": "validation_ndcg"}),
    "item_causal": partial(_recommender, ITEM_CAUSAL),
    "a row a step": partial(_recommender, BRIEF | {"tasks": ("text_to_text",), "batch_size": 1, "num_epochs": 1}),
    "cross_modal": partial(_quantizer, collaborative_contrast_weight=0.1),
    "as_released": partial(_quantizer, variant="as_released"),
    "single_modality": partial(_quantizer, method="single_modality", revive_dead_codes=True, revive_every=1),
}


def main(folder: Path) -> None:
    """Every rank writes what it has got, rank 0 as anybody would."""
    torch.use_deterministic_algorithms(True)
    with distributed.joined(folder):
        for name, train in TRAININGS.items():
            own = folder / name / str(distributed.rank())
            own.mkdir(parents=True)
            train().save(own)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
