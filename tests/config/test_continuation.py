"""A continued training is as long as what has changed makes it."""

import pytest

from macrec_pipeline.config import ContinuationConfig, RecommenderConfig, SasrecConfig


@pytest.mark.parametrize(("share", "epochs"), [(0.0, 1), (0.01, 20), (0.02, 40), (0.1, 200), (0.7, 200), (1.0, 200)])
def test_the_epochs_follow_the_share_that_changed(share: float, epochs: int) -> None:
    """Ten times the share of the epochs, at least one epoch and at most all."""
    assert ContinuationConfig(epochs_per_change=10).num_epochs(200, changed_share=share) == epochs


def test_only_the_length_and_the_learning_rate_differ() -> None:
    """A continued training has all other settings of one from scratch."""
    continuation = ContinuationConfig(epochs_per_change=5, learning_rate_share=0.5)
    sasrec, recommender = SasrecConfig(max_epochs=40, learning_rate=0.002), RecommenderConfig(num_epochs=100)
    expected_sasrec = sasrec.model_copy(update={"max_epochs": 20, "learning_rate": 0.001})
    expected_recommender = recommender.model_copy(update={"num_epochs": 50, "learning_rate": 0.0005})
    assert continuation.of_sasrec(sasrec, changed_share=0.1) == expected_sasrec
    assert continuation.of_recommender(recommender, changed_share=0.1) == expected_recommender
