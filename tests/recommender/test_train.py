"""Training of the recommender: it learns, repeats itself to the byte, resumes, and respects its settings."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender import FittedRecommender, fit_recommender
from macrec_pipeline.recommender.model import history_encoding
from macrec_pipeline.recommender.model.history_encoding import ItemCodes
from macrec_pipeline.recommender.training import train
from macrec_pipeline.recommender.training.validation import validation_losses
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from tests.recommender.cyclic_catalogue import CPU, SMALL, codes, cyclic_histories
from tests.recommender.interrupted_training import InterruptedTrainingError, interrupt_after, saved_files

NUM_USERS = 24  # few, since most tests train more than once


def fit(
    checkpoint: Path | None = None, progress: Progress = quiet_progress, seed: int = 5, **settings: object
) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": 4} | settings)
    return fit_recommender(
        cyclic_histories(NUM_USERS),
        codes(1),
        codes(2),
        codebook_size=4,
        config=config,
        seed=seed,
        device=CPU,
        progress=progress,
        checkpoint=checkpoint,
    )


@pytest.fixture(scope="module")
def uninterrupted_files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, object]], dict[str, bytes]]:
    """Return the files of an uninterrupted training with some settings, trained once per module."""
    found: dict[str, dict[str, bytes]] = {}

    def train_once(settings: dict[str, object]) -> dict[str, bytes]:
        key = json.dumps(settings, sort_keys=True)
        if key not in found:
            found[key] = saved_files(fit(**settings), tmp_path_factory.mktemp("uninterrupted") / "files")
        return found[key]

    return train_once


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_the_same_seed_gives_the_same_bytes(encoding: str, tmp_path: Path) -> None:
    """Two trainings write identical files, whatever is drawn from the global generator in between."""
    first = saved_files(fit(encoding=encoding, num_epochs=2), tmp_path / "first")
    torch.rand(7)
    assert saved_files(fit(encoding=encoding, num_epochs=2), tmp_path / "second") == first


def test_training_learns_a_certain_sequence(trained_model: FittedRecommender) -> None:
    """If the next item is certain, the best epoch predicts validation items almost without error."""
    losses = [row["validation_loss"] for row in trained_model.log]
    assert min(losses) < 0.3 * np.log(4)
    assert losses[trained_model.best_epoch - 1] == min(losses)


def test_validation_and_test_targets_are_never_trained_on() -> None:
    """Changing the last two items of each history does not change the training loss of the first epoch."""
    histories = cyclic_histories(NUM_USERS)
    changed = [np.concatenate([history[:-2], [0, 0]]) for history in histories]
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": 1})
    first, second = (
        fit_recommender(data, codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU).log[0]
        for data in (histories, changed)
    )
    assert first["train_loss"] == second["train_loss"]
    assert first["validation_loss"] != second["validation_loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"encoding": "item_causal"},
        {"encoding": "exact", "ema_decay": 0.9},
        {"early_stopping": "validation_ndcg", "dropout": 0.0},
        {"encoding": "item_causal", "precision": "bfloat16"},
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(
    settings: dict[str, object],
    share: float,
    uninterrupted_files: Callable[[dict[str, object]], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    """A training interrupted in the first or third epoch resumes to the same bytes, whatever the global generator."""
    checkpoint = tmp_path / "scratch" / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        fit(checkpoint, interrupt_after(share), **settings)
    assert checkpoint.is_file() == (share > 0.25)
    torch.rand(11)
    steps: list[int] = []
    resumed = fit(checkpoint, lambda _stage, done, *_: steps.append(done), **settings)
    assert saved_files(resumed, tmp_path / "resumed") == uninterrupted_files(settings)
    assert (steps[0] > 1) == (share > 0.25), "finished epochs must not be repeated"


def test_the_checkpoint_of_another_training_is_ignored(tmp_path: Path) -> None:
    """A training with another seed starts from the beginning."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    fit(checkpoint)
    assert saved_files(fit(checkpoint, seed=6), tmp_path / "a") == saved_files(fit(seed=6), tmp_path / "b")


