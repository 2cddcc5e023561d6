"""The training loop's common part: a step that is not finite stops, and the schedule's shape by hand."""

import pytest
import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.runtime.training import cosine_schedule, guarded_step


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    """The error names the place, and the weights stay those of the last good step."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(TrainingError, match="here, step 3: the loss is inf"):
        guarded_step(weight.sum() * float("inf"), optimizer, [weight], where="here, step 3")
    assert weight.item() == 1.0


def test_the_schedule_by_hand() -> None:
    """Two steps of warm-up, then half a cosine: full at its start, half in the middle, towards zero at the end."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = cosine_schedule(optimizer, num_steps=10, warmup_share=0.2)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.5)
    assert 0 < rates[9] < 0.05
