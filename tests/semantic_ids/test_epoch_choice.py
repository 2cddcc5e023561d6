"""Which epoch is kept, on a log written by hand."""

import pytest

from macrec_pipeline.semantic_ids.epoch_choice import EpochChoice

LOG = {
    10: {"text": 0.5, "image": 0.5},
    20: {"text": 0.1, "image": 0.4},  # mean 0.25
    30: {"text": 0.3, "image": 0.0},  # mean 0.15
    40: {"text": 0.1, "image": 0.2},  # mean 0.15 too, but the sum of these floats is larger
    50: {"text": 0.3, "image": 0.25},
}


@pytest.mark.parametrize(
    ("criterion", "epochs"),
    [("per_modality", {"text": 40, "image": 30}), ("joint", {"text": 40, "image": 40})],
)
def test_the_lowest_rate_is_kept_and_the_later_of_equals(criterion: str, epochs: dict[str, int]) -> None:
    """Per modality each has its own epoch; jointly both have the one of the lowest mean."""
    choice = EpochChoice(criterion)
    kept = {}
    for epoch, rates in LOG.items():
        kept |= dict.fromkeys(choice.offer(epoch, rates), epoch)
    assert choice.epochs == kept == epochs
