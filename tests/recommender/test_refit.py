"""A refit trains on whole histories for a number of epochs that was chosen before, from scratch or continuing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from macrec_pipeline.config import RecommenderConfig, RefitConfig, SasrecConfig
from macrec_pipeline.errors import StorageError
from macrec_pipeline.recommender import (
    FittedRecommender,
    FittedSasrec,
    fit_recommender,
    fit_sasrec,
    plan_recommender_refit,
    plan_sasrec_refit,
)
from tests.recommender.cyclic_catalogue import CPU, NUM_ITEMS, SMALL, codes, cyclic_histories
from tests.recommender.interrupted_training import InterruptedTrainingError, interrupt_after, saved_files

NUM_USERS = 24
CONFIG = RecommenderConfig.model_validate(SMALL)
SASREC = SasrecConfig(d_model=16, num_heads=2, num_layers=1, max_length=6, batch_size=64, max_epochs=2)


def fit(histories: list[np.ndarray], config: RecommenderConfig = CONFIG, **arguments: Any) -> FittedRecommender:
    return fit_recommender(
        histories, codes(1), codes(2), codebook_size=4, config=config, seed=5, device=CPU, **arguments
    )


def fit_small_sasrec(histories: list[np.ndarray], config: SasrecConfig = SASREC, **arguments: Any) -> FittedSasrec:
    return fit_sasrec(histories, num_items=NUM_ITEMS, config=config, seed=5, **arguments)


@pytest.mark.parametrize("train", [fit, fit_small_sasrec])
def test_a_refit_learns_exactly_what_training_without_held_out_targets_would(train: Any) -> None:
    """Training holds the last two items out, so with two items more it learns the whole histories, as a refit does."""
    histories = cyclic_histories(NUM_USERS)
    longer = [np.append(history, [(history[-1] + 1) % NUM_ITEMS, 0]) for history in histories]
    held_out = train(longer)
    assert held_out.best_epoch == 2, "otherwise the weights compared below are not those of the same epoch"
    refitted = train(histories, refit_epochs=2)
    for name, weights in held_out.model.state_dict().items():
        assert torch.equal(refitted.model.state_dict()[name], weights), name
    assert refitted.best_epoch == 2
    assert not any("validation" in name for row in refitted.log for name in row)


@pytest.mark.parametrize("train", [fit, fit_small_sasrec])
def test_short_histories_can_be_refitted(train: Any) -> None:
    """A user whom a split by time leaves out may have one or two interactions, which training itself never meets."""
    histories = [*cyclic_histories(NUM_USERS), np.array([3]), np.array([4, 5])]
    assert train(histories, refit_epochs=1).best_epoch == 1


def test_a_refit_stops_within_the_schedule_of_the_training() -> None:
    """One of two epochs has half of the learning rates of two; it is not a training of one epoch."""
    histories = cyclic_histories(NUM_USERS)
    one_of_two = fit(histories, refit_epochs=1)
    only_one = fit(histories, CONFIG.model_copy(update={"num_epochs": 1}), refit_epochs=1)
    assert len(one_of_two.log) == len(only_one.log) == 1
    assert not torch.equal(one_of_two.model.t5.shared.weight, only_one.model.t5.shared.weight)


@pytest.mark.parametrize("train", [fit, fit_small_sasrec])
@pytest.mark.parametrize("continued", [False, True])
def test_an_interrupted_refit_ends_with_the_bytes_of_an_uninterrupted_one(
    train: Any, continued: bool, tmp_path: Path
) -> None:
    """The checkpoint of a refit belongs to its starting weights and to its epochs."""
    histories = cyclic_histories(NUM_USERS)
    saved_files(train(histories), tmp_path / "start")
    start = "start" if train is fit else "refit_start"
    arguments = {"refit_epochs": 2, start: tmp_path / "start" if continued else None}
    expected = saved_files(train(histories, **arguments), tmp_path / "expected")
    checkpoint = tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        train(histories, checkpoint=checkpoint, progress=interrupt_after(0.7), **arguments)
    steps: list[int] = []
    resumed = train(histories, checkpoint=checkpoint, progress=lambda _, done, *rest: steps.append(done), **arguments)
    assert saved_files(resumed, tmp_path / "resumed") == expected
    assert steps[0] > 1, "the finished epoch must not be repeated"


def test_the_plan_repeats_the_epochs_that_validation_chose(tmp_path: Path) -> None:
    """From scratch: the settings of the training, its best epoch, random weights."""
    fitted = fit(cyclic_histories(NUM_USERS), CONFIG.model_copy(update={"num_epochs": 3, "patience": 1}))
    saved_files(fitted, tmp_path / "evaluated")
    now = CONFIG.model_copy(update={"learning_rate": 0.5, "num_epochs": 50})  # changed after the training
    refit = RefitConfig(method="from_scratch")
    plan = plan_recommender_refit(tmp_path / "evaluated", now, refit, warm_started=False)
    assert (plan.method, plan.num_epochs, plan.start) == ("from_scratch", fitted.best_epoch, None)
    assert (plan.config.num_epochs, plan.config.learning_rate) == (3, CONFIG.learning_rate)
    continued = plan_recommender_refit(tmp_path / "evaluated", now, refit, warm_started=True)
    assert (continued.method, continued.start) == ("continue", tmp_path / "evaluated")


@pytest.mark.parametrize(("share", "epochs"), [(0.01, 1), (0.3, 3), (0.39, 3), (1.0, 10)])
def test_the_plan_continues_for_a_share_of_the_epochs(share: float, epochs: int, tmp_path: Path) -> None:
    """Of ten epochs, also if validation chose an earlier one; the learning rate is a share of the training's."""
    settings = CONFIG.model_copy(update={"num_epochs": 10, "patience": 10})
    saved_files(fit(cyclic_histories(4), settings), tmp_path / "recommender")
    saved_files(
        fit_small_sasrec(cyclic_histories(4), SASREC.model_copy(update={"max_epochs": 10, "patience": 10})),
        tmp_path / "sasrec",
    )
    refit = RefitConfig(method="continue", sasrec_method="continue", epoch_share=share, learning_rate_share=0.5)
    plan = plan_recommender_refit(tmp_path / "recommender", CONFIG, refit, warm_started=False)
    assert (plan.method, plan.num_epochs, plan.start) == ("continue", epochs, tmp_path / "recommender")
    assert (plan.config.num_epochs, plan.config.learning_rate) == (epochs, CONFIG.learning_rate / 2)
    sasrec = plan_sasrec_refit(tmp_path / "sasrec", SASREC, refit, warm_started=False)
    assert (sasrec.method, sasrec.num_epochs, sasrec.start) == ("continue", epochs, tmp_path / "sasrec")
    assert sasrec.config.learning_rate == SASREC.learning_rate / 2


