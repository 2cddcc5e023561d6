"""SASRec never looks ahead, learns nothing from held-out targets, repeats itself to the byte, and does learn."""

import json
from collections.abc import Mapping
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
from macrec_pipeline.recommender.retrieval.retriever import log_probabilities, rank_catalogue
from macrec_pipeline.recommender.sasrec.fitted import (
    FittedSasrec,
    load_item_embeddings,
    save_item_ids,
    write_skipped,
)
from macrec_pipeline.recommender.sasrec.model import Sasrec, SasrecSpec
from macrec_pipeline.recommender.sasrec.training import SasrecStart, fit_sasrec, training_windows, validation_ndcg
from macrec_pipeline.runtime.progress import Progress, quiet_progress
from macrec_pipeline.runtime.seeds import torch_generator
from tests.recommender.interrupted_training import InterruptedTrainingError, interrupt_after, saved_files

NUM_ITEMS = 12
SMALL = SasrecConfig(d_model=16, num_heads=2, num_layers=2, max_length=6, batch_size=64, max_epochs=2, dropout=0.25)


def _random_histories(num_users: int = 30) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_ITEMS, rng.integers(4, 15)) for _ in range(num_users)]


def _cycle_histories() -> list[np.ndarray]:
    """Return histories of users who start anywhere in one fixed cycle and always take the next item."""
    cycle = np.random.default_rng(1).permutation(NUM_ITEMS)
    return [cycle[(start + np.arange(9)) % NUM_ITEMS] for start in range(NUM_ITEMS)] * 4


def _fit(
    histories: list[np.ndarray],
    config: SasrecConfig = SMALL,
    seed: int = 5,
    checkpoint: Path | None = None,
    progress: Progress = quiet_progress,
    start: SasrecStart | None = None,
) -> FittedSasrec:
    return fit_sasrec(
        histories, num_items=NUM_ITEMS, config=config, seed=seed, checkpoint=checkpoint, progress=progress, start=start
    )


def _weights(fitted: FittedSasrec) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in fitted.model.state_dict().items()}


def _with_other_item(history: np.ndarray, position: int, steps: int) -> np.ndarray:
    """Return the history with another item at a position."""
    changed = history.copy()
    changed[position] = (changed[position] + steps) % NUM_ITEMS
    return changed


@pytest.fixture
def model() -> Sasrec:
    return Sasrec(NUM_ITEMS, SasrecSpec.from_settings(vars(SMALL)), torch_generator(0, "test")).eval()


def test_a_later_item_changes_no_earlier_state(model: Sasrec) -> None:
    """The states before a changed item are equal to the last bit; the one at it and those after it are not."""
    inputs = torch.tensor([[1, 2, 3, 4, 5, 6]])
    other = inputs.clone()
    other[0, 3] = 9
    states, changed = model(inputs), model(other)
    assert torch.equal(states[:, :3], changed[:, :3])
    assert (states[:, 3:] != changed[:, 3:]).any(dim=2).all()


def test_padding_changes_nothing(model: Sasrec) -> None:
    """A history has the same states alone and in a batch with a longer one."""
    alone = model(torch.tensor([[7, 8, 9]]))
    beside = model(torch.tensor([[1, 2, 3, 4, 5, 6], [7, 8, 9, 0, 0, 0], [7, 8, 9, 3, 2, 1]]))
    torch.testing.assert_close(beside[1:, :3], alone.expand(2, -1, -1))


def test_scores_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Histories of all lengths together get the scores that they get one by one, in the order given."""
    inputs = [history[:-1] for history in _random_histories()]
    model = _fit(_random_histories()).model
    at_once = log_probabilities(model, inputs)
    monkeypatch.setattr("macrec_pipeline.recommender.sasrec.model.CELLS_AT_ONCE", 1)
    torch.testing.assert_close(log_probabilities(model, inputs), at_once)
    alone = torch.cat([log_probabilities(model, [history]) for history in inputs])
    torch.testing.assert_close(alone, at_once)
    assert at_once.exp().sum(dim=1).tolist() == pytest.approx([1.0] * len(inputs), rel=1e-5)


@pytest.mark.parametrize("targets_at_once", [1, 3, 7])
def test_a_loss_in_parts_equals_the_whole_loss(
    model: Sasrec, targets_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradients are equal up to float noise, also if the parts do not divide the targets evenly."""
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
    """Of 11 targets and 12 items, the scores of three targets are held at a time."""
    held: list[int] = []
    plain = model.scores
    monkeypatch.setattr("macrec_pipeline.recommender.sasrec.model.CELLS_AT_ONCE", 40)
    monkeypatch.setattr(model, "scores", lambda states: held.append(plain(states).numel()) or plain(states))
    model.loss(torch.zeros(11, SMALL.d_model, requires_grad=True), torch.arange(11)).backward()
    assert held == [36, 36, 36, 24, 24, 36, 36, 36]  # and once more for the gradient, in reverse order


