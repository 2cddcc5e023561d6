"""The shared training loop: which epoch is kept, resuming, the guarded step, the schedule, and averaged weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from macrec_pipeline.errors import TrainingError
from macrec_pipeline.runtime.checkpoint import Checkpoint
from macrec_pipeline.runtime.training import (
    MovingAverage,
    ResumableTrainable,
    Trainer,
    averaged_weights,
    cosine_schedule,
    guarded_step,
    warn_if_bfloat16_is_emulated,
)


class ScriptedTraining(ResumableTrainable):
    """A single weight that equals the epoch, and validation figures that are written down in advance."""

    def __init__(self, figures: list[float]) -> None:
        self.weight = nn.Linear(1, 1, bias=False)
        self.modules = {"model": self.weight}
        self.optimizer = torch.optim.SGD(self.weight.parameters(), lr=0.0)
        self.figures, self.epoch, self.calls = figures, 0, list[str]()

    def train_epoch(self, epoch: int) -> dict[str, float]:
        self.epoch = epoch
        self.calls.append(f"train {epoch}")
        with torch.no_grad():
            self.weight.weight.fill_(epoch)
        return {"train_loss": 10.0 * epoch}

    def validate(self) -> dict[str, float]:
        self.calls.append(f"validate {self.epoch}")
        return {"figure": self.figures[self.epoch - 1]}

    def scores(self, row: Mapping[str, float]) -> dict[str, float]:
        return {"model": row["figure"]}

    def finish_epoch(self, epoch: int, row: Mapping[str, float]) -> None:
        self.calls.append(f"finish {epoch}")

    def extra_state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        return {"extra/epoch": torch.tensor(self.epoch)}, {"calls": self.calls}

    def restore_extra_state(self, tensors: Mapping[str, Mapping[str, torch.Tensor]], values: Mapping[str, Any]) -> None:
        self.epoch, self.calls = int(tensors["extra"]["epoch"]), [*values["calls"], "resume"]


def test_the_first_of_equally_good_epochs_is_kept_and_patience_counts_from_it() -> None:
    """The log holds every epoch up to the stop, and the model has the weights of the best one."""
    training = ScriptedTraining([3, 1, 2, 1, 0])
    trainer = Trainer(training, num_epochs=5, patience=2)
    trainer.run()
    assert trainer.log == [
        {"epoch": 1, "train_loss": 10, "figure": 3},
        {"epoch": 2, "train_loss": 20, "figure": 1},
        {"epoch": 3, "train_loss": 30, "figure": 2},
        {"epoch": 4, "train_loss": 40, "figure": 1},
    ]
    assert trainer.best_epochs == {"model": 2}
    assert training.weight.weight.item() == 2


def test_the_later_of_equally_good_epochs_is_kept_on_request() -> None:
    """Only every second epoch and the last one are validated; all of them are trained and finished."""
    training = ScriptedTraining([0, 1, 0, 1, 2])
    trainer = Trainer(training, num_epochs=5, validate_every=2, prefer_later=True)
    trainer.run()
    assert [row["epoch"] for row in trainer.log] == [2, 4, 5]
    assert trainer.best_epochs == {"model": 4}
    assert training.weight.weight.item() == 4
    assert training.calls == [
        *("train 1", "finish 1", "train 2", "validate 2", "finish 2", "train 3", "finish 3"),
        *("train 4", "validate 4", "finish 4", "train 5", "validate 5", "finish 5"),
    ]


def test_without_epochs_the_weights_stay() -> None:
    """Nothing is trained, logged or chosen."""
    training = ScriptedTraining([])
    initial = training.weight.weight.item()
    trainer = Trainer(training, num_epochs=0, patience=1)
    trainer.run()
    assert (trainer.log, trainer.best_epochs, training.weight.weight.item()) == ([], {"model": 0}, initial)


def test_a_training_resumes_after_the_last_finished_epoch(tmp_path: Path) -> None:
    """Log, best epoch, best weights and patience continue as if nothing had happened."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", identity="a")
    Trainer(ScriptedTraining([2, 1]), num_epochs=2, patience=2).run(checkpoint)
    training = ScriptedTraining([9, 9, 3, 4, 0])
    trainer = Trainer(training, num_epochs=5, patience=2)
    trainer.run(checkpoint)
    assert [row["figure"] for row in trainer.log] == [2, 1, 3, 4]
    assert trainer.best_epochs == {"model": 2}
    assert training.weight.weight.item() == 2
    resumed = training.calls[training.calls.index("resume") :]
    assert resumed == ["resume", "train 3", "validate 3", "finish 3", "train 4", "validate 4", "finish 4"]


def test_checkpoints_are_written_no_more_often_than_allowed(tmp_path: Path) -> None:
    """With an hour between two writes, a training of two epochs writes none."""
    checkpoint = Checkpoint(tmp_path / "checkpoint.safetensors", identity="a", min_seconds=3600)
    Trainer(ScriptedTraining([2, 1]), num_epochs=2).run(checkpoint)
    assert not checkpoint.path.exists()


def test_a_loss_that_is_not_finite_stops_before_the_weights_change() -> None:
    """The error names the place, and the weights stay those of the last good step."""
    weight = nn.Parameter(torch.tensor([1.0]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    with pytest.raises(TrainingError, match="here, step 3: the loss is inf"):
        guarded_step([weight.sum() * float("inf")], optimizer, [weight], where="here, step 3")
    assert weight.item() == 1.0


def test_the_cosine_schedule_by_hand() -> None:
    """After two steps of warm-up, half a cosine: full at its start, half in the middle, towards zero at the end."""
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
    with averaged_weights(average):
        assert parameter.item() == pytest.approx(expected)
        assert parameter.requires_grad
    assert parameter.item() == 3.0
    for _ in range(200):
        average.update()
    assert average.values[0].item() == pytest.approx(3.0, abs=1e-3)


def test_the_live_weights_return_after_an_error() -> None:
    """A failed validation does not leave the average in the model."""
    parameter = nn.Parameter(torch.tensor([1.0]))
    average = MovingAverage([parameter], decay=0.5)
    with torch.no_grad():
        parameter.fill_(2.0)
    with pytest.raises(ZeroDivisionError), averaged_weights(average):
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
def test_emulated_bfloat16_is_warned_about(
    precision: str,
    device: str,
    supported: bool,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """There is one warning for bfloat16 on a CPU without it, and none on a CPU with it or on a GPU."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: supported)
    warn_if_bfloat16_is_emulated(precision, torch.device(device))
    assert len(caplog.records) == warned
    assert all("Set precision to float32" in record.message for record in caplog.records)