def test_new_interactions_have_more_weight_in_a_continued_refit(tmp_path: Path) -> None:
    """The mean over all targets stays 1, so that the loss has the same scale; the first items are no targets."""
    saved_files(fit(cyclic_histories(4)), tmp_path / "evaluated")
    num_learned, lengths = np.array([3, 0, 1]), np.array([5, 3, 1])

    def weights(**settings: Any) -> np.ndarray | None:
        plan = plan_recommender_refit(tmp_path / "evaluated", CONFIG, RefitConfig(**settings), warm_started=False)
        return plan.target_weights(num_learned, lengths)

    found = weights(method="continue", new_interaction_weight=4)
    assert found is not None
    assert found.dtype == np.float32
    mean = (1 + 1 + 4 + 4 + 4 + 4) / 6
    np.testing.assert_allclose(found, np.array([1, 1, 1, 4, 4, 4, 4, 4, 1]) / mean, rtol=1e-6)
    assert weights(method="continue", new_interaction_weight=1) is None
    assert weights(method="from_scratch", new_interaction_weight=4) is None, "it learns everything equally often"


@pytest.mark.parametrize("encoding", ["exact", "item_causal"])
def test_targets_with_weights_are_learned_as_much_as_they_count(encoding: str) -> None:
    """Weights of 1 change no byte, and what counts 0 is not learned at all."""
    config = CONFIG.model_copy(update={"encoding": encoding})
    histories = cyclic_histories(NUM_USERS)

    def trained(histories: list[np.ndarray], **arguments: Any) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = fit(histories, config, refit_epochs=1, **arguments).model.state_dict()
        return state

    lengths = [len(history) for history in histories]
    plain = trained(histories)
    with_ones = trained(histories, target_weights=np.ones(sum(lengths), dtype=np.float32))
    assert all(torch.equal(with_ones[name], weights) for name, weights in plain.items())
    without_last = np.concatenate([np.arange(length) < length - 1 for length in lengths]).astype(np.float32)
    other_ends = [np.append(history[:-1], (history[-1] + 3) % NUM_ITEMS) for history in histories]
    first, second = (trained(each, target_weights=without_last) for each in (histories, other_ends))
    assert all(torch.equal(second[name], weights) for name, weights in first.items())
    assert any(not torch.equal(first[name], weights) for name, weights in plain.items())


def test_sasrec_is_refitted_from_scratch_by_default(tmp_path: Path) -> None:
    """It costs little, unlike the recommender, which continues; after a warm start both continue."""
    saved_files(fit_small_sasrec(cyclic_histories(4)), tmp_path / "sasrec")
    plan = plan_sasrec_refit(tmp_path / "sasrec", SASREC, RefitConfig(), warm_started=False)
    assert (plan.method, plan.start) == ("from_scratch", None)
    assert plan_sasrec_refit(tmp_path / "sasrec", SASREC, RefitConfig(), warm_started=True).method == "continue"


def test_a_model_that_cannot_be_read_cannot_be_refitted(tmp_path: Path) -> None:
    """The error names the folder and what to do."""
    with pytest.raises(StorageError, match=r"cannot be refitted: .*Materialize `sasrec` and `recommender` again"):
        plan_recommender_refit(tmp_path, CONFIG, RefitConfig(), warm_started=False)