def test_training_learns_a_cycle_of_items() -> None:
    """If the last item determines the next one, nearly every test target ranks first and the loss is nearly zero."""
    histories = _cycle_histories()
    config = SMALL.model_copy(update={"max_epochs": 30, "patience": 30, "dropout": 0.0, "learning_rate": 1e-2})
    fitted = _fit(histories, config)
    ranked = rank_catalogue(fitted.model, [history[:-1] for history in histories], top_k=1)
    hits = [found.item_indices[0] == history[-1] for found, history in zip(ranked, histories, strict=True)]
    assert np.mean(hits) > 0.95
    assert fitted.log[-1]["train_loss"] < 0.1 < fitted.log[0]["train_loss"]


def test_held_out_targets_never_enter_training() -> None:
    """Other validation and test targets do not change the weights and losses; another training item does."""
    items = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 1})  # a single epoch, because validation decides which one is kept
    plain = _fit(items, config)
    other_targets = _fit([_with_other_item(_with_other_item(row, -2, 5), -1, 7) for row in items], config)
    other_item = _fit([_with_other_item(row, -3, 1) for row in items], config)
    assert _weights(other_targets) == _weights(plain)
    assert other_targets.log[0]["train_loss"] == plain.log[0]["train_loss"]
    assert _weights(other_item) != _weights(plain)


def test_the_test_target_does_not_pick_the_epoch() -> None:
    """Other test targets change neither the log nor the best epoch of a training of several epochs."""
    items = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 4})
    plain = _fit(items, config)
    other = _fit([_with_other_item(row, -1, 7) for row in items], config)
    assert other.log == plain.log
    assert _weights(other) == _weights(plain)


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before() -> None:
    """A second training is equal to the last bit, the global generator is left alone, and another seed differs."""
    histories = _random_histories()
    torch.manual_seed(1)
    first, drawn = _fit(histories), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert _weights(_fit(histories)) == _weights(first)
    assert _fit(histories).log == first.log
    assert _weights(_fit(histories, seed=6)) != _weights(first)


def test_the_best_epoch_is_kept_and_patience_ends_training() -> None:
    """The weights are those of the epoch with the highest NDCG@10, and training stops `patience` epochs after it."""
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
    """A user's windows tile the training part; none is longer than allowed or reaches into another user's history."""
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


def test_lists_have_distinct_items_and_can_exclude_seen_ones() -> None:
    """Lists hold the whole catalogue, or all of it but the seen items, in the same order."""
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


def test_excluded_items_have_no_probability(model: Sasrec) -> None:
    """The probabilities of the other items keep their proportions and sum to one; a row without any has none."""
    histories = [np.array([3, 4]), np.array([5])]
    forbidden = torch.zeros(2, NUM_ITEMS, dtype=torch.bool)
    forbidden[0, [0, 7, 9]] = True
    forbidden[1] = True
    free, masked = log_probabilities(model, histories), log_probabilities(model, histories, excluded=forbidden)
    assert masked[0, [0, 7, 9]].isneginf().all()
    allowed = ~forbidden[0]
    assert masked[0, allowed].exp().sum().item() == pytest.approx(1.0, rel=1e-5)
    shift = masked[0, allowed] - free[0, allowed]
    assert shift.min().item() == pytest.approx(shift.max().item(), rel=1e-4)
    assert masked[1].isneginf().all()


def test_short_histories_are_no_error() -> None:
    """Users with nothing to train on get lists, and a user without any item gets an empty one."""
    fitted = _fit([np.array([1]), np.array([2, 3]), np.array([4, 5, 6])])
    assert (fitted.best_epoch, fitted.log, fitted.validation_ndcg) == (0, [], 0.0)
    ranked = rank_catalogue(fitted.model, [np.array([], dtype=np.int64), np.array([2]), np.array([4, 5])], top_k=4)
    assert [len(found.item_indices) for found in ranked] == [0, 4, 4]


