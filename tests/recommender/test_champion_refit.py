"""How the refit of a champion is planned."""

from typing import Any

import pytest

from macrec_pipeline.config import PipelineConfig
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender import plan_champion_refit


@pytest.fixture
def config() -> PipelineConfig:
    return resolve_config(
        "demo",
        {
            "recommender": {"num_epochs": 20, "learning_rate": 0.01},
            "sasrec": {"max_epochs": 40, "learning_rate": 0.002},
            "refit": {"epoch_share": 0.25, "learning_rate_share": 0.5},
            "continuation": {"epochs_per_change": 10},
        },
    )


@pytest.mark.parametrize(
    ("num_training", "num_new_items", "epochs", "sasrec_epochs"),
    [
        (1000, 0, 5, 10),  # nothing is new: as in any refit
        (900, 0, 5, 10),  # a log that has become shorter
        (1020, 0, 5, 10),  # 2% are new, which would require 4 epochs
        (1250, 0, 20, 40),  # 20% are new, which requires all epochs
        (1000, 5, 10, 20),  # 5% of the items are new
    ],
)
def test_epochs_follow_what_is_new(
    config: PipelineConfig, num_training: int, num_new_items: int, epochs: int, sasrec_epochs: int
) -> None:
    """Sizes are the champion's; its own epochs and learning rate, those of a continued training, play no part."""
    trained = config.recommender.model_dump(mode="json") | {"d_model": 24, "num_epochs": 1, "learning_rate": 1e-9}
    sasrec = config.sasrec.model_dump(mode="json") | {"d_model": 12, "max_epochs": 1, "learning_rate": 1e-9}
    description: dict[str, Any] = {"recommender": trained, "sasrec": {"config": sasrec}}
    counts = {"num_learned": 1000, "num_training": num_training, "num_new_items": num_new_items, "num_items": 100}
    plan = plan_champion_refit(description, config, **counts)
    assert plan.sasrec is not None
    assert (plan.recommender.d_model, plan.sasrec.d_model) == (24, 12)
    assert (plan.recommender.num_epochs, plan.sasrec.max_epochs) == (epochs, sasrec_epochs)
    assert (plan.recommender.learning_rate, plan.sasrec.learning_rate) == (0.005, 0.001)
    assert plan_champion_refit({"recommender": trained}, config, **counts).sasrec is None
