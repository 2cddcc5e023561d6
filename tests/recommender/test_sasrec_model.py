"""SASRec: no look ahead, nothing learned from the targets, the same bytes every time, and it does learn."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from macrec_pipeline.config import SasrecConfig
from macrec_pipeline.errors import ConfigError, StorageError, TrainingError
from macrec_pipeline.presets import resolve_config
from macrec_pipeline.recommender.retrieval.sasrec_route import log_probabilities, rank_catalogue
from macrec_pipeline.recommender.sasrec.fitted import FittedSasrec, load_item_embeddings, write_skipped
from macrec_pipeline.recommender.sasrec.model import Sasrec
from macrec_pipeline.recommender.sasrec.training import fit_sasrec, training_windows, validation_ndcg
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import torch_generator

NUM_ITEMS = 12
SMALL = SasrecConfig(d_model=16, num_heads=2, num_layers=2, max_length=6, batch_size=64, max_epochs=2, dropout=0.25)


def _random_histories(num_users: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_ITEMS, rng.integers(4, 15)) for _ in range(num_users)]


def _cycle_histories() -> list[np.ndarray]:
    """Users who start anywhere and always take the next item of one fixed cycle."""
    cycle = np.random.default_rng(1).permutation(NUM_ITEMS)
    return [cycle[(start + np.arange(9)) % NUM_ITEMS] for start in range(NUM_ITEMS)] * 4


def _fit(
    histories: list[np.ndarray],
    config: SasrecConfig = SMALL,
    seed: int = 5,
    checkpoint: Path | None = None,
    progress: Progress = quiet_progress,
) -> FittedSasrec:
    return fit_sasrec(
        histories, num_items=NUM_ITEMS, config=config, seed=seed, checkpoint=checkpoint, progress=progress
    )


def _saved(fitted: FittedSasrec, folder: Path) -> dict[str, bytes]:
    folder.mkdir(parents=True)
    fitted.save(folder)
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _bytes(fitted: FittedSasrec) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in fitted.model.state_dict().items()}


def _moved(history: np.ndarray, position: int, steps: int) -> np.ndarray:
    """The history with another item at a position."""
    changed = history.copy()
    changed[position] = (changed[position] + steps) % NUM_ITEMS
    return changed


@pytest.fixture
def model() -> Sasrec:
    return Sasrec(NUM_ITEMS, SMALL, torch_generator(0, "test")).eval()


def test_a_later_item_changes_no_earlier_state(model: Sasrec) -> None:
    """The states before a changed item are equal to the last bit, the one at it and those after it are not."""
    inputs = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = inputs.clone()
    other[0, 3] = 9
    states, changed = model(inputs), model(other)
    assert torch.equal(states[:, :3], changed[:, :3])
    assert (states[:, 3:] != changed[:, 3:]).any(dim=2).all()


def test_what_fills_a_row_up_changes_nothing(model: Sasrec) -> None:
    """A history in a batch with a longer one has the states that it has alone."""
    alone = model(torch.tensor([[7, 8, 9]]))
    beside = model(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0], [7, 8, 9, 3, 2, 1]]))
    torch.testing.assert_close(beside[1:, :3], alone.expand(2, -1, -1))


def test_scores_do_not_depend_on_who_shares_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of all lengths at once get the scores that they get one by one, each in its place."""
    inputs = [history[:-1] for history in _random_histories()]
    model = _fit(_random_histories()).model
    at_once = log_probabilities(model, inputs)
    monkeypatch.setattr("macrec_pipeline.recommender.sasrec.model.CELLS_AT_ONCE", 1)
    torch.testing.assert_close(log_probabilities(model, inputs), at_once)
    alone = torch.cat([log_probabilities(model, [history]) for history in inputs])
    torch.testing.assert_close(alone, at_once)
    assert at_once.exp().sum(dim=1).tolist() == pytest.approx([1.0] * len(inputs), rel=1e-5)