@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_resumed_training_ends_with_the_bytes_of_an_uninterrupted_one(share: float, tmp_path: Path) -> None:
    """A training that was interrupted in the first or third of four epochs resumes with the same dropout and order."""
    config = SMALL.model_copy(update={"max_epochs": 4, "patience": 4})
    checkpoint = tmp_path / "scratch" / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        _fit(_random_histories(), config, checkpoint=checkpoint, progress=interrupt_after(share))
    assert checkpoint.is_file() == (share > 0.25)
    torch.rand(11)
    steps: list[int] = []
    resumed = _fit(
        _random_histories(), config, checkpoint=checkpoint, progress=lambda _stage, done, *_: steps.append(done)
    )
    uninterrupted = _fit(_random_histories(), config)
    assert saved_files(resumed, tmp_path / "resumed") == saved_files(uninterrupted, tmp_path / "uninterrupted")
    targets = sum(len(history) - 3 for history in _random_histories())
    assert (steps[0] > targets) == (share > 0.25), "finished epochs must not be repeated"


def test_the_checkpoint_of_another_training_is_ignored(tmp_path: Path) -> None:
    """A training with another seed starts from the beginning; the same training is only read back."""
    checkpoint = tmp_path / "checkpoint.safetensors"
    first = _fit(_random_histories(), checkpoint=checkpoint)
    again = _fit(_random_histories(), checkpoint=checkpoint)
    assert _weights(again) == _weights(first)
    assert _weights(_fit(_random_histories(), seed=6, checkpoint=checkpoint)) == _weights(
        _fit(_random_histories(), seed=6)
    )


def test_a_folder_gives_back_what_was_saved(tmp_path: Path) -> None:
    """Weights, log, settings and item embeddings are equal to the last bit."""
    fitted = _fit(_random_histories())
    fitted.save(tmp_path)
    loaded = FittedSasrec.load(tmp_path)
    assert _weights(loaded) == _weights(fitted)
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


def test_a_folder_without_a_model_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """SASRec was not trained, or a file is damaged. The item embeddings of an untrained SASRec are None."""
    write_skipped(tmp_path, reason="a test")
    assert load_item_embeddings(tmp_path) is None
    with pytest.raises(StorageError, match=r"holds no SASRec model: .* again with sasrec\.enabled=true"):
        FittedSasrec.load(tmp_path)
    broken = tmp_path / "broken"
    saved_files(_fit(_random_histories()), broken)
    description = json.loads((broken / "sasrec.json").read_text())
    (broken / "sasrec.json").write_text(json.dumps(description | {"num_items": NUM_ITEMS + 1}))
    with pytest.raises(StorageError, match=r"model\.safetensors does not hold the SASRec model that its description"):
        FittedSasrec.load(broken)
    (broken / "model.safetensors").write_bytes(b"")
    with pytest.raises(StorageError, match=r"model\.safetensors is missing or damaged"):
        load_item_embeddings(broken)


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """A learning rate that makes the weights infinite ends in an error that names epoch and step."""
    config = SMALL.model_copy(update={"learning_rate": 1e30, "batch_size": 8})
    with pytest.raises(TrainingError, match=r"SASRec training, epoch 1, step \d+"):
        _fit(_random_histories(), config)


def test_the_number_of_heads_must_divide_the_width() -> None:
    """Otherwise a head would get part of an element."""
    with pytest.raises(ValidationError, match="num_heads must divide d_model"):
        SasrecConfig(d_model=10, num_heads=4)


def test_a_collaborative_route_needs_calibrated_fusion_and_sasrec() -> None:
    """The error names the missing setting in one line, without printing all settings."""
    route = {"collaborative_route": True}
    with pytest.raises(ConfigError, match=r"collaborative_route needs decoding\.fusion=calibrated, got published"):
        resolve_config("demo", {"decoding": route})
    calibrated = {"decoding": route | {"fusion": "calibrated"}}
    assert resolve_config("demo", calibrated).decoding.collaborative_route
    with pytest.raises(ConfigError, match=r"needs sasrec\.enabled=true: SASRec provides the collaborative signal\.$"):
        resolve_config("demo", calibrated, {"sasrec": {"enabled": False}})


@pytest.mark.parametrize("max_epochs", [1, 20])
def test_progress_only_grows_and_ends_at_its_total(max_epochs: int) -> None:
    """Progress counts targets and is complete exactly once, at the end, even if patience ends the training."""
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        calls.append((stage, done, total))

    config = SMALL.model_copy(update={"max_epochs": max_epochs, "patience": 1})
    histories = _random_histories()
    fitted = _fit(histories, config, progress=progress)
    done = [call[1] for call in calls]
    assert (len(fitted.log) == max_epochs) == (max_epochs == 1)
    assert done == sorted(done)
    assert done.count(done[-1]) == 1  # a second call would draw the complete bar again
    assert {(stage, total) for stage, _, total in calls} == {("sasrec", done[-1])}


