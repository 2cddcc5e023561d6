"""SASRec: no look ahead, nothing learned from the targets, the same bytes every time, and it does learn."""

from collections.abc import Mapping

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from macrec_pipeline.config import EvaluationConfig, SasrecConfig
from macrec_pipeline.errors import TrainingError
from macrec_pipeline.evaluation import Evaluation, evaluate
from macrec_pipeline.evaluation.metrics import hit_rate, target_ranks
from macrec_pipeline.evaluation.sasrec import Sasrec, SeededDropout, recommend_sasrec
from macrec_pipeline.evaluation.sasrec_fitting import FittedSasrec, fit_sasrec, training_windows, validation_ndcg
from macrec_pipeline.evaluation.sequences import NO_ITEM, FlatHistories
from macrec_pipeline.runtime.seeds import torch_generator

NUM_ITEMS = 12
SMALL = SasrecConfig(d_model=16, num_heads=2, num_layers=2, max_length=6, batch_size=64, max_epochs=2, dropout=0.25)


def _flat(items: list[list[int]]) -> FlatHistories:
    starts = np.concatenate([[0], np.cumsum([len(row) for row in items])])
    return FlatHistories(items=np.array([item for row in items for item in row], dtype=np.int64), starts=starts)


def _random_histories(num_users: int = 30) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, NUM_ITEMS, rng.integers(4, 15)).tolist() for _ in range(num_users)]


def _cycle_histories() -> FlatHistories:
    """Users who start anywhere and always take the next item of one fixed cycle."""
    cycle = np.random.default_rng(1).permutation(NUM_ITEMS)
    return _flat([[int(cycle[(start + step) % NUM_ITEMS]) for step in range(9)] for start in range(NUM_ITEMS)] * 4)


def _fit(items: FlatHistories, config: SasrecConfig = SMALL, seed: int = 5) -> FittedSasrec:
    return fit_sasrec(items, num_items=NUM_ITEMS, config=config, seed=seed)


def _bytes(fitted: FittedSasrec) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in fitted.model.state_dict().items()}


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