@pytest.mark.parametrize("targets_at_once", [1, 3, 7])
def test_a_loss_in_parts_is_the_whole_loss(
    model: Sasrec, targets_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and every gradient, to the accuracy of float32; parts that do not divide the targets, too."""
    targets = torch.randint(NUM_ITEMS, (11,), generator=torch_generator(1, "test"))
    inputs = torch.randint(NUM_ITEMS, (11, 1), generator=torch_generator(2, "test"))

    def loss_and_gradients() -> tuple[float, list[torch.Tensor]]:
        model.zero_grad()
        loss = model.loss(model(inputs)[:, 0], targets)
        loss.backward()
        return loss.item(), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    whole, gradients = loss_and_gradients()
    monkeypatch.setattr("macrec_pipeline.recommender.sasrec.model.CELLS_AT_ONCE", targets_at_once * NUM_ITEMS)
    in_parts, other_gradients = loss_and_gradients()
    assert in_parts == pytest.approx(whole, rel=1e-6)
    assert len(gradients) == len(other_gradients) > 10
    for one, other in zip(gradients, other_gradients, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-7)


def test_no_more_scores_are_held_than_allowed(model: Sasrec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 11 targets and 12 items, three targets' scores at a time."""
    held: list[int] = []
    plain = model.scores
    monkeypatch.setattr("macrec_pipeline.recommender.sasrec.model.CELLS_AT_ONCE", 40)
    monkeypatch.setattr(model, "scores", lambda states: held.append(plain(states).numel()) or plain(states))
    model.loss(torch.zeros(11, SMALL.d_model, requires_grad=True), torch.arange(11)).backward()
    assert held == [36, 36, 36, 24, 24, 36, 36, 36]  # and again, from the last to the first, for the gradient


def test_it_learns_a_cycle_of_items() -> None:
    """Where the next item follows from the last one, nearly every test target is first, and the loss nearly zero."""
    histories = _cycle_histories()
    config = SMALL.model_copy(update={"max_epochs": 30, "patience": 30, "dropout": 0.0, "learning_rate": 1e-2})
    fitted = _fit(histories, config)
    ranked = rank_catalogue(fitted.model, [history[:-1] for history in histories], top_k=1)
    hits = [found.item_indices[0] == history[-1] for found, history in zip(ranked, histories, strict=True)]
    assert np.mean(hits) > 0.95
    assert fitted.log[-1]["train_loss"] < 0.1 < fitted.log[0]["train_loss"]


def test_the_targets_never_enter_training() -> None:
    """Other validation and test targets leave the same weights and losses; another training item does not."""
    items = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 1})  # validation picks the epoch, so there is but one
    plain = _fit(items, config)
    other_targets = _fit([_moved(_moved(row, -2, 5), -1, 7) for row in items], config)
    other_item = _fit([_moved(row, -3, 1) for row in items], config)
    assert _bytes(other_targets) == _bytes(plain)
    assert other_targets.log[0]["train_loss"] == plain.log[0]["train_loss"]
    assert _bytes(other_item) != _bytes(plain)


def test_the_test_target_does_not_pick_the_epoch() -> None:
    """Other test targets leave the log and the best epoch of a training of several epochs."""
    items = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 4})
    plain = _fit(items, config)
    other = _fit([_moved(row, -1, 7) for row in items], config)
    assert other.log == plain.log
    assert _bytes(other) == _bytes(plain)


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before() -> None:
    """A second training is equal to the last bit and leaves the global generator alone; another seed differs."""
    histories = _random_histories()
    torch.manual_seed(1)
    first, drawn = _fit(histories), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert _bytes(_fit(histories)) == _bytes(first)
    assert _fit(histories).log == first.log
    assert _bytes(_fit(histories, seed=6)) != _bytes(first)


def test_the_best_epoch_is_kept_and_patience_ends_training() -> None:
    """The weights are those of the highest validation NDCG@10, and training stops `patience` epochs after it."""
    histories = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 40, "patience": 3})
    fitted = _fit(histories, config)
    figures = [row["validation_ndcg"] for row in fitted.log]
    assert fitted.best_epoch == 1 + int(np.argmax(figures))
    assert len(fitted.log) == fitted.best_epoch + 3 < 40
    assert validation_ndcg(fitted.model, histories) == max(figures)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 10))
