"""Cutting histories into rows and batches: every target once, nothing from the future, nothing twice."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from macrec_pipeline.config import RecommenderConfig
from macrec_pipeline.errors import ConfigError
from macrec_pipeline.recommender.model.vocabulary import PROMPTED_TASKS, Vocabulary, possible_tasks
from macrec_pipeline.recommender.training.batching import (
    TARGETS_PER_ROW,
    batch_of,
    item_causal_views,
    last_target_rows,
    plan_batches,
    receptive_field,
    training_rows,
)

HISTORIES = st.lists(st.integers(1, 130), min_size=1, max_size=8).map(
    lambda lengths: [np.arange(length) + 1000 * row for row, length in enumerate(lengths)]
)


def config(encoding: str, history_length: int = 20) -> RecommenderConfig:
    return RecommenderConfig.model_validate({"encoding": encoding, "history_length": history_length})


@settings(max_examples=60, deadline=None)
@given(histories=HISTORIES, encoding=st.sampled_from(["exact", "item_causal"]), history_length=st.integers(1, 30))
def test_every_item_after_the_first_is_a_target_exactly_once(
    histories: list[np.ndarray], encoding: str, history_length: int
) -> None:
    """And each target's row holds the items before it, as far back as it may look."""
    rows = training_rows(histories, config(encoding, history_length))
    seen = []
    for batch_rows in plan_batches(rows, targets_per_batch=50, generator=np.random.default_rng(0)):
        batch = batch_of(rows, batch_rows, only_last=encoding == "exact")
        tensors = (batch.read, batch.length, batch.targets, batch.counted)
        for read, length, targets, counted in zip(*(tensor.numpy() for tensor in tensors), strict=True):
            for place in np.flatnonzero(counted):
                target = targets[place]
                before = read[:length] if encoding == "exact" else read[: batch.first + place + 1]
                wanted = list(range(target - target % 1000, target))[-history_length:]
                assert before[-len(wanted) :].tolist() == wanted
                seen.append(target)
    assert sorted(seen) == sorted(item for history in histories for item in history[1:])
    assert rows.num_targets == len(seen)


def test_an_exact_row_is_the_published_sample() -> None:
    """At most history_length items, then the target."""
    rows = training_rows([np.arange(6)], config("exact", 3))
    batches = [batch_of(rows, np.array([row]), only_last=True) for row in range(len(rows))]
    assert [(b.read[0].tolist(), b.targets[0].tolist()) for b in batches] == [
        ([0], [1]),
        ([0, 1], [2]),
        ([0, 1, 2], [3]),
        ([1, 2, 3], [4]),
        ([2, 3, 4], [5]),
    ]


def test_a_batch_holds_no_more_targets_than_asked() -> None:
    """Unless a single row has more by itself."""
    histories = [np.arange(length) for length in (100, 90, 7, 6, 5, 4, 3, 2)]
    rows = training_rows(histories, config("item_causal"))
    for chosen in plan_batches(rows, targets_per_batch=TARGETS_PER_ROW, generator=np.random.default_rng(0)):
        assert (rows.lengths[chosen] - rows.first_target[chosen]).sum() <= TARGETS_PER_ROW


def test_a_plan_has_the_same_shapes_whatever_the_order() -> None:
    """So that the tasks of one step can meet different rows of one shape."""
    rows = training_rows([np.arange(n) for n in np.random.default_rng(0).integers(2, 60, 50)], config("item_causal"))
    shapes = [
        sorted(
            (len(chosen), rows.lengths[chosen].max())
            for chosen in plan_batches(rows, targets_per_batch=100, generator=np.random.default_rng(seed))
        )
        for seed in (1, 2)
    ]
    assert shapes[0] == shapes[1]


def test_the_last_target_row_reads_the_receptive_field() -> None:
    """What serving reads is exactly what a target can depend on."""
    settings_ = config("item_causal", 4)
    rows = last_target_rows([np.arange(100)], settings_)
    batch = batch_of(rows, np.array([0]), only_last=True)
    assert batch.targets.tolist() == [[99]]
    assert batch.read[0].tolist() == list(range(99 - receptive_field(settings_), 99))
    assert receptive_field(settings_) == 4 + 4 * 3


def test_item_causal_views_by_hand() -> None:
    """Two prompts, three items of two tokens, a window of two items."""
    among, lags = item_causal_views(3, num_levels=2, num_prompts=2, history_length=2)
    assert among.int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 1, 1],
        [1, 1, 0, 0, 1, 1, 1, 1],
    ]
    assert lags.tolist() == [
        [1, 1, 2, 3, 0, 0, 0, 0],
        [1, 1, 4, 5, 2, 3, 0, 0],
        [1, 1, 0, 0, 4, 5, 2, 3],
    ]


def test_every_token_has_one_meaning() -> None:
    """Padding, the codes of both modalities and the prompts share no token and leave none unused."""
    words = Vocabulary(num_levels=2, codebook_size=3, num_prompt_tokens=4)

    codes = torch.arange(3)[:, None].expand(3, 2)
    used = [0]
    for modality in ("text", "image"):
        used += words.item_tokens(codes, modality=modality).flatten().tolist()
    for task in PROMPTED_TASKS:
        assert len(words.prompt(task)) == 4
        used += words.prompt(task).tolist()
    assert sorted(used) == list(range(words.size))
    assert words.prompt("text_to_text").tolist() == []


def test_tasks_of_a_modality_that_is_not_there_are_left_out() -> None:
    """What is left reads and writes only what there is, in the order of the settings; no route at all is refused."""
    tasks = RecommenderConfig().tasks
    assert possible_tasks(tasks, ["text", "image"]) == tasks
    assert possible_tasks(tasks, ["image"]) == ("image_to_image",)
    with pytest.raises(ConfigError, match=r"the catalogue has only text IDs\. Add text_to_text"):
        possible_tasks(("image_to_image", "text_to_image"), ["text"])
