"""The options of training: resuming, averaged weights, smoothed labels, and what early stopping goes by."""

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
from macrec_pipeline.recommender.training import batching, train_step
from macrec_pipeline.recommender.training import fit as fit_module
from macrec_pipeline.recommender.training.batching import batch_of, training_rows
from macrec_pipeline.recommender.training.losses import ItemCodes, history_loss
from macrec_pipeline.recommender.training.validation import Validation
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from tests.recommender.cycle import CPU, SMALL, codes, cyclic_histories


class CutOffError(Exception):
    """Stands for the power going out."""


def fit(
    checkpoint: Path | None = None, progress: Progress = quiet_progress, seed: int = 5, **changes: object
) -> FittedRecommender:
    config = RecommenderConfig.model_validate(SMALL | {"num_epochs": 4} | changes)
    return fit_recommender(
        cyclic_histories(),
        codes(1),
        codes(2),
        codebook_size=4,
        config=config,
        seed=seed,
        device=CPU,
        progress=progress,
        checkpoint=checkpoint,
    )


def cut_off_after(share: float) -> Callable[..., None]:
    def progress(_stage: str, done: int, total: int, *_: object) -> None:
        if done > share * total:
            raise CutOffError

    return progress


def saved(fitted: FittedRecommender, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    fitted.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "changes",
    [
        {"encoding": "item_causal"},
        {"encoding": "exact", "ema_decay": 0.9},
        {"early_stopping": "validation_ndcg", "dropout": 0.0},
        {"encoding": "item_causal", "precision": "bfloat16"},
    ],
)
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(
    changes: dict[str, object], share: float, tmp_path: Path
) -> None:
    """Cut off in the middle of the first or of the third epoch; the global generator is elsewhere by then."""
    checkpoint = tmp_path / "scratch" / "checkpoint.safetensors"
    with pytest.raises(CutOffError):
        fit(checkpoint, cut_off_after(share), **changes)
    assert checkpoint.is_file() == (share > 0.25)
    torch.rand(11)
    train_step: list[int] = []
    resumed = fit(checkpoint, lambda _stage, done, *_: train_step.append(done), **changes)
    whole = fit(**changes)
    assert saved(resumed, tmp_path / "resumed") == saved(whole, tmp_path / "whole")
    assert (train_step[0] > 1) == (share > 0.25), "the epochs that were done are not done again"


