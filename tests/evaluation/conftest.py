"""A small evaluation shared by several test modules: 40 users, 30 items and random recommendation lists."""

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import EvaluationConfig
from macrec_pipeline.evaluation import Evaluation, evaluate
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS

NUM_USERS, NUM_ITEMS, LIST_LENGTH = 40, 30, 20
SASREC_SETTINGS = {
    "d_model": 8,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.2,
    "max_length": 50,
    "learning_rate": 0.003,
    "weight_decay": 0.01,
    "batch_size": 1024,
    "max_epochs": 2,
    "patience": 5,
    "num_epochs": 2,
    "best_epoch": 1,
    "validation_ndcg_10": 0.125,
}


@pytest.fixture(scope="session")
def small_config() -> EvaluationConfig:
    return EvaluationConfig(bootstrap_samples=50)


@pytest.fixture(scope="session")
def histories() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    items = [rng.permutation(NUM_ITEMS)[: rng.integers(4, 9)].tolist() for _ in range(NUM_USERS)]
    return pl.DataFrame(
        {
            "user_index": range(NUM_USERS),
            "user_id": [f"u{user:02d}" for user in range(NUM_USERS)],
            "item_indices": items,
            "timestamps": [list(range(len(row))) for row in items],
            "tested": [True] * NUM_USERS,
            "num_at_target_time": [1] * NUM_USERS,
        },
        schema=HISTORIES.columns,
    )


@pytest.fixture(scope="session")
def predictions(histories: pl.DataFrame) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for system in ("macrec", "macrec_image", "macrec_text", "sasrec"):
        for exclude_seen in (False, True):
            for user, items in enumerate(histories["item_indices"].to_list()):
                order = [int(item) for item in rng.permutation(NUM_ITEMS)]
                allowed = [item for item in order if not (exclude_seen and item in items[:-1])][:LIST_LENGTH]
                rows.append((system, exclude_seen, user, allowed, [-float(place) for place in range(len(allowed))]))
    return pl.DataFrame(rows, schema=PREDICTIONS.columns, orient="row")


@pytest.fixture(scope="session")
def evaluation(histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig) -> Evaluation:
    imputed = np.arange(NUM_ITEMS) % 5 == 0
    return evaluate(
        histories,
        predictions,
        num_items=NUM_ITEMS,
        config=small_config,
        seed=3,
        items_imputed={"image": imputed, "text": np.zeros(NUM_ITEMS, dtype=bool)},
        sasrec_settings=SASREC_SETTINGS,
        codes={"text": np.stack([np.arange(NUM_ITEMS) // 6, np.arange(NUM_ITEMS) % 6], axis=1)},
    )