def test_every_item_has_an_embedding() -> None:
    """Item embeddings are float32 [N, D] and a copy of the model's weights."""
    fitted = _fit(_random_histories())
    embeddings = fitted.item_embeddings
    assert (embeddings.shape, embeddings.dtype) == ((NUM_ITEMS, SMALL.d_model), np.float32)
    embeddings[:] = 0
    assert fitted.item_embeddings.any()


ITEM_IDS = [f"i{item:02d}" for item in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a SASRec that has learned a cycle of items."""
    folder = tmp_path_factory.mktemp("earlier") / "sasrec"
    saved_files(_fit(_cycle_histories(), SMALL.model_copy(update={"max_epochs": 40, "patience": 40})), folder)
    save_item_ids(ITEM_IDS, folder)
    return folder


def _start(folder: Path, item_ids: list[str] | None = None, **settings: float) -> SasrecStart:
    return SasrecStart(folder, item_ids or ITEM_IDS, SMALL.model_copy(update={"max_epochs": 1, **settings}))


def test_a_warm_start_matches_items_by_id(earlier: Path) -> None:
    """The catalogue is in another order and has a new item; at a rate near zero, each item keeps its embedding."""
    old = load_item_embeddings(earlier)
    assert old is not None
    item_ids = ["new", *ITEM_IDS[:0:-1]]  # i00 has left
    start = _start(earlier, item_ids, learning_rate=1e-12, weight_decay=0.0)
    histories = [NUM_ITEMS - history % NUM_ITEMS for history in _cycle_histories()]  # item i is at row 12 - i
    histories = [history[history < NUM_ITEMS] for history in histories]
    fitted = _fit(histories, start=start)
    assert fitted.warm_start == "taken over"
    np.testing.assert_allclose(fitted.item_embeddings[1:], old[:0:-1], rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(fitted.item_embeddings[0], old.mean(axis=0), atol=0.1)
    cold = _fit(histories, start.config)
    assert fitted.validation_ndcg > cold.validation_ndcg + 0.3


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_an_interrupted_warm_start_ends_with_the_same_bytes(earlier: Path, share: float, tmp_path: Path) -> None:
    """The learning rate goes on falling where it was; a checkpoint of other starting weights is ignored."""
    start, checkpoint = _start(earlier, max_epochs=2), tmp_path / "checkpoint.safetensors"
    with pytest.raises(InterruptedTrainingError):
        _fit(_cycle_histories(), checkpoint=checkpoint, progress=interrupt_after(share), start=start)
    resumed = saved_files(_fit(_cycle_histories(), checkpoint=checkpoint, start=start), tmp_path / "resumed")
    assert resumed == saved_files(_fit(_cycle_histories(), start=start), tmp_path / "uninterrupted")
    cold = saved_files(_fit(_cycle_histories()), tmp_path / "cold")
    _fit(_cycle_histories(), checkpoint=checkpoint, start=start)
    assert saved_files(_fit(_cycle_histories(), checkpoint=checkpoint), tmp_path / "cold again") == cold != resumed


@pytest.mark.parametrize("name", ["model.safetensors", "items.json", "sasrec.json"])
def test_damaged_starting_weights_are_an_error_that_says_what_to_do(name: str, earlier: Path, tmp_path: Path) -> None:
    """Each file is cut off in the middle."""
    for source in earlier.iterdir():
        content = source.read_bytes()
        (tmp_path / source.name).write_bytes(content[: len(content) // 2] if source.name == name else content)
    with pytest.raises(StorageError, match=r"train without it by setting `sasrec\.warm_start` to false"):
        _fit(_cycle_histories(), start=_start(tmp_path))


def test_a_folder_without_usable_weights_means_a_cold_start(
    earlier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Then all epochs are trained, from the same random weights as without a warm start."""
    skipped, without_ids = tmp_path / "skipped", tmp_path / "without ids"
    skipped.mkdir()
    write_skipped(skipped, reason="sasrec.enabled is false")
    without_ids.mkdir()
    for name in ("model.safetensors", "sasrec.json", "training_log.json"):
        (without_ids / name).write_bytes((earlier / name).read_bytes())
    cold = _weights(_fit(_cycle_histories()))
    for folder, reason in ((skipped, "trained no SASRec"), (without_ids, "without its item IDs")):
        fitted = _fit(_cycle_histories(), start=_start(folder))
        assert reason in fitted.warm_start
        assert reason in caplog.text
        assert _weights(fitted) == cold