def test_the_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    """With another seed nothing is taken over."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    fit(checkpoint)
    assert saved(fit(checkpoint, seed=6), tmp_path / "a") == saved(fit(seed=6), tmp_path / "b")


def test_a_finished_training_is_only_read_back(tmp_path: Path) -> None:
    """No step is made twice when the checkpoint holds the last epoch."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = fit(checkpoint)
    again = fit(checkpoint, cut_off_after(0.0))
    assert saved(first, tmp_path / "a") == saved(again, tmp_path / "b")


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_a_step_in_pieces_is_the_step_as_a_whole(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a backward pass or all of a task: the same losses and, but for the order of sums, the same weights."""
    logs, weights = [], []
    for size in (1, 10**9):
        monkeypatch.setattr(train_step, "TOKENS_A_PIECE", {"cpu": size})
        fitted = fit(encoding=encoding, dropout=0.0, num_epochs=2, learning_rate=1e-3)
        logs.append([value for row in fitted.log for value in row.values()])
        weights.append(torch.cat([parameter.flatten() for parameter in fitted.model.parameters()]))
    assert logs[0] == pytest.approx(logs[1], rel=1e-4)
    assert torch.dist(*weights) < 1e-3 * torch.linalg.vector_norm(weights[0])


def test_products_in_bfloat16_train_weights_of_float32() -> None:
    """Other losses than in float32, and by no more than bfloat16's 8 bits explain; what is kept is float32."""
    plain, fast = (
        fit(precision=precision, dropout=0.0, learning_rate=1e-3).log for precision in ("float32", "bfloat16")
    )
    for exact, rounded in zip(plain, fast, strict=True):
        assert rounded["train_loss"] == pytest.approx(exact["train_loss"], rel=0.02)
        assert rounded["train_loss"] != exact["train_loss"]
    assert {parameter.dtype for parameter in fit(precision="bfloat16").model.parameters()} == {torch.float32}


def test_label_smoothing_acts_in_training_alone() -> None:
    """The smoothed loss mixes in the mean over all codes: (1 - s) * loss + s * mean of -log p."""
    model = fit(label_smoothing=0.2, dropout=0.0, num_epochs=1).model
    items = ItemCodes({"text": torch.from_numpy(codes(1)), "image": torch.from_numpy(codes(2))})
    batch = batch_of(training_rows([np.arange(6)], model.config), np.array([0]), only_last=False)

    def loss(smoothing: float, *, training: bool) -> float:
        object.__setattr__(model.config, "label_smoothing", smoothing)
        return history_loss(model.train(training), items, batch, tasks=["text_to_text"]).item()

    plain, uniform = loss(0.0, training=True), loss(1.0 - 1e-9, training=True)
    assert loss(0.2, training=True) == pytest.approx(0.8 * plain + 0.2 * uniform, rel=1e-4)
    assert loss(0.2, training=False) == pytest.approx(plain, rel=1e-6)


def test_early_stopping_goes_by_the_figure_it_was_told() -> None:
    """The kept epoch has the best of the chosen figure; NDCG is measured only when asked."""
    by_ndcg, by_loss = fit(early_stopping="validation_ndcg", num_epochs=6), fit(num_epochs=6)
    ndcg = [row["validation_ndcg"] for row in by_ndcg.log]
    assert by_ndcg.best_epoch == 1 + int(np.argmax(ndcg))
    losses = [row["validation_loss"] for row in by_loss.log]
    assert by_loss.best_epoch == 1 + int(np.argmin(losses))
    assert "validation_ndcg" not in by_loss.log[0]


def test_validation_ndcg_by_hand() -> None:
    """A model that knows the cycle scores near 1; targets replaced by items that never follow score near 0."""
    fitted = fit(num_epochs=25, d_model=32, d_ff=64, learning_rate=5e-3, dropout=0.0)
    items = ItemCodes({"text": torch.from_numpy(codes(1)), "image": torch.from_numpy(codes(2))})
    histories = cyclic_histories()
    assert Validation(histories, items).ndcg(fitted.model) > 0.9
    wrong = [np.concatenate([history[:-2], [(history[-2] + 15) % 30], history[-1:]]) for history in histories]
    assert Validation(wrong, items).ndcg(fitted.model) < 0.3


def test_one_modality_is_trained_by_its_own_tasks_whatever_holds_the_settings(tmp_path: Path) -> None:
    """Without image IDs one task of six is left, and says so on disk; settings need no pydantic on a bare machine."""
    settings = vars(RecommenderConfig.model_validate(SMALL | {"num_epochs": 1}))
    plain: Any = SimpleNamespace(**settings)
    fitted = fit_recommender(cyclic_histories(), codes(1), None, codebook_size=4, config=plain, seed=5, device=CPU)
    assert fitted.log[0].keys() == {"epoch", "train_loss", "implicit_loss", "validation_loss_text", "validation_loss"}
    assert fitted.log[0]["implicit_loss"] == 0
    fitted.save(tmp_path)
    assert json.loads((tmp_path / "recommender.json").read_text())["config"]["tasks"] == ["text_to_text"]
    assert plain.tasks == settings["tasks"], "what was handed in stays as it was"


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_a_training_that_takes_tasks_together_finds_the_same_losses(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU does differently, done on the processor: tasks together, large pieces, a look now and then."""
    apart = fit(encoding=encoding, dropout=0.0).log
    together = train_step._together
    monkeypatch.setattr(train_step, "_together", lambda own, _: together(own, torch.device("cuda")))
    monkeypatch.setitem(train_step.TOKENS_A_PIECE, "cpu", train_step.TOKENS_A_PIECE["cuda"])
    monkeypatch.setitem(fit_module.LOOK_EVERY, "cpu", fit.LOOK_EVERY["cuda"])
    monkeypatch.setitem(batching.BATCH_LIMITS, "cpu", batching.BATCH_LIMITS["cuda"])
    for ours, theirs in zip(fit(encoding=encoding, dropout=0.0).log, apart, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
