"""Histories are cut into windows and batches so that every target occurs once and none sees the future."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.recommender.model.generative_recommender import ModelSpec
from macrec_pipeline.recommender.training.batching import (
    TARGETS_PER_WINDOW,
    last_target_windows,
    plan_batches,
    training_windows,
)

HISTORIES = st.lists(st.integers(1, 130), min_size=1, max_size=8).map(
    lambda lengths: [np.arange(length) + 1000 * row for row, length in enumerate(lengths)]
)


def spec_of(encoding: str, history_length: int = 20) -> ModelSpec:
    config = RecommenderConfig.model_validate({"encoding": encoding, "history_length": history_length})
    return ModelSpec.from_settings(vars(config))


@settings(max_examples=60, deadline=None)
@given(histories=HISTORIES, encoding=st.sampled_from(["exact", "item_causal"]), history_length=st.integers(1, 30))
def test_every_item_after_the_first_is_a_target_exactly_once(
    histories: list[np.ndarray], encoding: str, history_length: int
) -> None:
    """Each target's window holds the items before it, as far back as the target may attend."""
    windows = training_windows(histories, spec_of(encoding, history_length))
    seen = []
    for chosen in plan_batches(windows, targets_per_batch=50, generator=np.random.default_rng(0)):
        batch = windows.batch(chosen, only_last=encoding == "exact")
        rows = zip(*(tensor.numpy() for tensor in batch.tensors), strict=True)
        for history, length, targets, target_mask in rows:
            for position in np.flatnonzero(target_mask):
                target = targets[position]
                before = history[:length] if encoding == "exact" else history[: batch.target_offset + position + 1]
                expected = list(range(target - target % 1000, target))[-history_length:]
                assert before[-len(expected) :].tolist() == expected
                seen.append(target)
    assert sorted(seen) == sorted(item for history in histories for item in history[1:])
    assert windows.num_targets == len(seen)


@settings(max_examples=30, deadline=None)
@given(histories=HISTORIES, encoding=st.sampled_from(["exact", "item_causal"]))
def test_each_target_has_its_own_weight(histories: list[np.ndarray], encoding: str) -> None:
    """Items that are only context or padding have none."""
    items = np.concatenate(histories)
    windows = training_windows(histories, spec_of(encoding), (items + 0.5).astype(np.float32))
    seen = []
    for chosen in plan_batches(windows, targets_per_batch=50, generator=np.random.default_rng(0)):
        batch = windows.batch(chosen, only_last=encoding == "exact")
        is_target = batch.target_mask > 0
        np.testing.assert_array_equal(batch.target_mask[is_target], batch.targets[is_target] + 0.5)
        seen += batch.targets[is_target].tolist()
    assert sorted(seen) == sorted(item for history in histories for item in history[1:])


def test_an_exact_window_is_the_published_sample() -> None:
    """At most `history_length` items, then the target."""
    windows = training_windows([np.arange(6)], spec_of("exact", 3))
    batches = [windows.batch(np.array([number]), only_last=True) for number in range(len(windows))]
    assert [(batch.history[0].tolist(), batch.targets[0].tolist()) for batch in batches] == [
        ([0], [1]),
        ([0, 1], [2]),
        ([0, 1, 2], [3]),
        ([1, 2, 3], [4]),
        ([2, 3, 4], [5]),
    ]


def test_a_batch_has_no_more_targets_than_allowed() -> None:
    """The limit equals the number of targets in a full window."""
    histories = [np.arange(length) for length in (100, 90, 7, 6, 5, 4, 3, 2)]
    windows = training_windows(histories, spec_of("item_causal"))
    for chosen in plan_batches(windows, targets_per_batch=TARGETS_PER_WINDOW, generator=np.random.default_rng(0)):
        assert windows.targets_per_window[chosen].sum() <= TARGETS_PER_WINDOW


def test_a_plan_has_the_same_shapes_whatever_is_drawn() -> None:
    """The batch shapes of a plan do not depend on the draw, so the tasks of a step can use different windows."""
    histories = [np.arange(length) for length in np.random.default_rng(0).integers(2, 60, 50)]
    windows = training_windows(histories, spec_of("item_causal"))
    shapes = [
        sorted(
            (len(chosen), windows.lengths[chosen].max())
            for chosen in plan_batches(windows, targets_per_batch=100, generator=np.random.default_rng(seed))
        )
        for seed in (1, 2)
    ]
    assert shapes[0] == shapes[1]


def test_the_last_target_window_reads_the_receptive_field() -> None:
    """What serving reads is exactly what a target can depend on."""
    spec = spec_of("item_causal", 4)
    windows = last_target_windows([np.arange(100)], spec)
    batch = windows.batch(np.array([0]), only_last=True)
    assert batch.targets.tolist() == [[99]]
    assert batch.history[0].tolist() == list(range(99 - spec.receptive_field, 99))
    assert spec.receptive_field == 4 + 4 * 3