def test_every_training_item_but_the_first_is_a_target_once(lengths: list[int], max_length: int) -> None:
    """The windows of a user tile the training part; none is longer than allowed or reaches into another user."""
    windows = training_windows(np.array(lengths), max_length=max_length)
    starts = np.cumsum(lengths) - lengths
    targets = [
        place
        for first, length in zip(windows.firsts, windows.lengths, strict=True)
        for place in range(first + 1, first + length + 1)
    ]
    expected = [
        place for start, length in zip(starts, lengths, strict=True) for place in range(start + 1, start + length - 2)
    ]
    assert sorted(targets) == expected
    assert windows.lengths.max(initial=0) <= max_length


def test_seen_items_are_excluded_and_lists_are_of_distinct_items() -> None:
    """Lists are filled as far as the catalogue goes, without seen items where they are excluded, in the same order."""
    histories = _random_histories()
    model = _fit(histories).model
    inputs = [history[:-1] for history in histories]
    everything = rank_catalogue(model, inputs, top_k=NUM_ITEMS)
    unseen = rank_catalogue(model, inputs, top_k=NUM_ITEMS, exclude_seen=True)
    for history, every, some in zip(inputs, everything, unseen, strict=True):
        assert sorted(every.item_indices) == list(range(NUM_ITEMS))
        assert (np.diff(every.scores) <= 0).all()
        assert some.item_indices.tolist() == [item for item in every.item_indices if item not in history]
    assert [len(found.item_indices) for found in rank_catalogue(model, inputs, top_k=3)] == [3] * len(inputs)


def test_what_is_forbidden_has_no_share_of_the_distribution(model: Sasrec) -> None:
    """The allowed items' probabilities sum to one, in their old proportions; a row without any stays empty."""
    histories = [np.array([3, 4]), np.array([5])]
    forbidden = torch.zeros(2, NUM_ITEMS, dtype=torch.bool)
    forbidden[0, [0, 7, 9]] = True
    forbidden[1] = True
    free, masked = log_probabilities(model, histories), log_probabilities(model, histories, forbidden=forbidden)
    assert masked[0, [0, 7, 9]].isneginf().all()
    allowed = ~forbidden[0]
    assert masked[0, allowed].exp().sum().item() == pytest.approx(1.0, rel=1e-5)
    shift = masked[0, allowed] - free[0, allowed]
    assert shift.min().item() == pytest.approx(shift.max().item(), rel=1e-4)
    assert masked[1].isneginf().all()


def test_short_histories_are_no_error() -> None:
    """Users with nothing to train on get lists; a user without an input gets an empty one."""
    fitted = _fit([np.array([1]), np.array([2, 3]), np.array([4, 5, 6])])
    assert (fitted.best_epoch, fitted.log, fitted.validation_ndcg) == (0, [], 0.0)
    ranked = rank_catalogue(fitted.model, [np.array([], dtype=np.int64), np.array([2]), np.array([4, 5])], top_k=4)
    assert [len(found.item_indices) for found in ranked] == [0, 4, 4]


class CutOffError(Exception):
    """Stands for the power going out."""


def _cut_off_after(share: float) -> Callable[..., None]:
    def progress(_stage: str, done: int, total: int, *_: object) -> None:
        if done > share * total:
            raise CutOffError

    return progress


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(share: float, tmp_path: Path) -> None:
    """Cut off in the first or in the third of four epochs; dropout and order go on where they were."""
    config = SMALL.model_copy(update={"max_epochs": 4, "patience": 4})
    checkpoint = tmp_path / "scratch" / "checkpoint.safetensors"
    with pytest.raises(CutOffError):
        _fit(_random_histories(), config, checkpoint=checkpoint, progress=_cut_off_after(share))
    assert checkpoint.is_file() == (share > 0.25)
    torch.rand(11)
    steps: list[int] = []
    resumed = _fit(
        _random_histories(), config, checkpoint=checkpoint, progress=lambda _stage, done, *_: steps.append(done)
    )
    whole = _fit(_random_histories(), config)
    assert _saved(resumed, tmp_path / "resumed") == _saved(whole, tmp_path / "whole")
    targets = sum(len(history) - 3 for history in _random_histories())
    assert (steps[0] > targets) == (share > 0.25), "the epochs that were done are not done again"


