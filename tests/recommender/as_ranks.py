"""Fits the recommender as a rank of several and writes what rank 0 got; started by `torchrun -m`, see `two_ranks.py`.

`python -m torch.distributed.run ... -m tests.recommender.as_ranks FOLDER`
"""

import sys
from pathlib import Path
from typing import Any

import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.runtime import ranks
from tests.recommender.cycle import CPU, SMALL, codes, cyclic_histories

FITS: dict[str, dict[str, Any]] = {
    "exact": {"encoding": "exact", "early_stopping": "validation_ndcg"},
    "item_causal": {"ema_decay": 0.9},
    "one task": {"tasks": ("text_to_text",), "batch_size": 1},
}


def fit(name: str) -> FittedRecommender:
    """A fit without dropout, by its name."""
    config = RecommenderConfig.model_validate(SMALL | {"dropout": 0.0, "num_epochs": 2, "learning_rate": 1e-3} | FITS[name])
    return fit_recommender(cyclic_histories(), codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU)


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    with ranks.joined():
        for name in FITS:
            fitted = fit(name)
            folder = Path(sys.argv[1], name, str(ranks.rank()))
            folder.mkdir(parents=True)
            fitted.save(folder)
