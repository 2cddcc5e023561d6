"""The training loop's common part: a step that is not finite stops, the schedule's shape by hand, averaged weights."""

import pytest
import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.runtime.training import (
    MovingAverage,
    cosine_schedule,
    evaluated_weights,
    guarded_step,
    warn_of_slow_products,
)


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    """The error names the place, and the weights stay those of the last good step."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(TrainingError, match="here, step 3: the loss is inf"):
        guarded_step([weight.sum() * float("inf")], optimizer, [weight], where="here, step 3")
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


def test_a_moving_average_by_hand() -> None:
    """The first step keeps (1 + 1) / (10 + 1) of the old value; inside the block the parameter is its average."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage([parameter], decay=0.9)
    with torch.no_grad():
        parameter.fill_(3.0)
    average.update()
    expected = 2 / 11 * 1.0 + 9 / 11 * 3.0
    with evaluated_weights(average):
        assert parameter.item() == pytest.approx(expected)
        assert parameter.requires_grad
    assert parameter.item() == 3.0
    for _ in range(200):
        average.update()
    assert average.values[0].item() == pytest.approx(3.0, abs=1e-3)


def test_the_live_weights_come_back_after_an_error() -> None:
    """An evaluation that fails does not leave the average in the model."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage([parameter], decay=0.5)
    with torch.no_grad():
        parameter.fill_(2.0)
    with pytest.raises(ZeroDivisionError), evaluated_weights(average):
        raise ZeroDivisionError
    assert parameter.item() == 2.0


@pytest.mark.parametrize(
    ("precision", "device", "supported", "warned"),
    [
        ("bfloat16", "cpu", False, True),
        ("bfloat16", "cpu", True, False),
        ("float32", "cpu", False, False),
        ("bfloat16", "cuda", False, False),
    ],
)
def test_products_that_a_processor_emulates_are_said_to_be_slow(
    precision: str,
    device: str,
    supported: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Once, for bfloat16 on a processor without it; not where it has it, nor on a GPU."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    warn_of_slow_products(precision, torch.device(device))
    assert len(caplog.records) == warned
    assert all("Set precision to float32" in record.message for record in caplog.records)