def test_the_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    """With another seed nothing is taken over; the same training again is only read back."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = _fit(_random_histories(), checkpoint=checkpoint)
    again = _fit(_random_histories(), checkpoint=checkpoint)
    assert _bytes(again) == _bytes(first)
    assert _bytes(_fit(_random_histories(), seed=6, checkpoint=checkpoint)) == _bytes(_fit(_random_histories(), seed=6))


def test_a_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    """Weights, log, settings and item embeddings, to the last bit."""
    fitted = _fit(_random_histories())
    fitted.save(tmp_path)
    loaded = FittedSasrec.load(tmp_path)
    assert _bytes(loaded) == _bytes(fitted)
    assert (loaded.log, loaded.best_epoch) == (fitted.log, fitted.best_epoch)
    assert loaded.settings() == fitted.settings()
    assert loaded.settings()["max_length"] == SMALL.max_length
    assert "enabled" not in loaded.settings()
    embeddings = load_item_embeddings(tmp_path)
    assert embeddings is not None
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, fitted.item_embeddings)
    inputs = [history[:-1] for history in _random_histories()]
    assert torch.equal(log_probabilities(loaded.model, inputs), log_probabilities(fitted.model, inputs))


def test_a_folder_that_holds_no_model_says_so(tmp_path: Path) -> None:
    """Left out on purpose, or damaged: an error that says what to do; the embeddings of a skipped one are None."""
    write_skipped(tmp_path, reason="a test")
    assert load_item_embeddings(tmp_path) is None
    with pytest.raises(StorageError, match=r"left out .* sasrec\.enabled=true"):
        FittedSasrec.load(tmp_path)
    broken = tmp_path / "broken"
    _saved(_fit(_random_histories()), broken)
    description = json.loads((broken / "sasrec.json").read_text())
    (broken / "sasrec.json").write_text(json.dumps(description | {"num_items": NUM_ITEMS + 1}))
    with pytest.raises(StorageError, match=r"model\.safetensors is not the SASRec that is described"):
        FittedSasrec.load(broken)
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=r"model\.safetensors is missing or damaged"):
        load_item_embeddings(broken)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """A learning rate that makes the weights infinite ends in an error that names the place."""
    config = SMALL.model_copy(update={"learning_rate": 1e30, "batch_size": 8})
    with pytest.raises(TrainingError, match=r"SASRec training, epoch 1, step \d+"):
        _fit(_random_histories(), config)


def test_heads_must_divide_the_states() -> None:
    """A head would get a part of an element."""
    with pytest.raises(ValidationError, match="num_heads must divide d_model"):
        SasrecConfig(d_model=10, num_heads=4)


def test_a_collaborative_route_needs_its_fusion_and_its_model() -> None:
    """Each missing setting is named, in a line that does not print the whole tree."""
    route = {"collaborative_route": True}
    with pytest.raises(ConfigError, match=r"collaborative_route needs decoding\.fusion=calibrated, got published"):
        resolve_config("demo", {"decoding": route})
    calibrated = {"decoding": route | {"fusion": "calibrated"}}
    assert resolve_config("demo", calibrated).decoding.collaborative_route
    with pytest.raises(ConfigError, match=r"needs sasrec\.enabled=true: SASRec is where that comes from$"):
        resolve_config("demo", calibrated, {"sasrec": {"enabled": False}})


@pytest.mark.parametrize("max_epochs", [1, 20])
def test_progress_only_grows_and_ends_at_its_total(max_epochs: int) -> None:
    """Progress counts targets and is complete once, at the end, even where patience ended the training."""
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        calls.append((stage, done, total))

    config = SMALL.model_copy(update={"max_epochs": max_epochs, "patience": 1})
    histories = _random_histories()
    fitted = fit_sasrec(histories, num_items=NUM_ITEMS, config=config, seed=5, progress=progress)
    done = [call[1] for call in calls]
    assert (len(fitted.log) == max_epochs) == (max_epochs == 1)
    assert done == sorted(done)
    assert done.count(done[-1]) == 1  # a bar that is complete would be drawn anew
    assert {(stage, total) for stage, _, total in calls} == {("sasrec", done[-1])}


def test_item_embeddings_are_of_every_item() -> None:
    """float32 [N, D], a copy."""
    fitted = _fit(_random_histories())
    found = fitted.item_embeddings
    assert (found.shape, found.dtype) == ((NUM_ITEMS, SMALL.d_model), np.float32)
    found[:] = 0
    assert fitted.item_embeddings.any()
