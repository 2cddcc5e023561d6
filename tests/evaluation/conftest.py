"""A small evaluation that several test modules look at: 40 users, 30 items, lists drawn at random."""

import numpy as np
import polars as pl
import pytest

from macrec_pipeline.config import EvaluationConfig, SasrecConfig
from macrec_pipeline.evaluation import Evaluation, evaluate
from macrec_pipeline.schemas import HISTORIES, PREDICTIONS

NUM_USERS, NUM_ITEMS, LIST_LENGTH = 40, 30, 20


@pytest.fixture(scope="session")
def small_config() -> EvaluationConfig:
    return EvaluationConfig(bootstrap_samples=50, sasrec=SasrecConfig(d_model=8, max_epochs=2))


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
        },
        schema=HISTORIES.columns,
    )


@pytest.fixture(scope="session")
def predictions(histories: pl.DataFrame) -> pl.DataFrame:
    rng = np.random.default_rng(1)
    rows = []
    for system in ("macrec", "macrec_image", "macrec_text"):
        for exclude_seen in (False, True):
            for user, items in enumerate(histories["item_indices"].to_list()):
                order = [int(item) for item in rng.permutation(NUM_ITEMS)]
                shown = [item for item in order if not (exclude_seen and item in items[:-1])][:LIST_LENGTH]
                rows.append((system, exclude_seen, user, shown, [-float(place) for place in range(len(shown))]))
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
    )
