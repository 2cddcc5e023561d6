"""Trainings that run on two ranks and alone; `python -m tests.torchrun.two_rank_trainings FOLDER` is one rank."""

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
from tests.recommender.cyclic_catalogue import CPU, SMALL, codes, cyclic_histories
from tests.semantic_ids.two_modalities import collaborative_vectors, fitted, tiny

SHORT = SMALL | {"dropout": 0.0, "num_epochs": 2, "learning_rate": 1e-3}
ITEM_CAUSAL = SHORT | {"ema_decay": 0.9}


def _fit_recommender(settings: dict[str, Any]) -> FittedRecommender:
    return fit_recommender(
        cyclic_histories(15),
        codes(1),
        codes(2),
        codebook_size=4,
        config=RecommenderConfig.model_validate(settings),
        seed=5,
        device=CPU,
    )


def _fit_quantizer(**settings: Any) -> FittedQuantizer:
    config = tiny(batch_size=35, num_epochs=3, evaluate_every=1, **settings)
    return fitted(config, collaborative=collaborative_vectors())


# Neither 15 users nor 35 items per batch divide evenly between two ranks. In "one_row_per_step" only one rank has rows.
TRAININGS: dict[str, Callable[[], FittedRecommender | FittedQuantizer]] = {
    "exact": partial(_fit_recommender, SHORT | {"encoding": "exact", "early_stopping": "validation_ndcg"}),
    "item_causal": partial(_fit_recommender, ITEM_CAUSAL),
    "one_row_per_step": partial(
        _fit_recommender, SHORT | {"tasks": ("text_to_text",), "batch_size": 1, "num_epochs": 1}
    ),
    "cross_modal": partial(_fit_quantizer, collaborative_contrast_weight=0.1),
    "as_released": partial(_fit_quantizer, variant="as_released"),
    "single_modality": partial(_fit_quantizer, method="single_modality", revive_dead_codes=True, revive_every=1),
}


def main(folder: Path) -> None:
    """Let this rank save every model that it has trained in `<training>/<rank>`."""
    torch.use_deterministic_algorithms(True)
    with distributed.process_group(folder):
        for name, fit in TRAININGS.items():
            rank_folder = folder / name / str(distributed.rank())
            rank_folder.mkdir(parents=True)
            fit().save(rank_folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