def test_lists_do_not_depend_on_who_shares_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of all lengths at once get the lists that they get one by one."""
    histories = _flat(_random_histories())
    fitted = _fit(histories)
    at_once = recommend_sasrec(fitted.model, histories, top_k=5)
    monkeypatch.setattr("macrec_pipeline.evaluation.sasrec._CELLS_AT_ONCE", 1)
    one_by_one = recommend_sasrec(fitted.model, histories, top_k=5)
    for exclude_seen in (False, True):
        np.testing.assert_array_equal(at_once[exclude_seen], one_by_one[exclude_seen])


def test_it_learns_a_cycle_of_items() -> None:
    """Where the next item follows from the last one, nearly every test target is first, and the loss nearly zero."""
    histories = _cycle_histories()
    config = SMALL.model_copy(update={"max_epochs": 30, "patience": 30, "dropout": 0.0, "learning_rate": 1e-2})
    fitted = _fit(histories, config)
    ranks = target_ranks(recommend_sasrec(fitted.model, histories, top_k=5)[False], histories.targets)
    assert hit_rate(ranks, cutoff=1).mean() > 0.95
    assert fitted.log[-1]["train_loss"] < 0.1 < fitted.log[0]["train_loss"]


def test_the_targets_never_enter_training() -> None:
    """Other validation and test targets leave the same weights and losses; another training item does not."""
    items = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 1})  # validation picks the epoch, so there is but one
    plain = _fit(_flat(items), config)
    other_targets = _fit(
        _flat([[*row[:-2], (row[-2] + 5) % NUM_ITEMS, (row[-1] + 7) % NUM_ITEMS] for row in items]), config
    )
    other_item = _fit(_flat([[*row[:-3], (row[-3] + 1) % NUM_ITEMS, *row[-2:]] for row in items]), config)
    assert _bytes(other_targets) == _bytes(plain)
    assert other_targets.log[0]["train_loss"] == plain.log[0]["train_loss"]
    assert _bytes(other_item) != _bytes(plain)


def test_the_test_target_does_not_pick_the_epoch() -> None:
    """Other test targets leave the log and the best epoch of a training of several epochs."""
    items = _random_histories()
    config = SMALL.model_copy(update={"max_epochs": 4})
    plain = _fit(_flat(items), config)
    other = _fit(_flat([[*row[:-1], (row[-1] + 7) % NUM_ITEMS] for row in items]), config)
    assert other.log == plain.log
    assert _bytes(other) == _bytes(plain)


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before() -> None:
    """A second training is equal to the last bit and leaves the global generator alone; another seed differs."""
    histories = _flat(_random_histories())
    torch.manual_seed(1)
    first, drawn = _fit(histories), torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)
    assert _bytes(_fit(histories)) == _bytes(first)
    assert _fit(histories).log == first.log
    assert _bytes(_fit(histories, seed=6)) != _bytes(first)


def test_the_best_epoch_is_kept_and_patience_ends_training() -> None:
    """The weights are those of the highest validation NDCG@10, and training stops `patience` epochs after it."""
    histories = _flat(_random_histories())
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
    histories = _flat([[0] * length for length in lengths])
    windows = training_windows(histories, max_length=max_length)
    targets = [
        place
        for first, length in zip(windows.firsts, windows.lengths, strict=True)
        for place in range(first + 1, first + length + 1)
    ]
    expected = [
        place
        for start, length in zip(histories.starts[:-1], lengths, strict=True)
        for place in range(start + 1, start + length - 2)
    ]
    assert sorted(targets) == expected
    assert windows.lengths.max(initial=0) <= max_length


def test_seen_items_are_excluded_and_lists_are_of_distinct_items() -> None:
    """No list that excludes seen items has one; lists are filled as far as the catalogue goes."""
    items = _random_histories()
    histories = _flat(items)
    lists = recommend_sasrec(_fit(histories).model, histories, top_k=NUM_ITEMS)
    for user, row in enumerate(items):
        assert sorted(lists[False][user]) == list(range(NUM_ITEMS))
        shown = [item for item in lists[False][user] if item not in row[:-1]]
        assert lists[True][user].tolist() == shown + [NO_ITEM] * (NUM_ITEMS - len(shown))


def test_short_histories_are_no_error() -> None:
    """Users with nothing to train on get lists; a user whose only item is the target gets an empty one."""
    histories = _flat([[1], [2, 3], [4, 5, 6]])
    fitted = _fit(histories)
    assert (fitted.best_epoch, fitted.log) == (0, [])
    lists = recommend_sasrec(fitted.model, histories, top_k=4)[False]
    assert (lists[0] == NO_ITEM).all()
    assert (lists[1:] != NO_ITEM).all()


def test_dropout_keeps_the_expectation_and_the_share() -> None:
    """A quarter of the elements is zero, the others are scaled up; outside training nothing changes."""
    dropout = SeededDropout(0.25)
    dropout.generator = torch_generator(0, "test")
    dropped = dropout(torch.ones(101, 97))
    assert sorted(dropped.unique().tolist()) == pytest.approx([0.0, 4 / 3])
    assert (dropped == 0).double().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropout.eval()(torch.ones(3)), torch.ones(3))


def test_a_loss_that_is_not_finite_stops_training() -> None:
    """A learning rate that makes the weights infinite ends in an error that names the place."""
    config = SMALL.model_copy(update={"learning_rate": 1e30, "batch_size": 8})
    with pytest.raises(TrainingError, match=r"SASRec training, epoch 1, step \d+"):
        _fit(_flat(_random_histories()), config)


def test_heads_must_divide_the_states() -> None:
    """A head would get a part of an element."""
    with pytest.raises(ValidationError, match="num_heads must divide d_model"):
        SasrecConfig(d_model=10, num_heads=4)


@pytest.mark.parametrize("max_epochs", [1, 20])
def test_progress_only_grows_and_ends_at_its_total(max_epochs: int) -> None:
    """Progress counts targets and is complete once, at the end, even where patience ended the training."""
    calls: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        calls.append((stage, done, total))

    config = SMALL.model_copy(update={"max_epochs": max_epochs, "patience": 1})
    histories = _flat(_random_histories())
    fitted = fit_sasrec(histories, num_items=NUM_ITEMS, config=config, seed=5, progress=progress)
    done = [call[1] for call in calls]
    assert (len(fitted.log) == max_epochs) == (max_epochs == 1)
    assert done == sorted(done)
    assert done.count(done[-1]) == 1  # a bar that is complete would be drawn anew
    assert {(stage, total) for stage, _, total in calls} == {("sasrec", done[-1])}


def test_item_embeddings_are_of_every_item() -> None:
    """float32 [N, D], a copy."""
    fitted = _fit(_flat(_random_histories()))
    found = fitted.item_embeddings
    assert (found.shape, found.dtype) == ((NUM_ITEMS, SMALL.d_model), np.float32)
    found[:] = 0
    assert fitted.item_embeddings.any()


def test_the_evaluation_has_it_unless_it_is_disabled(
    evaluation: Evaluation, histories: pl.DataFrame, predictions: pl.DataFrame, small_config: EvaluationConfig
) -> None:
    """The protocol says what it was set to and which epoch was used; disabled, it is nowhere."""
    described = evaluation.protocol["sasrec"]
    assert described["max_length"] == small_config.sasrec.max_length
    assert 1 <= described["best_epoch"] <= described["num_epochs"] <= small_config.sasrec.max_epochs
    off = small_config.model_copy(update={"sasrec": SasrecConfig(enabled=False)})
    without = evaluate(histories, predictions, num_items=30, config=off, seed=3)
    assert "sasrec" not in without.systems | without.systems_excluding_seen | without.protocol
    assert "sasrec" not in without.per_user["system"]
    assert "sasrec" not in {comparison.against for comparison in without.comparisons}
    others = {name: values for name, values in evaluation.systems.items() if name != "sasrec"}
    assert without.systems == others