def test_a_finished_training_is_only_read_back(tmp_path: Path) -> None:
    """If the checkpoint holds the last epoch, no step is repeated."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = fit(checkpoint)
    again = fit(checkpoint, interrupt_after(0.0))
    assert saved_files(first, tmp_path / "a") == saved_files(again, tmp_path / "b")


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_a_step_in_pieces_equals_the_step_as_a_whole(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One window per backward pass and all of them give the same losses and, up to the order of sums, weights."""
    logs, weights = [], []
    for size in (1, 10**9):
        monkeypatch.setattr(train, "TOKENS_PER_PIECE", {"cpu": size})
        fitted = fit(encoding=encoding, dropout=0.0, num_epochs=2, learning_rate=1e-3)
        logs.append([value for row in fitted.log for value in row.values()])
        weights.append(torch.cat([parameter.flatten() for parameter in fitted.model.parameters()]))
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert torch.dist(*weights) < 1e-3 * torch.linalg.vector_norm(weights[0])


def test_bfloat16_products_train_float32_weights() -> None:
    """Losses differ from those in float32 by no more than bfloat16's 8 bits explain; weights stay float32."""
    exact_log, rounded_log = (
        fit(precision=precision, dropout=0.0, learning_rate=1e-3).log for precision in ("float32", "bfloat16")
    )
    for exact, rounded in zip(exact_log, rounded_log, strict=True):
        assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.02)
        assert rounded["train_loss"] != exact["train_loss"]
    assert {parameter.dtype for parameter in fit(precision="bfloat16").model.parameters()} == {torch.float32}


def test_label_smoothing_acts_only_in_training() -> None:
    """Label smoothing changes the training loss; the validation loss is the unsmoothed one of the trained model."""
    smoothed, plain = (fit(label_smoothing=share, dropout=0.0, num_epochs=1) for share in (0.2, 0.0))
    assert smoothed.log[0]["train_loss"] != pytest.approx(plain.log[0]["train_loss"], rel=1e-3)
    items = ItemCodes({"text": torch.from_numpy(codes(1)), "image": torch.from_numpy(codes(2))})
    measured = validation_losses(smoothed.model, items, [history[:-1] for history in cyclic_histories(NUM_USERS)])
    assert smoothed.log[0]["validation_loss"] == pytest.approx(measured["validation_loss"], rel=1e-6)


def test_early_stopping_uses_the_configured_figure() -> None:
    """The kept epoch is the best one by that figure, and NDCG is measured only if it decides."""
    by_ndcg, by_loss = fit(early_stopping="validation_ndcg", num_epochs=6), fit(num_epochs=6)
    assert by_ndcg.best_epoch == 1 + int(np.argmax([row["validation_ndcg"] for row in by_ndcg.log]))
    assert by_loss.best_epoch == 1 + int(np.argmin([row["validation_loss"] for row in by_loss.log]))
    assert "validation_ndcg" not in by_loss.log[0]


def test_a_single_modality_is_trained_by_its_own_task(tmp_path: Path) -> None:
    """Without image IDs one of six tasks is left, which the saved settings say. Settings need no pydantic object."""
    settings = vars(RecommenderConfig.model_validate(SMALL | {"num_epochs": 1}))
    config: Any = SimpleNamespace(**settings)
    fitted = fit_recommender(cyclic_histories(), codes(1), None, codebook_size=4, config=config, seed=5, device=CPU)
    assert fitted.log[0].keys() == {"epoch", "train_loss", "implicit_loss", "validation_loss_text", "validation_loss"}
    assert fitted.log[0]["implicit_loss"] == 0
    fitted.save(tmp_path)
    assert json.loads((tmp_path / "recommender.json").read_text())["config"]["tasks"] == ["text_to_text"]
    assert config.tasks == settings["tasks"], "the caller's settings must not change"


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_tasks_computed_together_give_the_same_losses(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs on a GPU (tasks together, large pieces, rare checks) gives the same losses on the CPU."""
    expected = fit(encoding=encoding, dropout=0.0).log
    computed_together = train._computed_together
    monkeypatch.setattr(train, "_computed_together", lambda tasks, _: computed_together(tasks, torch.device("cuda")))
    monkeypatch.setitem(train.TOKENS_PER_PIECE, "cpu", train.TOKENS_PER_PIECE["cuda"])
    monkeypatch.setitem(train.CHECK_EVERY, "cpu", train.CHECK_EVERY["cuda"])
    monkeypatch.setitem(history_encoding.BATCH_LIMITS, "cpu", history_encoding.BATCH_LIMITS["cuda"])
    for row, expected_row in zip(fit(encoding=encoding, dropout=0.0).log, expected, strict=True):
        assert row == pytest.approx(expected_row, rel=1e-4)
