"""The validation metrics of a recommender that has learned the data, with right and with wrong targets."""

import numpy as np
import pytest
import torch

from macrec_pipeline.recommender import FittedRecommender
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.training.validation import validation_losses, validation_ndcg
from tests.recommender.cyclic_catalogue import codes, cyclic_histories

ITEMS = ItemCodes({"text": torch.from_numpy(codes(1)), "image": torch.from_numpy(codes(2))})


def test_ndcg_is_near_one_for_known_targets_and_near_zero_for_others(trained_model: FittedRecommender) -> None:
    """The other targets are items that never follow."""
    histories = [history[:-1] for history in cyclic_histories()]
    assert validation_ndcg(trained_model.model, ITEMS, histories) > 0.9
    wrong = [np.concatenate([history[:-1], [(history[-1] + 15) % 30]]) for history in histories]
    assert validation_ndcg(trained_model.model, ITEMS, wrong) < 0.3


def test_the_validation_loss_is_the_mean_of_the_routes(trained_model: FittedRecommender) -> None:
    """The validation loss is the mean of the routes' losses, and all three equal those logged for the kept epoch."""
    losses = validation_losses(trained_model.model, ITEMS, [history[:-1] for history in cyclic_histories()])
    mean = (losses["validation_loss_text"] + losses["validation_loss_image"]) / 2
    assert losses["validation_loss"] == pytest.approx(mean, rel=1e-12)
    row = trained_model.log[trained_model.best_epoch - 1]
    assert {name: row[name] for name in losses} == pytest.approx(losses, rel=1e-6)
